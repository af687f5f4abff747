"""Conversion of float32 graphs to int8 in QDQ form.

Pairs of QuantizeLinear and DequantizeLinear around the operators convert activations to uint8 and
weights to int8, as in the models of ONNX Runtime's static quantisation. When it loads the graph,
its optimiser fuses them into QLinearConv, QGemm, QLinearAdd and so on. It also converts the
float32 weights to int8 once. QuantizeLinear does not support int32, so a division and a cast
convert biases to int32. HardSwish, HardSigmoid and BatchNormalization have no int8 kernel and
stay in float32 between two conversions, as in a deployed model.

There is no calibration, because there are no trained weights and no images. The ranges follow
from standard normal inputs and from the distributions of :mod:`esm_protos.weights`. Mean and
variance of each activation are propagated through the graph, as for independent normal numbers
(He et al. 2015, section 2.2). So integers neither saturate nor vanish at any depth.
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

# Wide enough for a channel with large weights and for sums that are not exactly normal.
_DEVIATIONS = 6
"""Range of an activation, in root mean squares."""
_WEIGHT_DEVIATIONS = 4
_LEAST_RMS = 1e-2
"""Root mean square of an activation that is zero everywhere."""

# Moments of biases and normalisation parameters, which are uniform in [0.5, 1.5).
_BIAS_MEAN, _BIAS_VARIANCE = 1.0, 1 / 12
_SCALE_SQUARED, _INVERSE_VARIANCE = 13 / 12, math.log(3)

_COPIES = ("MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose")
"""Operators whose results are as large as their inputs."""


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
    """Activation as a sum of independent terms, with the number of times of each term."""

    terms: Counter[str]
    unsigned: bool = False
    """Whether it is never negative."""
    bound: float | None = None
    """Largest value; None if unknown."""


@dataclass
class _Quantizer:
    shapes: Mapping[str, Shape]
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    signals: dict[str, _Signal] = field(default_factory=dict)
    moments: dict[str, _Moments] = field(default_factory=dict)

    def source(self, name: str, mean: float, variance: float) -> _Signal:
        """Add a signal that is independent of the previous ones."""
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
        """Convert a float tensor to uint8 and back, as the tensor ``result``."""
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
        stem = f"{owner}/{tensor.rpartition('.')[2]}"
        integers = self.add("QuantizeLinear", f"{stem}_q", [tensor, *by], f"{tensor}.integers")
        return self.add("DequantizeLinear", f"{stem}_dq", [integers, *by], result)

    def bias(self, tensor: str, owner: str, step: float) -> str:
        """Convert a bias to int32 in units of ``step``, the unit of the sums it is added to."""
        scale = self.scalar(f"{tensor}.scale", TensorProto.FLOAT, step)
        zero = self.scalar("bias_zero", TensorProto.INT32, 0)
        steps = self.add("Div", f"{owner}/bias_div", [tensor, scale], f"{tensor}.steps")
        integers = self.add(
            "Cast", f"{owner}/bias_cast", [steps], f"{tensor}.integers", to=TensorProto.INT32
        )
        inputs = [integers, scale, zero]
        return self.add("DequantizeLinear", f"{owner}/bias_dq", inputs, f"{tensor}.quantized")

    def signal(self, node: NodeProto, inputs: Sequence[_Signal]) -> _Signal:
        """Return the signal at an operator's output.

        Raises:
            InvalidSpaceError: the operator has no int8 form.
        """
        output, kind = node.output[0], node.op_type
        first = inputs[0]
        moments = self.total(first)
        if kind in ("Conv", "Gemm"):
            share = self._filled(node) if kind == "Conv" else 1.0
            variance = 2 * share * moments.square + _BIAS_VARIANCE
            return self.source(output, _BIAS_MEAN, variance)
        if kind in ("Relu", "HardSwish"):  # equal for large numbers
            rectified = _rectified(moments)
            made = self.source(output, rectified.mean, rectified.variance)
            made.unsigned = kind == "Relu"
            return made
        if kind == "HardSigmoid":
            made = self.source(output, 0.5, 0.25)  # 0 or 1 for large numbers
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
        if kind == "Sub":  # of a tensor from itself
            return self.source(output, 0.0, 0.0)
        if kind == "Concat":
            widest = max(inputs, key=lambda each: self.total(each).square)
            return _Signal(widest.terms, all(i.unsigned for i in inputs))
        if kind in _COPIES:
            return _Signal(first.terms, first.unsigned, first.bound)
        raise InvalidSpaceError(
            f"int8: operator {kind} ({node.name}) has no int8 form: use float32", "dtype"
        )

    def _filled(self, node: NodeProto) -> float:
        """Return the share of a convolution's products whose pixel is not padding."""
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


def quantize(graph: GraphProto, shapes: Mapping[str, Shape]) -> GraphProto:
    """Return a graph in QDQ form; its inputs, outputs and initializers stay float32.

    Args:
        graph: Float32 graph of :class:`esm_models.graph.Network`.
        shapes: Shapes of its tensors, by name; initializers may be left out.

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
    integers: set[str] = set()  # shapes and other constants that enter no arithmetic
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
        for name in waiting:  # an input becomes uint8 at the operator that reads it first
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
        if output in rectified:  # fused with the following Relu
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
    """Return the moments of max(x, 0) for a normal x."""
    deviation = math.sqrt(moments.variance)
    if not deviation:
        return _Moments(max(moments.mean, 0.0), 0.0)
    z = moments.mean / deviation
    above = (1 + math.erf(z / math.sqrt(2))) / 2
    density = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    mean = moments.mean * above + deviation * density
    square = moments.square * above + moments.mean * deviation * density
    return _Moments(mean, square - mean**2)
