"""Parts of a network: the operators of each block, with a key that equal blocks share.

A part holds the operators of one scope of a graph: ``stem``, ``unit1.block2``,
``stage1.cell1.block3``, ``head``. A block's inner scopes belong to the block. An operator outside
every scope is a part of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

from onnx import NodeProto, helper

from esm_models.architecture import Architecture
from esm_models.cost import OperatorCost, Shape, operator_cost
from esm_models.graph import (
    FLOAT32,
    Network,
    serialize_graph,
    value_info,
    weightless_initializer,
)
from esm_models.space import SearchSpace

_BLOCK = re.compile(r"block\d+")
_STAGE = re.compile(r"(unit|stage)\d+")

REST = "rest"
"""Region of the stem, the head and transitions."""


@dataclass(frozen=True)
class Part:
    """Operators of one scope; parts with equal keys do the same work.

    Attributes:
        name: Name of the scope, or of the operator if it has no scope.
        key: Hash of the operators, their attributes and all shapes, 16 hexadecimal digits.
        option: Label of the block's option; "" if unknown or if the part is not a block.
        dtype: Type of the arithmetic; costs are those of float32 in any case.
    """

    name: str
    key: str
    _nodes: tuple[NodeProto, ...] = field(repr=False, compare=False)
    _weights: Mapping[str, Shape] = field(repr=False, compare=False)
    _inputs: Mapping[str, Shape] = field(repr=False, compare=False)
    _outputs: Mapping[str, Shape] = field(repr=False, compare=False)
    _shapes: Mapping[str, Shape] = field(repr=False, compare=False)
    _types: Mapping[str, str] = field(repr=False, compare=False)
    option: str = field(default="", compare=False)
    dtype: str = FLOAT32

    @cached_property
    def operators(self) -> tuple[OperatorCost, ...]:
        """Costs of the operators in the order of the graph, without constants."""
        costs = []
        for node in self._nodes:
            if node.op_type != "Constant":
                given = [name for name in node.input if name]  # "" is left out
                read = [self._shapes[name] for name in given if name not in self._weights]
                fixed = [self._weights[name] for name in given if name in self._weights]
                made = [self._shapes[name] for name in node.output]
                costs.append(operator_cost(node, read, fixed, made))
        return tuple(costs)

    @property
    def inputs(self) -> tuple[Shape, ...]:
        """Shapes of the inputs from other parts."""
        return tuple(self._inputs.values())

    @property
    def region(self) -> str:
        """Region of the part: ``unit1``, ``stage1``, ... or :data:`REST`."""
        first, dot, _ = self.name.partition(".")
        return first if dot and _STAGE.fullmatch(first) else REST

    @property
    def macs(self) -> int:
        return sum(operator.macs for operator in self.operators)

    @property
    def flops(self) -> int:
        return sum(operator.flops for operator in self.operators)

    @property
    def parameters(self) -> int:
        return sum(operator.parameters for operator in self.operators)

    def build(self) -> bytes:
        """Return the part as a serialized weightless ONNX model; equal parts give equal bytes.

        Its inputs from other parts are ``input1``, ``input2``, ... Tensors that other parts use,
        or that no part uses, are its outputs ``output1``, ... None is int8, also of an int8 part.
        """
        names = {name: f"input{number}" for number, name in enumerate(self._inputs, start=1)}
        names |= {name: f"output{number}" for number, name in enumerate(self._outputs, start=1)}
        names[""] = ""
        nodes = []
        for number, node in enumerate(self._nodes, start=1):
            alone = NodeProto()
            alone.CopyFrom(node)
            alone.name = f"{node.op_type.lower()}{number}"
            for place, name in enumerate(n for n in node.input if n in self._weights):
                names.setdefault(name, f"{alone.name}.weight{place + 1}")
            for place, name in enumerate(node.output):
                names.setdefault(name, f"{alone.name}.out" + (f"{place + 1}" if place else ""))
            alone.input[:] = [names[name] for name in node.input]
            alone.output[:] = [names[name] for name in node.output]
            nodes.append(alone)
        graph = helper.make_graph(
            nodes,
            self.key,
            [value_info(names[n], self._types[n], shape) for n, shape in self._inputs.items()],
            [value_info(names[n], self._types[n], shape) for n, shape in self._outputs.items()],
            [weightless_initializer(names[name], shape) for name, shape in self._weights.items()],
        )
        return serialize_graph(graph, self.dtype, {names[n]: s for n, s in self._shapes.items()})


def parts_of(space: SearchSpace, architecture: Architecture) -> list[Part]:
    """Return the parts of a subnet, in the order of its graph.

    Raises:
        InvalidArchitectureError: the architecture is not in this space.
    """
    return split(*space.trace(architecture))


def split(net: Network, output: str) -> list[Part]:
    """Return the parts of a graph whose result is ``output``."""
    groups: dict[str, list[NodeProto]] = {}
    users: dict[str, set[str]] = {name: {""} for name in (output, *net.outputs)}
    for node in net.nodes:
        part = _part_name(node.name)
        groups.setdefault(part, []).append(node)
        for name in node.input:
            users.setdefault(name, set()).add(part)
    weights = {tensor.name: tuple(tensor.dims) for tensor in net.initializers}
    return [_part(name, nodes, net, weights, users) for name, nodes in groups.items()]


def _part_name(node: str) -> str:
    scopes, _, _ = node.rpartition(".")
    return _part_of(scopes) or node


@cache
def _part_of(scopes: str) -> str:
    """Return the scopes down to the block."""
    names = scopes.split(".")
    for number, scope in enumerate(names, start=1):
        if _BLOCK.fullmatch(scope):
            return ".".join(names[:number])
    return scopes


def _part(
    name: str,
    nodes: Sequence[NodeProto],
    net: Network,
    all_weights: Mapping[str, Shape],
    users: Mapping[str, set[str]],
) -> Part:
    inputs: dict[str, Shape] = {}
    weights: dict[str, Shape] = {}
    shapes: dict[str, Shape] = {}
    made: dict[str, str] = {}
    signature: list[object] = []
    for node in nodes:
        terms = []
        for tensor in filter(None, node.input):
            if tensor in all_weights:
                weights[tensor] = all_weights[tensor]
                terms.append(f"w{all_weights[tensor]}")
                continue
            if tensor not in made:
                shapes[tensor] = inputs[tensor] = net.shape(tensor)
                typed = "" if net.type(tensor) == FLOAT32 else net.type(tensor)
                made[tensor] = f"x{len(inputs)}{inputs[tensor]}{typed}"
            terms.append(made[tensor])
        results = [net.shape(tensor) for tensor in node.output]
        shapes |= dict(zip(node.output, results, strict=True))
        for place, tensor in enumerate(node.output):
            made[tensor] = f"y{len(signature)}" + (f".{place}" if place else "")
        attributes = [a.SerializeToString(deterministic=True) for a in node.attribute]
        signature.append((node.op_type, attributes, terms, *results))
    outputs = {
        tensor: net.shape(tensor)
        for node in nodes
        for tensor in node.output
        if users.get(tensor) != {name}
    }
    text = repr((signature, [made[tensor] for tensor in outputs]))
    text += net.dtype if net.dtype != FLOAT32 else ""
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    types = {tensor: net.type(tensor) for tensor in (*inputs, *outputs)}
    return Part(name, key, tuple(nodes), weights, inputs, outputs, shapes, types, dtype=net.dtype)
