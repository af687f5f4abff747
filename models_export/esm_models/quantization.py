"""Graphs as int8 networks in QDQ form, from their float32 form.

Every activation becomes uint8 and every weight int8, by pairs of QuantizeLinear and
DequantizeLinear around the operators, as ONNX Runtime's own static quantisation writes models: its
optimiser makes of them QLinearConv, QGemm, QLinearAdd and so on, and of weights that are declared
as float32 their int8 form, once, when it loads the graph. Biases become int32 by a division and a
cast, for QuantizeLinear has no int32. What has no int8 kernel (HardSwish, HardSigmoid,
BatchNormalization) stays in float32 between two conversions, as in a deployed model.

Nothing is calibrated, for there are no weights and no images. The ranges follow from what is known
of them: standard normal inputs, and weights and parameters as :mod:`esm_protos.weights` draws them.
Of every activation mean and variance are followed through the graph, as of independent normal
numbers (He et al. 2015, section 2.2), so that integers neither saturate nor vanish at any depth.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from esm_models.errors import InvalidSpaceError

Shape = tuple[int, ...]

# Wide enough for a channel whose weights came out large, and for sums that are not quite normal.
_DEVIATIONS = 6
"""Root mean squares of an activation that its range reaches."""
_WEIGHT_DEVIATIONS = 4
_LEAST_RMS = 1e-2
"""Of an activation that is zero everywhere."""

# Moments of what is drawn uniformly from [0.5, 1.5): biases, and parameters of normalisations.
_BIAS_MEAN, _BIAS_VARIANCE = 1.0, 1 / 12
_SCALE_SQUARED, _INVERSE_VARIANCE = 13 / 12, math.log(3)

_COPIES = ("MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose")
"""Their numbers are as large as those they get."""


@dataclass(frozen=True)
class _Moments:
    mean: float
    variance: float

    @property
    def square(self) -> float:
        """Mean of the square."""
        return self.mean**2 + self.variance


@dataclass
class _Signal:
    """An activation as a sum of independent ones, so that what is added to itself is known."""

    terms: Counter[str]
    unsigned: bool = False
    """Never negative."""
    bound: float | None = None
    """Its largest number, where that is known."""


@dataclass
class _Quantizer:
    shapes: Mapping[str, Shape]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    signals: dict[str, _Signal] = field(default_factory=dict)
    moments: dict[str, _Moments] = field(default_factory=dict)

    def source(self, name: str, mean: float, variance: float) -> _Signal:
        """A signal that is independent of those before."""
        self.moments[name] = _Moments(mean, variance)
        return _Signal(Counter({name: 1}))

    def total(self, signal: _Signal) -> _Moments:
        return _Moments(
            sum(n * self.moments[term].mean for term, n in signal.terms.items()),
            sum(n**2 * self.moments[term].variance for term, n in signal.terms.items()),
        )

    def scalar(self, name: str, kind: int, value: float) -> str:
        self.constants.setdefault(name, helper.make_tensor(name, kind, [], [value]))
        return name

    def add(self, kind: str, name: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def activation(self, tensor: str, owner: str, result: str) -> None:
        """Makes ``result`` of a float tensor: through uint8 and back."""
        signal = self.signals[tensor]
        size = math.sqrt(self.total(signal).square)
        reach = signal.bound or _DEVIATIONS * max(size, _LEAST_RMS)
        self.scales[result] = reach / 255 if signal.unsigned else 2 * reach / 255
        by = [
            self.scalar(f"{tensor}.scale", TensorProto.FLOAT, self.scales[result]),
            self.scalar("zero", TensorProto.UINT8, 0)
            if signal.unsigned
            else self.scalar("middle", TensorProto.UINT8, 128),
        ]
        self.pair(tensor, by, owner, result)

    def weight(self, tensor: str, owner: str) -> str:
        deviation = math.sqrt(2 / math.prod(self.shapes[tensor][1:]))
        self.scales[tensor] = _WEIGHT_DEVIATIONS * deviation / 127
        by = [
            self.scalar(f"{tensor}.scale", TensorProto.FLOAT, self.scales[tensor]),
            self.scalar("weight_zero", TensorProto.INT8, 0),
        ]
        return self.pair(tensor, by, owner, f"{tensor}.quantized")

    def pair(self, tensor: str, by: list[str], owner: str, result: str) -> str:
        of = f"{owner}/{tensor.rpartition('.')[2]}"
        integers = self.add("QuantizeLinear", f"{of}_q", [tensor, *by], f"{tensor}.integers")
        return self.add("DequantizeLinear", f"{of}_dq", [integers, *by], result)

    def bias(self, tensor: str, owner: str, step: float) -> str:
        """In units of the sums that it is added to: ``step``."""
        scale = self.scalar(f"{tensor}.scale", TensorProto.FLOAT, step)
        zero = self.scalar("bias_zero", TensorProto.INT32, 0)
        steps = self.add("Div", f"{owner}/bias_div", [tensor, scale], f"{tensor}.steps")
        integers = self.add(
            "Cast", f"{owner}/bias_cast", [steps], f"{tensor}.integers", to=TensorProto.INT32
        )
        inputs = [integers, scale, zero]
        return self.add("DequantizeLinear", f"{owner}/bias_dq", inputs, f"{tensor}.quantized")

    # What an operator makes of what it gets

    def signal(self, node: NodeProto, inputs: Sequence[_Signal]) -> _Signal:
        output, kind = node.output[0], node.op_type
        first = inputs[0]
        moments = self.total(first)
        if kind in ("Conv", "Gemm"):
            share = self._filled(node) if kind == "Conv" else 1.0
            variance = 2 * share * moments.square + _BIAS_VARIANCE
            return self.source(output, _BIAS_MEAN, variance)
        if kind in ("Relu", "HardSwish"):  # for large numbers the same
            rectified = _rectified(moments)
            made = self.source(output, rectified.mean, rectified.variance)
            made.unsigned = kind == "Relu"
            return made
        if kind == "HardSigmoid":
            made = self.source(output, 0.5, 0.25)  # of large numbers 0 or 1
            made.unsigned, made.bound = True, 1.0
            return made
        if kind == "BatchNormalization":
            square = _SCALE_SQUARED * _INVERSE_VARIANCE
            return self.source(output, moments.mean, square * moments.variance + 2 / 12 * square)
        if kind == "Add":
            return _Signal(first.terms + inputs[1].terms, all(i.unsigned for i in inputs))
        if kind == "Mul":
            other = self.total(inputs[1])
            mean = moments.mean * other.mean
            made = self.source(output, mean, moments.square * other.square - mean**2)
            made.unsigned = all(i.unsigned for i in inputs)
            return made
        if kind == "Sub":  # of itself
            return self.source(output, 0.0, 0.0)
        if kind == "Concat":
            widest = max(inputs, key=lambda each: self.total(each).square)
            return _Signal(widest.terms, all(i.unsigned for i in inputs))
        if kind in _COPIES:
            return _Signal(first.terms, first.unsigned, first.bound)
        raise InvalidSpaceError(
            f"int8: operator {kind} ({node.name}) has no int8 form: take float32", "dtype"
        )

    def _filled(self, node: NodeProto) -> float:
        """Share of a convolution's products whose pixel is in the image and not in the padding."""
        given = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
        }
        sides = self.shapes[node.input[0]][2:]
        results = self.shapes[node.output[0]][2:]
        share = 1.0
        for axis, (side, result) in enumerate(zip(sides, results, strict=True)):
            kernel = given["kernel_shape"][axis]
            starts = given["strides"][axis] * np.arange(result) - given["pads"][axis]
            pixels = starts[:, None] + np.arange(kernel)
            share *= float(np.mean((pixels >= 0) & (pixels < side)))
        return share


def quantized(graph: GraphProto, shapes: Mapping[str, Shape]) -> GraphProto:
    """The graph in QDQ form; inputs and outputs stay float32, initializers as they are declared.

    Args:
        graph: of float32 operators as :class:`esm_models.graph.Network` writes them.
        shapes: of its tensors, by name; those of initializers may be left out.

    Raises:
        InvalidSpaceError: an operator has no int8 form.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    work = _Quantizer({**shapes, **weights})
    outputs = {value.name for value in graph.output}
    readers = Counter(name for node in graph.node for name in set(node.input))
    rectified = {
        node.input[0]
        for node in graph.node
        if node.op_type == "Relu" and readers[node.input[0]] == 1 and node.input[0] not in outputs
    }
    integers: set[str] = set()  # shapes, and what else no arithmetic is done with
    renamed: dict[str, str] = {}
    for value in graph.input:
        work.signals[value.name] = work.source(value.name, 0.0, 1.0)
    waiting = [value.name for value in graph.input]
    for node in graph.node:
        if node.op_type == "Constant":
            work.nodes.append(node)
            integers.update(node.output)
            continue
        reads = [name for name in node.input if name not in weights and name not in integers]
        for name in waiting:  # inputs become integers in the part that reads them first
            if name in reads:
                renamed[name] = f"{name}.quantized"
                work.activation(name, node.name, renamed[name])
        waiting = [name for name in waiting if name not in reads]
        output = node.output[0]
        made = NodeProto()
        made.CopyFrom(node)
        made.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type in ("Conv", "Gemm"):
            made.input[1] = work.weight(node.input[1], node.name)
            step = work.scales[made.input[0]] * work.scales[node.input[1]]
            made.input[2] = work.bias(node.input[2], node.name, step)
        work.signals[output] = work.signal(node, [work.signals[name] for name in reads])
        work.nodes.append(made)
        if output in rectified:  # one operator with what follows
            continue
        if output in outputs:
            made.output[0] = f"{output}.float"
            work.signals[made.output[0]] = work.signals[output]
            work.activation(made.output[0], node.name, output)
        else:
            renamed[output] = f"{output}.quantized"
            work.activation(output, node.name, renamed[output])
        renamed.setdefault(output, output)
    return helper.make_graph(
        work.nodes,
        graph.name,
        graph.input,
        graph.output,
        [*graph.initializer, *work.constants.values()],
    )


def _rectified(moments: _Moments) -> _Moments:
    """Of max(x, 0) of a normal x."""
    deviation = math.sqrt(moments.variance)
    if not deviation:
        return _Moments(max(moments.mean, 0.0), 0.0)
    z = moments.mean / deviation
    above = (1 + math.erf(z / math.sqrt(2))) / 2
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    mean = moments.mean * above + deviation * density
    square = moments.square * above + moments.mean * deviation * density
    return _Moments(mean, square - mean**2)
