"""Python source of a subnet's torch module: one class per scope of its graph, to read and edit.

The source comes from the graph, so every space has one, even a user's own. If a convolution's
weight and bias include a batch normalisation (:attr:`esm_models.graph.Network.folded`), the
module has both layers. Scopes with equal layers share a class.
"""

from __future__ import annotations

import keyword
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from typing import Any

from onnx import NodeProto, helper
from torch import nn

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_models.architecture import Architecture
from esm_models.graph import FLOAT32, Network
from esm_models.space import SearchSpace
from esm_protos.text import counted

Shape = tuple[int, ...]

CLASS = "Model"
"""Name of the network's class."""

NORM = "_norm"
"""Suffix of the name of a folded batch normalisation."""

NORM_EPSILON = 1e-5

_BLOCK = re.compile(r"unit(\d+)\.block(\d+)")
_WIDTH = 100
_TAB = "    "


@dataclass(frozen=True)
class Layer:
    """Layer of the module that receives the arrays of one operator.

    Attributes:
        path: Path of the layer in the module, such as ``"unit1.block2.conv1"``.
        operator: ``Conv``, ``BatchNormalization`` or ``Gemm``.
        folded: Whether ``path + NORM`` is a batch normalisation folded into the convolution's
            bias.
        arrays: Name and shape of its initializers in the graph, in the operator's order.
    """

    path: str
    operator: str
    folded: bool
    arrays: tuple[tuple[str, Shape], ...]


@dataclass(frozen=True)
class TorchSource:
    """Source of a module that defines :data:`CLASS`, and its layers."""

    text: str
    layers: tuple[Layer, ...]


def torch_source(space: SearchSpace, architecture: Architecture) -> TorchSource:
    """Return the Python source of a subnet, which needs only torch.

    Raises:
        InvalidArchitectureError: the architecture is not in this space.
        UsageError: the network is int8, or has an operator without a torch form.
    """
    if space.dtype != FLOAT32:
        raise UsageError(
            f"{space.dtype} networks have no torch form, because integers cannot be trained: "
            f"export {argument('formats')} onnx,json, or use {argument('dtype')} float32"
        )
    net, output = space.trace(architecture)
    writer = _Writer(net, output, architecture)
    whole = writer.module((), net.nodes)
    return TorchSource(writer.text(), tuple(whole.layers))


@dataclass(frozen=True)
class _Step:
    """Line of ``forward``: the tensors that it reads and writes, and its right-hand side."""

    reads: Sequence[str]
    writes: Sequence[str]
    render: Callable[[Sequence[str]], str]


@dataclass(frozen=True)
class _Module:
    """Class of the source, as used in one place.

    Attributes:
        name: Name of the class.
        inputs: Tensors that ``forward`` takes.
        outputs: Tensors that ``forward`` returns.
        layers: Its layers and those below, with relative paths.
    """

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    layers: Sequence[Layer]


@dataclass
class _Class:
    name: str
    paths: list[str] = field(default_factory=list)


class _Writer:
    """Writer of the source, with the graph and the classes written so far."""

    def __init__(self, net: Network, output: str, architecture: Architecture) -> None:
        self.net = net
        self.architecture = architecture
        self.classes: dict[str, _Class] = {}  # by their text from __init__ on
        self.pads_averages = False
        self.weights = {tensor.name: tuple(tensor.dims) for tensor in net.initializers}
        self.constants = {node.output[0] for node in net.nodes if node.op_type == "Constant"}
        self.output = output
        self.readers: dict[str, list[NodeProto]] = {}
        for node in net.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    # The text

    def text(self) -> str:
        a, net = self.architecture, self.net
        shape = " x ".join(map(str, net.shape(net.input)[1:]))
        results = " x ".join(map(str, net.shape(self.output)[1:]))
        units = " | ".join(" ".join(unit) or "-" for unit in a.units)
        said = (
            f'"""{_said(a.space)}, {counted(a.depth, "block")}: images of {shape} in, '
            f"{results} numbers out.",
            f"Units: {_said(units)}",
            f"Written by esm-host export {version('esm-profiler')}. A new {CLASS}() has torch's "
            "initial weights; weights.pt holds those of the ONNX file:",
        )
        lines = [line for text in said for line in (*textwrap.wrap(text, _WIDTH), "")]
        lines += [
            f"    model = {CLASS}()",
            '    model.load_state_dict(torch.load("weights.pt", weights_only=True))',
            '"""',
        ]
        body = [self._class(each, text) for text, each in self.classes.items()]
        if self.pads_averages:
            body.insert(0, _PADDED_AVERAGE)
        used = "\n".join(body)
        lines.append("")
        if re.search(r"\btorch\.", used):
            lines.append("import torch")
        if re.search(r"\bF\.", used):
            lines.append("import torch.nn.functional as F")
        lines += ["from torch import Tensor, nn", ""]
        return "\n".join([*lines, "", "\n\n\n".join(body), ""])

    def _class(self, known: _Class, text: str) -> str:
        places = [self._described(path) for path in known.paths]
        about: list[str] = []
        if places != known.paths or len(places) > 1:
            said = f'"""{_said(", ".join(places))}."""'
            about = [*textwrap.wrap(said, _WIDTH, initial_indent=_TAB, subsequent_indent=_TAB), ""]
        return "\n".join([f"class {known.name}(nn.Module):", *about, text])

    def _described(self, path: str) -> str:
        """Return the name of a scope, with the option of its block."""
        block = _BLOCK.fullmatch(path)
        if block is not None:
            unit, number = (int(digits) - 1 for digits in block.groups())
            units = self.architecture.units
            if unit < len(units) and number < len(units[unit]):
                return f"{path} ({units[unit][number]})"
        return path

    # Modules

    def module(self, scopes: tuple[str, ...], nodes: Sequence[NodeProto]) -> _Module:
        """Write the class of a scope's operators, unless an equal one exists."""
        names = _Names()
        init: list[str] = []
        layers: list[Layer] = []
        steps: list[_Step] = []
        for scope, group in groupby(nodes, key=lambda node: _scope(node, len(scopes))):
            inner = list(group)
            if scope is None or not any(set(node.input) & self.weights.keys() for node in inner):
                for node in inner:  # operators without layers are written inline
                    if node.op_type != "Constant":
                        steps.append(_Operator(self, node, names, init, layers).step())
                continue
            child = self.module((*scopes, scope), inner)
            attribute = names.new(scope)
            init.append(f"self.{attribute} = {child.name}()")
            layers += [
                Layer(f"{attribute}.{layer.path}", layer.operator, layer.folded, layer.arrays)
                for layer in child.layers
            ]
            steps.append(_Step(child.inputs, child.outputs, _called(f"self.{attribute}")))
        inputs, outputs = self._ends(nodes)
        text = _body(init, inputs, steps, outputs)
        name = self._named(scopes, text)
        return _Module(name, inputs, outputs, layers)

    def _named(self, scopes: tuple[str, ...], text: str) -> str:
        known = self.classes.get(text)
        if known is None:
            name = CLASS
            if scopes:
                taken = {CLASS, "Tensor", "F", *(each.name for each in self.classes.values())}
                stem = "".join(map(_capitalised, scopes))
                if keyword.iskeyword(stem) or not stem.isidentifier():
                    stem = f"Part{stem}"
                name, number = stem, 1
                while name in taken:
                    number += 1
                    name = f"{stem}_{number}"
            known = self.classes[text] = _Class(name)
        known.paths.append(".".join(scopes))
        return known.name

    def _ends(self, nodes: Sequence[NodeProto]) -> tuple[list[str], list[str]]:
        """Return the tensors that come from outside, and those that are used outside."""
        made = dict.fromkeys(name for node in nodes for name in node.output)
        inside = {id(node) for node in nodes}
        ignored = made.keys() | self.weights.keys() | self.constants
        inputs = dict.fromkeys(n for node in nodes for n in node.input if n not in ignored)
        outputs = [
            name
            for name in made
            if name not in self.constants
            and (
                name == self.output
                or any(id(reader) not in inside for reader in self.readers.get(name, ()))
            )
        ]
        return list(inputs), outputs or list(made)[-1:]


class _Operator:
    """Operator with its layers and its line of ``forward``."""

    def __init__(
        self,
        writer: _Writer,
        node: NodeProto,
        names: _Names,
        init: list[str],
        layers: list[Layer],
    ) -> None:
        self.writer, self.node = writer, node
        self._names, self._init, self._layers = names, init, layers
        self._given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self._arrays = tuple((n, writer.weights[n]) for n in node.input if n in writer.weights)

    def step(self) -> _Step:
        translate = _TRANSLATIONS.get(self.node.op_type)
        layered = self.node.op_type in _LAYERED
        constant = any(name in self.writer.constants for name in self.node.input)
        if (
            translate is None
            or bool(self._arrays) != layered
            or constant != (self.node.op_type == "Reshape")
        ):
            raise self._refused("")
        render = translate(self)
        if self._given:
            raise self._refused(f" with {', '.join(sorted(self._given))}")
        ignored = self.writer.weights.keys() | self.writer.constants
        reads = [name for name in self.node.input if name not in ignored]
        return _Step(reads, list(self.node.output), render)

    def _refused(self, how: str) -> UsageError:
        return UsageError(
            f"operator {self.node.op_type}{how} ({self.node.name}) has no torch form: export "
            f"{argument('formats')} onnx,json"
        )

    def _take(self, attribute: str, default: Any) -> Any:
        """Return an attribute and mark it as handled."""
        return self._given.pop(attribute, default)

    def _expect(self, attribute: str, value: Any, default: Any) -> None:
        """Check that an attribute has a value.

        Raises:
            UsageError: the attribute has another value.
        """
        if self._given.pop(attribute, default) != value:
            raise self._refused(f" with this {attribute}")

    def _shape(self, tensor: str) -> Shape:
        return self.writer.net.shape(tensor)

    def _layer(self, text: str, folded: bool = False) -> str:
        """Add a layer named after the operator and return its name."""
        name = self._names.new(self.node.name.rpartition(".")[2], *[NORM] * folded)
        self._init.append(f"self.{name} = {text}")
        self._layers.append(Layer(name, self.node.op_type, folded, self._arrays))
        return name

    # Translations: each returns a function from the input names to the right-hand side

    def conv(self) -> _Render:
        (out_channels, per_group, *kernel), *biases = (shape for _, shape in self._arrays)
        in_channels, groups = self._shape(self.node.input[0])[1], self._take("group", 1)
        self._expect("kernel_shape", list(kernel), list(kernel))
        self._expect("dilations", [1, 1], [1, 1])
        if len(kernel) != 2 or per_group * groups != in_channels:
            raise self._refused(f" in {counted(len(kernel), 'dimension')}")
        padding, around = self._padding()
        folded = self.node.name in self.writer.net.folded and not any(
            reader.op_type == "BatchNormalization"  # an unfolded one of a user's own space
            for reader in self.writer.readers.get(self.node.output[0], ())
        )
        arguments = [str(in_channels), str(out_channels), _pair(kernel)]
        if (stride := self._take("strides", [1, 1])) != [1, 1]:
            arguments.append(f"stride={_pair(stride)}")
        if padding != [0, 0]:
            arguments.append(f"padding={_pair(padding)}")
        if groups != 1:
            arguments.append(f"groups={groups}")
        if folded or not biases:
            arguments.append("bias=False")
        name = self._layer(f"nn.Conv2d({', '.join(arguments)})", folded)
        if not folded:
            return lambda x: f"self.{name}({around(x[0])})"
        self._init.append(f"self.{name}{NORM} = nn.BatchNorm2d({out_channels})")
        return lambda x: f"self.{name}{NORM}(self.{name}({around(x[0])}))"

    def batch_norm(self) -> _Render:
        epsilon = round(self._take("epsilon", NORM_EPSILON), 12)  # stored in single precision
        self._take("momentum", 0.9)
        eps = "" if epsilon == NORM_EPSILON else f", eps={epsilon:g}"
        name = self._layer(f"nn.BatchNorm2d({self._arrays[0][1][0]}{eps})")
        return _called(f"self.{name}")

    def linear(self) -> _Render:
        self._expect("transA", 0, 0)
        self._expect("transB", 1, 0)
        self._expect("alpha", 1.0, 1.0)
        self._expect("beta", 1.0, 1.0)
        (features, in_features), *biases = (shape for _, shape in self._arrays)
        bias = "" if biases else ", bias=False"
        name = self._layer(f"nn.Linear({in_features}, {features}{bias})")
        return _called(f"self.{name}")

    def max_pool(self) -> _Render:
        kernel, (padding, around) = self._take("kernel_shape", []), self._padding("-torch.inf")
        stride = self._take("strides", [1, 1])
        arguments = f"{_pair(kernel)}, stride={_pair(stride)}"
        if padding != [0, 0]:
            arguments += f", padding={_pair(padding)}"
        return lambda x: f"F.max_pool2d({around(x[0])}, {arguments})"

    def average_pool(self) -> _Render:
        kernel, stride = self._take("kernel_shape", []), self._take("strides", [1, 1])
        self._expect("count_include_pad", 0, 0)
        top, left, bottom, right = self._take("pads", [0] * 4)
        arguments = _pair(kernel) if stride == kernel else f"{_pair(kernel)}, {_pair(stride)}"
        if not any((top, left, bottom, right)):
            return lambda x: f"F.avg_pool2d({x[0]}, {arguments})"
        if (top, left) == (bottom, right):
            arguments = f"{_pair(kernel)}, {_pair(stride)}, {_pair([top, left])}"
            return lambda x: f"F.avg_pool2d({x[0]}, {arguments}, count_include_pad=False)"
        self.writer.pads_averages = True
        sides = f"({left}, {right}, {top}, {bottom})"
        return lambda x: f"padded_average({x[0]}, {_pair(kernel)}, {_pair(stride)}, {sides})"

    def global_average_pool(self) -> _Render:
        return lambda x: f"F.adaptive_avg_pool2d({x[0]}, 1)"

    def hard_sigmoid(self) -> _Render:
        alpha, beta = self._take("alpha", 0.2), self._take("beta", 0.5)
        if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
            return lambda x: f"F.hardsigmoid({x[0]})"
        return lambda x: f"({alpha:g} * {x[0]} + {beta:g}).clamp(0, 1)"

    def concat(self) -> _Render:
        axis = self._take("axis", 1)
        return lambda x: f"torch.cat([{', '.join(x)}], {axis})"

    def flatten(self) -> _Render:
        self._expect("axis", 1, 1)
        return lambda x: f"torch.flatten({x[0]}, 1)"

    def transpose(self) -> _Render:
        backwards = range(len(self._shape(self.node.input[0])))[::-1]
        order = ", ".join(map(str, self._take("perm", backwards)))
        return lambda x: f"{x[0]}.permute({order})"

    def reshape(self) -> _Render:
        """Translate to flatten or unflatten, so that batch and sides stay free."""
        before, after = self._shape(self.node.input[0]), self._shape(self.node.output[0])
        first = 0
        while min(len(before), len(after)) > 1 and before[-1] == after[-1]:
            before, after = before[:-1], after[:-1]
        while min(len(before), len(after)) > 1 and before[0] == after[0]:
            before, after, first = before[1:], after[1:], first + 1
        if len(before) == 1:
            return lambda x: f"{x[0]}.unflatten({first}, {after})"
        if len(after) == 1:
            return lambda x: f"{x[0]}.flatten({first}, {first + len(before) - 1})"
        raise self._refused(" over several dimensions")

    def _padding(self, value: str = "") -> tuple[list[int], Callable[[str], str]]:
        """Return torch's symmetric padding, and a function that pads if the ends differ."""
        self._expect("auto_pad", b"NOTSET", b"NOTSET")
        self._expect("ceil_mode", 0, 0)
        top, left, bottom, right = self._take("pads", [0] * 4)
        if (top, left) == (bottom, right):
            return [top, left], lambda x: x
        sides = f"({left}, {right}, {top}, {bottom})" + (f", value={value}" if value else "")
        return [0, 0], lambda x: f"F.pad({x}, {sides})"


_Render = Callable[[Sequence[str]], str]


def _called(function: str) -> _Render:
    return lambda x: f"{function}({', '.join(x)})"


def _between(sign: str) -> Callable[[_Operator], _Render]:
    return lambda operator: lambda x: f" {sign} ".join(x)


def _plain(function: str) -> Callable[[_Operator], _Render]:
    return lambda operator: _called(function)


_LAYERED = ("Conv", "BatchNormalization", "Gemm")

_TRANSLATIONS: dict[str, Callable[[_Operator], _Render]] = {
    "Conv": _Operator.conv,
    "BatchNormalization": _Operator.batch_norm,
    "Gemm": _Operator.linear,
    "Relu": _plain("F.relu"),
    "HardSwish": _plain("F.hardswish"),
    "HardSigmoid": _Operator.hard_sigmoid,
    "Add": _between("+"),
    "Sub": _between("-"),
    "Mul": _between("*"),
    "Concat": _Operator.concat,
    "MaxPool": _Operator.max_pool,
    "AveragePool": _Operator.average_pool,
    "GlobalAveragePool": _Operator.global_average_pool,
    "Flatten": _Operator.flatten,
    "Reshape": _Operator.reshape,
    "Transpose": _Operator.transpose,
}
"""Translations of all operators that :class:`esm_models.graph.Network` writes."""

_PADDED_AVERAGE = '''\
def padded_average(x: Tensor, kernel: int, stride: int, sides: tuple[int, ...]) -> Tensor:
    """Return the mean over the image's pixels only, for different padding at its ends."""
    inside = F.pad(torch.ones_like(x[:1, :1]), sides)
    return F.avg_pool2d(F.pad(x, sides), kernel, stride) / F.avg_pool2d(inside, kernel, stride)'''


class _Names:
    """Attribute names of one class."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def new(self, wanted: str, *endings: str) -> str:
        """Return a free name, free also with these endings."""
        stem = re.sub(r"\W", "_", wanted, flags=re.ASCII)
        hides = hasattr(nn.Module, stem) or stem == "training" or stem.startswith("_")
        if hides or keyword.iskeyword(stem) or not stem.isidentifier():
            stem = f"layer_{stem}"
        name, number = stem, 1
        while self._used & {name, *(name + ending for ending in endings)}:
            number += 1
            name = f"{stem}_{number}"
        self._used |= {name, *(name + ending for ending in endings)}
        return name


def _scope(node: NodeProto, depth: int) -> str | None:
    """Return the scope of an operator at a depth of scopes; None if it has no further one."""
    parts = node.name.split(".")
    return parts[depth] if len(parts) > depth + 1 else None


def _capitalised(scope: str) -> str:
    words = re.sub(r"\W", "_", scope, flags=re.ASCII).split("_")
    return "".join(word[:1].upper() + word[1:] for word in words)


def _pair(values: Sequence[int]) -> str:
    """Return a pair as torch accepts it: one number if both are equal."""
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))


def _body(
    init: Sequence[str], inputs: Sequence[str], steps: Sequence[_Step], outputs: Sequence[str]
) -> str:
    """Return the source of a class from ``__init__`` on."""
    arguments, lines = _forward(inputs, steps, outputs)
    kind = "Tensor" if len(outputs) == 1 else f"tuple[{', '.join(['Tensor'] * len(outputs))}]"
    typed = ", ".join(f"{name}: Tensor" for name in arguments)
    text = [
        "    def __init__(self) -> None:",
        "        super().__init__()",
        *(f"        {line}" for line in init),
        "",
        f"    def forward(self, {typed}) -> {kind}:",
        *(f"        {line}" for line in lines),
    ]
    return "\n".join(text)


def _forward(
    inputs: Sequence[str], steps: Sequence[_Step], outputs: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the arguments and lines of ``forward``; variables are reused after their last use."""
    last = {name: number for number, step in enumerate(steps) for name in step.reads}
    last |= dict.fromkeys(outputs, len(steps))
    held: dict[str, str] = {}

    def free() -> str:
        return next(name for name in _variables() if name not in held.values())

    for name in inputs:
        held[name] = free()
    arguments, lines = list(held.values()), []
    for number, step in enumerate(steps):
        given = [held[name] for name in step.reads]
        for name in set(step.reads):
            if last[name] == number:
                del held[name]
        for name in step.writes:
            held[name] = free()
        left, right = ", ".join(held[name] for name in step.writes), step.render(given)
        lines.append(f"{left} = {right}")
        for name in step.writes:
            if name not in last:  # the tensor is not read
                del held[name]
    if steps and list(steps[-1].writes) == list(outputs):
        lines[-1] = f"return {right}"
    else:
        lines.append(f"return {', '.join(held[name] for name in outputs)}")
    return arguments, lines


def _variables() -> Iterable[str]:
    yield from "xyzuvw"
    number = 1
    while True:
        yield f"x{number}"
        number += 1


def _said(text: str) -> str:
    """Return the text of a space's author, safe for a docstring."""
    return "".join(c for c in text if c.isprintable()).replace("\\", "/").replace('"', "'")
