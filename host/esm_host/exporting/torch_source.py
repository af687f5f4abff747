"""Python source of a subnet's torch module: one class per scope of its graph, to read and edit.

The source comes from the graph, so every space has one, even a user's own. If a convolution's
weight and bias include a batch normalisation (:attr:`esm_models.graph.Network.folded`), the
module has both layers. Scopes with equal layers share a class.
"""

from __future__ import annotations

import keyword
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_models.architecture import Architecture
from esm_models.graph import FLOAT32, NEWEST_OPSET, Axis, Network
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
        operator: Operator of the graph, such as ``Conv``; ``Parameter`` for a free parameter.
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
    # Operators of old opsets are many, and a module depends on none.
    net, output = space.trace(architecture, opset=NEWEST_OPSET)
    writer = _Writer(net, output, architecture)
    whole = writer.module((), writer.nodes)
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
        self.helpers: set[str] = set()  # functions that the text needs
        self.weights = {tensor.name: tuple(tensor.dims) for tensor in net.initializers}
        self.outputs = [output, *net.outputs]
        self.shapes: dict[str, Shape] = {}
        self.fixed = {node.output[0]: node for node in net.nodes if node.op_type == "Constant"}
        self.nodes = self._nodes()
        self.constants = {
            name for node in self.nodes for name in node.input if name in self.arguments(node)
        }
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def arguments(self, node: NodeProto) -> Sequence[str]:
        """Return the constants that are arguments of a function, not tensors."""
        if node.op_type not in _ARGUED:
            return [""]
        given = node.input[node.op_type != "ConstantOfShape" :]
        return ["", *(name for name in given if name in self.fixed)]

    def _nodes(self) -> list[NodeProto]:
        """Return the operators, with one before the first reader of each free parameter.

        The addition of a linear layer's bias belongs to the layer.
        """
        nodes: list[NodeProto] = []
        values: dict[str, str] = {}
        for given in self.net.nodes:
            node = NodeProto()
            node.CopyFrom(given)
            if nodes and list(node.input) == [nodes[-1].output[0], f"{nodes[-1].name}.bias"]:
                nodes[-1].input.append(node.input[1])
                nodes[-1].output[0] = node.output[0]
                continue
            for place, name in enumerate(node.input):
                free = node.op_type not in _LAYERED or not name.startswith(f"{node.name}.")
                if name in self.weights and free and node.op_type not in _ALWAYS_LAYERED:
                    if name not in values:
                        values[name] = f"{name}.value"
                        self.shapes[values[name]] = self.weights[name]
                        nodes.append(helper.make_node("Parameter", [name], [values[name]], name))
                    node.input[place] = values[name]
            nodes.append(node)
        return nodes

    def shape(self, tensor: str) -> Shape:
        return self.shapes[tensor] if tensor in self.shapes else self.net.shape(tensor)

    # The text

    def text(self) -> str:
        a, net = self.architecture, self.net
        shape = " x ".join(map(str, net.shape(net.input)[1:]))
        results = " x ".join(map(str, net.shape(self.outputs[0])[1:]))
        takes = f"images of {shape}"
        if net.inputs != [net.input]:
            takes = ", ".join(f"{name} ({_shaped(net, name)})" for name in net.inputs)
        gives = ", ".join([f"{results} numbers", *(_said(name) for name in net.outputs.values())])
        units = " | ".join(" ".join(unit) or "-" for unit in a.units)
        said = (
            f'"""{_said(a.space)}, {counted(a.depth, "block")}: {_said(takes)} in, {gives} out.',
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
        body = [*sorted(self.helpers), *body]
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
                    if node.op_type != "Constant" or node.output[0] not in self.constants:
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
        if len(nodes) == len(self.nodes):
            return list(self.net.inputs), self.outputs
        outputs = [
            name
            for name in made
            if name not in self.constants
            and (
                name in self.outputs
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
        if translate is None or (self.node.op_type in _ALWAYS_LAYERED and not self._arrays):
            raise self._refused("")
        render = translate(self)
        if self._given:
            raise self._refused(f" with {', '.join(sorted(self._given))}")
        ignored = {*self.writer.weights, *self.writer.arguments(self.node)}
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
        return self.writer.shape(tensor)

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

    def matmul(self) -> _Render:
        if not self._arrays:
            return lambda x: " @ ".join(x)
        (inner, features), *biases = (shape for _, shape in self._arrays)
        bias = "" if biases else ", bias=False"
        return _called(f"self.{self._layer(f'nn.Linear({inner}, {features}{bias})')}")

    def gather(self) -> _Render:
        axis = self._take("axis", 0)
        if self._arrays:
            count, features = self._arrays[0][1]
            return _called(f"self.{self._layer(f'nn.Embedding({count}, {features})')}")
        before = ":, " * axis
        return lambda x: f"{x[0]}[{before}{x[1]}]"

    def parameter(self) -> _Render:
        shape = self._arrays[0][1]
        name = self._layer(f"nn.Parameter(0.02 * torch.randn({', '.join(map(str, shape))}))")
        return lambda x: f"self.{name}"

    def constant(self) -> _Render:
        """Translate to a buffer, which moves with the module to its device."""
        array = numpy_helper.to_array(self._take("value", None))
        listed = np.array2string(array, 10**9, separator=", ", threshold=sys.maxsize)
        text = f"torch.tensor({' '.join(listed.split())})"
        rising = np.arange(array.shape[-1] if array.ndim else 0)
        if array.dtype == np.int64 and array.ndim and (array == rising).all():
            text = f"torch.arange({len(rising)})"
            text += f".expand{array.shape}" * (array.ndim > 1)
        return self._buffer(text)

    def _buffer(self, text: str) -> _Render:
        name = self._names.new(self.node.name.rpartition(".")[2])
        self._init.append(f'self.register_buffer("{name}", {text}, persistent=False)')
        return lambda x: f"self.{name}"

    def layer_norm(self) -> _Render:
        self._expect("axis", -1, -1)
        epsilon = round(self._take("epsilon", NORM_EPSILON), 12)  # stored in single precision
        kind = "LayerNorm" if self.node.op_type == "LayerNormalization" else "RMSNorm"
        text = f"nn.{kind}({self._arrays[0][1][0]}, eps={epsilon:g})"
        return _called(f"self.{self._layer(text)}")

    def softmax(self) -> _Render:
        axis = self._take("axis", -1)
        return lambda x: f"{x[0]}.softmax({axis})"

    def split(self) -> _Render:
        axis = self._take("axis", 0)
        sizes = [self._shape(name)[axis] for name in self.node.output]
        return lambda x: f"{x[0]}.split({sizes}, {axis})"

    def slice(self) -> _Render:
        start, end, axis = (int(self._argument(place)[0]) for place in (1, 2, 3))
        ends = "" if end == 2**63 - 1 else str(end)
        return lambda x: f"{x[0]}[{':, ' * axis}{start}:{ends}]"

    def expand(self) -> _Render:
        sizes = ", ".join("-1" if size == 1 else str(size) for size in self._argument(1).tolist())
        before, after = (self._shape(ends[0]) for ends in (self.node.input, self.node.output))
        joined = {reader.op_type for reader in self._readers()} == {"Concat"}
        if joined and before[1:] == after[1:] and self._repeats_batch(self.node.output[0]):
            return lambda x: x[0]  # the concatenation repeats it
        return lambda x: f"{x[0]}.expand({sizes})"

    def reduce_mean(self) -> _Render:
        axes, kept = tuple(self._take("axes", ())), self._take("keepdims", 1)
        keepdim = ", keepdim=True" * bool(kept)
        return lambda x: f"{x[0]}.mean({axes}{keepdim})"

    def resize(self) -> _Render:
        mode = self._take("mode", b"nearest").decode()
        how = self._take("coordinate_transformation_mode", b"half_pixel").decode()
        rounding = self._take("nearest_mode", b"round_prefer_floor").decode()
        if (mode, how, mode == "linear" or rounding) not in (
            ("nearest", "asymmetric", "floor"),
            ("linear", "half_pixel", True),
        ):
            raise self._refused(f" of mode {mode}")
        *_, factor = self._argument(2).tolist()
        text = f"scale_factor={factor:g}" + ', mode="bilinear"' * (mode == "linear")
        return lambda x: f"F.interpolate({x[0]}, {text})"

    def attention(self) -> _Render:
        self.writer.helpers.add(_ATTENTION)
        heads, kv_heads = self._take("q_num_heads", 0), self._take("kv_num_heads", 0)
        causal = ", causal=True" * self._take("is_causal", 0)
        if not heads or not kv_heads or len(self.node.input) > 4:
            raise self._refused(" in this form")
        return lambda x: f"attention({', '.join(x[:3])}, {heads}, {kv_heads}{_mask(x)}{causal})"

    def rotary(self) -> _Render:
        self.writer.helpers.add(_ROTARY)
        heads = self._take("num_heads", 0)
        if not heads or len(self.node.input) != 3:
            raise self._refused(" in this form")
        return lambda x: f"rotary({', '.join(x)}, {heads})"

    def constant_of_shape(self) -> _Render:
        value = float(numpy_helper.to_array(self._take("value", None))[0])
        if self.node.input[0] in self.writer.constants:
            return self._buffer(f"torch.full({tuple(self._argument(0).tolist())}, {value!r})")
        return lambda x: f"torch.full({x[0]}.tolist(), {value!r}, device={x[0]}.device)"

    def trilu(self) -> _Render:
        self._expect("upper", 1, 1)
        if self.node.input[1] in self.writer.constants:
            first = int(self._argument(1))
            return lambda x: f"{x[0]}.triu({first})"
        return lambda x: f"{x[0]}.triu(int({x[1]}))"

    def size(self) -> _Render:
        ends = f"{self._take('start', 0)}:{self._take('end', '')}"
        return lambda x: f"torch.tensor({x[0]}.shape[{ends}], device={x[0]}.device)"

    def clip(self) -> _Render:
        low, high = (float(self._argument(place)) for place in (1, 2))
        return lambda x: f"{x[0]}.clamp({low:g}, {high:g})"

    def cast(self) -> _Render:
        self._expect("to", TensorProto.FLOAT, TensorProto.FLOAT)
        return lambda x: f"{x[0]}.float()"

    def _argument(self, place: int) -> NDArray[Any]:
        """Return the value of a constant that is an argument."""
        name = self.node.input[place]
        if name not in self.writer.constants:
            raise self._refused(" with arguments that are no constants")
        node = self.writer.fixed[name]
        return np.asarray(numpy_helper.to_array(node.attribute[0].t))

    def _readers(self) -> Sequence[NodeProto]:
        return self.writer.readers.get(self.node.output[0], ())

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
        self.writer.helpers.add(_PADDED_AVERAGE)
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
        ones = [self._repeats_batch(name) for name in self.node.input]
        if not any(ones) or all(ones) or axis == 0:
            return lambda x: f"torch.cat([{', '.join(x)}], {axis})"
        rest = ", -1" * (len(self._shape(self.node.output[0])) - 1)

        def render(x: Sequence[str]) -> str:
            batch = next(name for name, one in zip(x, ones, strict=True) if not one)
            each = [
                f"{name}.expand(len({batch}){rest})" if one else name
                for name, one in zip(x, ones, strict=True)
            ]
            return f"torch.cat([{', '.join(each)}], {axis})"

        return render

    def _repeats_batch(self, tensor: str) -> bool:
        """Return whether a tensor is a parameter for all of the batch, such as a class token."""
        made = self.writer.makers.get(tensor)
        while made is not None and made.op_type == "Expand":
            tensor = made.input[0]
            made = self.writer.makers.get(tensor)
        return made is not None and made.op_type == "Parameter" and self._shape(tensor)[:1] == (1,)

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
        # The batch comes first: of several dimensions of 1, the first is the batch.
        while min(len(before), len(after)) > 1 and _alike(before[0], after[0]):
            before, after, first = before[1:], after[1:], first + 1
        while min(len(before), len(after)) > 1 and _alike(before[-1], after[-1]):
            before, after = before[:-1], after[:-1]
        if len(before) == 1:
            return lambda x: f"{x[0]}.unflatten({first}, {tuple(map(_free, after))})"
        if len(after) == 1:
            return lambda x: f"{x[0]}.flatten({first}, {first + len(before) - 1})"
        whole = [_free(size) for size in self._shape(self.node.output[0])]
        kept = [f"{{0}}.shape[{place}]" for place in range(first)]
        sizes = ", ".join([*kept, *map(str, whole[first:])])
        return lambda x: f"{x[0]}.reshape({sizes.format(x[0])})"

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


def _mask(x: Sequence[str]) -> str:
    return f", {x[3]}" if len(x) > 3 else ""


def _shaped(net: Network, name: str) -> str:
    return f"{' x '.join(str(int(size)) for size in net.shape(name))} {net.type(name)}"


_ALWAYS_LAYERED = (
    *("Conv", "BatchNormalization", "Gemm"),
    *("LayerNormalization", "RMSNormalization"),
)
_LAYERED = (*_ALWAYS_LAYERED, "MatMul", "Gather")
"""Operators that a layer with weights of its own can be."""
_ARGUED = (
    *("Clip", "Reshape", "Split", "Slice", "Expand", "Resize", "Trilu"),
    "ConstantOfShape",
)

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
    "Attention": _Operator.attention,
    "Cast": _Operator.cast,
    "Clip": _Operator.clip,
    "Constant": _Operator.constant,
    "ConstantOfShape": _Operator.constant_of_shape,
    "Cos": _plain("torch.cos"),
    "Expand": _Operator.expand,
    "Gather": _Operator.gather,
    "Gelu": _plain("F.gelu"),
    "Identity": lambda operator: lambda x: x[0],
    "LayerNormalization": _Operator.layer_norm,
    "MatMul": _Operator.matmul,
    "Parameter": _Operator.parameter,
    "RMSNormalization": _Operator.layer_norm,
    "ReduceMean": _Operator.reduce_mean,
    "Resize": _Operator.resize,
    "RotaryEmbedding": _Operator.rotary,
    "Shape": _Operator.size,
    "Sigmoid": _plain("torch.sigmoid"),
    "Sin": _plain("torch.sin"),
    "Slice": _Operator.slice,
    "Softmax": _Operator.softmax,
    "Split": _Operator.split,
    "Squeeze": lambda operator: lambda x: f"{x[0]}.squeeze()",
    "Tanh": _plain("torch.tanh"),
    "Trilu": _Operator.trilu,
    "Where": _plain("torch.where"),
}
"""Translations of all operators that :class:`esm_models.graph.Network` writes."""

_PADDED_AVERAGE = '''\
def padded_average(x: Tensor, kernel: int, stride: int, sides: tuple[int, ...]) -> Tensor:
    """Return the mean over the image's pixels only, for different padding at its ends."""
    inside = F.pad(torch.ones_like(x[:1, :1]), sides)
    return F.avg_pool2d(F.pad(x, sides), kernel, stride) / F.avg_pool2d(inside, kernel, stride)'''


_ATTENTION = '''\
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    kv_heads: int,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return the attention of (batch, sequence, heads * size) tensors."""
    q = q.unflatten(2, (heads, -1)).transpose(1, 2)
    k = k.unflatten(2, (kv_heads, -1)).transpose(1, 2).repeat_interleave(heads // kv_heads, 1)
    v = v.unflatten(2, (kv_heads, -1)).transpose(1, 2).repeat_interleave(heads // kv_heads, 1)
    if causal and mask is not None:
        lower = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = mask & lower if mask.dtype == torch.bool else mask.masked_fill(~lower, -1e30)
        causal = False
    x = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    return x.transpose(1, 2).flatten(2)'''

_ROTARY = '''\
def rotary(x: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Turn queries or keys by their positions."""
    a, b = x.unflatten(2, (heads, 2, -1)).unbind(3)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], 3).flatten(2)'''


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


def _alike(a: int, b: int) -> bool:
    """Return whether two dimensions have the same size and, if they are named, the same name."""
    return a == b and getattr(a, "name", None) == getattr(b, "name", None)


def _free(size: int) -> int:
    """Return a size for a new shape: -1, which stands for the rest, if it is free."""
    return -1 if isinstance(size, Axis) else int(size)


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
        *(_wrapped(line, 2 * _TAB) for line in init),
        "",
        _wrapped(f"def forward(self, {typed}) -> {kind}:", _TAB),
        *(_wrapped(line, 2 * _TAB) for line in lines),
    ]
    return "\n".join(text)


def _wrapped(line: str, indent: str) -> str:
    """Return a line of source with its indentation, in several lines if it is long."""
    if len(indent + line) <= _WIDTH:
        return indent + line
    left, equals, right = line.partition(" = ")
    if line.startswith("return ") and not line.endswith(")"):
        line = f"return ({line.removeprefix('return ')})"
    elif equals and ", " in left and "(" not in left:
        line = f"({left}) = {right}"
    # Lines may end inside of brackets only.
    depth, kept = 0, ""
    for character in line:
        depth += (character in "([{") - (character in ")]}")
        kept += "\0" if character == " " and not depth else character
    return textwrap.fill(
        kept,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent + _TAB,
        break_long_words=False,
        break_on_hyphens=False,
    ).replace("\0", " ")


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
