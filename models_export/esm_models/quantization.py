"""Conversion of float32 graphs to int8 in QDQ form.

Pairs of QuantizeLinear and DequantizeLinear around the operators convert activations to uint8 and
weights to int8, as in the models of ONNX Runtime's static quantisation. When it loads the graph,
its optimiser fuses them into QLinearConv, QGemm, QLinearAdd and so on. It also converts the
float32 weights to int8 once. QuantizeLinear does not support int32, so a division and a cast
convert biases to int32. Operators without an int8 kernel stay in float32 between two conversions,
as in a deployed model: HardSwish, HardSigmoid, Gelu, Tanh, normalisations, attention. What follows
from constants and integer inputs alone stays as it is, such as a mask or rotary tables. A result
that such numbers enter becomes uint8 at the matrix product that reads it.

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
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

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

_COPIES = (
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose"),
    *("Expand", "Gather", "Identity", "Resize", "Slice", "Split", "Where"),
)
"""Operators whose results are as large as their inputs."""

_ELEMENTWISE = ("Add", "Mul", "Div", "Where")
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_WITH_WEIGHTS = (
    *("Conv", "Gemm"),
    *("BatchNormalization", "LayerNormalization", "RMSNormalization"),
)
"""Operators whose initializers are no activations."""


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
    known: dict[str, _Moments] = field(default_factory=dict)
    """Moments of the constants."""

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

    def activation(self, tensor: str, stem: str, result: str) -> None:
        """Convert a float tensor to uint8 and back, as the tensor ``result``.

        Names of the two operators begin with ``stem``.
        """
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
        self.pair(tensor, by, stem, result)

    def weight(self, tensor: str, owner: str) -> str:
        deviation = math.sqrt(2 / math.prod(self.shapes[tensor][1:]))
        self.scales[tensor] = _WEIGHT_DEVIATIONS * deviation / 127
        by = [
            self.scalar(f"{tensor}.scale", TensorProto.FLOAT, self.scales[tensor]),
            self.scalar("weight_zero", TensorProto.INT8, 0),
        ]
        stem = f"{owner}/{tensor.rpartition('.')[2]}"
        return self.pair(tensor, by, stem, f"{tensor}.quantized")

    def pair(self, tensor: str, by: list[str], stem: str, result: str) -> str:
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
            variance = 2 * share * moments.square
            if len(node.input) < 3:
                return self.source(output, 0.0, variance)
            return self.source(output, _BIAS_MEAN, variance + _BIAS_VARIANCE)
        if kind == "MatMul":
            count, results = self.shapes[node.input[1]][-2:]
            if len(inputs) == 1:  # by weights
                return self.source(output, 0.0, 2 * count / results * moments.square)
            other = self.total(inputs[1])
            mean = moments.mean * other.mean
            return self.source(
                output, count * mean, count * (moments.square * other.square - mean**2)
            )
        if kind in ("Relu", "HardSwish", "Gelu"):  # equal for large numbers
            rectified = _rectified(moments)
            made = self.source(output, rectified.mean, rectified.variance)
            made.unsigned = kind == "Relu"
            return made
        bounds = [self.known[name].mean for name in node.input[1:] if name in self.known]
        if kind == "Clip" and len(bounds) == 2:
            clipped = _clipped(moments, *bounds)
            made = self.source(output, clipped.mean, clipped.variance)
            made.unsigned, made.bound = bounds[0] >= 0, max(map(abs, bounds))
            return made
        if kind in ("HardSigmoid", "Sigmoid"):
            made = self.source(output, 0.5, 0.25)  # 0 or 1 for large numbers
            made.unsigned, made.bound = True, 1.0
            return made
        if kind == "BatchNormalization":
            square = _SCALE_SQUARED * _INVERSE_VARIANCE
            return self.source(output, moments.mean, square * moments.variance + 2 / 12 * square)
        if kind in ("Tanh", "Erf"):
            made = self.source(output, 0.0, min(moments.square, 1.0))
            made.bound = 1.0
            return made
        if kind == "Softmax":
            axis = next(a.i for a in node.attribute if a.name == "axis")
            count = self.shapes[node.input[0]][axis]
            spread = min(math.exp(min(moments.variance, 50.0)) - 1, count - 1)
            made = self.source(output, 1 / count, spread / count**2)  # of log-normal numbers
            made.unsigned, made.bound = True, 1.0
            return made
        if kind == "LayerNormalization":
            return self.source(output, _BIAS_MEAN, _SCALE_SQUARED + _BIAS_VARIANCE)
        if kind == "RMSNormalization":
            mean = moments.mean / math.sqrt(max(moments.square, _LEAST_RMS**2))
            return self.source(output, mean, _SCALE_SQUARED - mean**2)
        if kind == "RotaryEmbedding":
            return self.source(output, 0.0, moments.square)
        if kind == "Attention":  # a mean of values
            mixed = self.total(inputs[2])
            return self.source(output, mixed.mean, mixed.variance)
        if kind == "ReduceMean":
            ratio = math.prod(self.shapes[output]) / math.prod(self.shapes[node.input[0]])
            return self.source(output, moments.mean, moments.variance * ratio)
        if kind == "Add" and len(inputs) == 2:
            return _Signal(first.terms + inputs[1].terms, all(i.unsigned for i in inputs))
        if kind == "Add":  # of a constant, or of a mask, which leaves numbers out
            known = next((self.known[n] for n in node.input if n in self.known), _Moments(0.0, 0.0))
            return self.source(output, moments.mean + known.mean, moments.variance + known.variance)
        if kind == "Div" and (by := self.known.get(node.input[1])):
            return self.source(output, moments.mean / by.mean, moments.variance / by.square)
        if kind == "Mul" and len(inputs) == 1:  # by a constant, or by cosines
            by = next((self.known[n] for n in node.input if n in self.known), _Moments(0.0, 1.0))
            mean = moments.mean * by.mean
            return self.source(output, mean, moments.square * by.square - mean**2)
        if kind == "Mul":
            other = self.total(inputs[1])
            mean = moments.mean * other.mean
            made = self.source(output, mean, moments.square * other.square - mean**2)
            made.unsigned = all(i.unsigned for i in inputs)
            return made
        if kind == "Sub":
            if node.input[0] == node.input[1]:
                return self.source(output, 0.0, 0.0)
            other = self.total(inputs[1])
            variance = moments.variance + other.variance
            return self.source(output, moments.mean - other.mean, variance)
        if kind == "Concat":
            widest = max(inputs, key=lambda each: self.total(each).square)
            return _Signal(widest.terms, all(i.unsigned for i in inputs))
        if kind in _COPIES:
            return _Signal(first.terms, first.unsigned, first.bound)
        raise InvalidSpaceError(
            f"int8: operator {kind} ({node.name}) has no int8 form: use float32", "dtype"
        )

    def parameter(self, name: str) -> _Signal:
        """Return the signal of a free parameter, as :mod:`esm_protos.weights` draws it."""
        shape = self.shapes[name]
        if len(shape) > 1:
            return self.source(name, 0.0, 2 / math.prod(shape[1:]))
        signal = self.source(name, _BIAS_MEAN, _BIAS_VARIANCE)
        signal.unsigned, signal.bound = True, 1.5
        return signal

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
        if node.op_type in ("Relu", "Clip")
        and readers[node.input[0]] == 1
        and node.input[0] not in outputs
    }
    # What enters no int8 arithmetic: integers, and numbers that follow from constants alone.
    plain = {value.name for value in graph.input if not _is_float(value)} | {""}
    renamed: dict[str, str] = {}
    given = [value.name for value in graph.input if _is_float(value)]
    waiting = [*given]
    for name in given:
        work.signals[name] = work.source(name, 0.0, 1.0)
    floating: list[str] = []  # results that constants enter
    for node in graph.node:
        made = NodeProto()
        made.CopyFrom(node)
        made.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type == "Shape" or plain.issuperset(node.input):
            work.nodes.append(made)
            plain.update(node.output)
            if node.op_type == "Constant":
                array = numpy_helper.to_array(node.attribute[0].t)
                work.known[node.output[0]] = _Moments(float(array.mean()), float(array.var()))
            continue
        by_weights = node.op_type == "MatMul" and node.input[1] in weights
        own = weights.keys() if node.op_type in _WITH_WEIGHTS else set[str]()
        if by_weights:
            own = {node.input[1]}
        reads = [name for name in node.input if name not in own and name not in plain]
        for name in reads:
            if name in weights and name not in work.signals:
                work.signals[name] = work.parameter(name)
                waiting.append(name)
        # An input becomes uint8 at the operator that reads it first.
        due = [name for name in waiting if name in reads]
        due += [n for n in floating if n in reads and node.op_type in _PRODUCTS]
        for name in due:
            renamed[name] = f"{name}.quantized"
            maker, _, last = name.rpartition(".")
            stem = f"{node.name}/{name}" if name in given else f"{maker or name}/{last}"
            work.activation(name, stem, renamed[name])
        waiting = [name for name in waiting if name not in reads]
        floating = [name for name in floating if name not in due]
        made.input[:] = [renamed.get(name, name) for name in node.input]
        if node.op_type in ("Conv", "Gemm"):
            made.input[1] = work.weight(node.input[1], node.name)
            step = work.scales[made.input[0]] * work.scales[node.input[1]]
            if len(node.input) > 2:
                made.input[2] = work.bias(node.input[2], node.name, step)
        elif by_weights and node.input[1] not in renamed:
            renamed[node.input[1]] = made.input[1] = work.weight(node.input[1], node.name)
            work.signals[node.input[1]] = work.parameter(node.input[1])
        signal = work.signal(node, [work.signals[name] for name in reads])
        work.nodes.append(made)
        constant = any(n in plain for n in node.input) and node.op_type in _ELEMENTWISE
        for place, output in enumerate(node.output):
            work.signals[output] = signal
            if output in rectified:  # fused with the following activation
                continue
            if constant:
                floating.append(output)
            elif output in outputs:
                made.output[place] = f"{output}.float"
                work.signals[made.output[place]] = signal
                work.activation(made.output[place], f"{node.name}/float{place or ''}", output)
                renamed[output] = output
            else:
                renamed[output] = f"{output}.quantized"
                last = output.rpartition(".")[2]
                work.activation(output, f"{node.name}/{last}", renamed[output])
    return helper.make_graph(
        work.nodes,
        graph.name,
        graph.input,
        graph.output,
        [*graph.initializer, *work.constants.values()],
    )


def _is_float(value: ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


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


def _clipped(moments: _Moments, low: float, high: float) -> _Moments:
    """Return the moments of min(max(x, low), high) for a normal x."""
    above, beyond = (
        _rectified(_Moments(moments.mean - end, moments.variance)) for end in (low, high)
    )
    mean = above.mean - beyond.mean
    square = above.square - beyond.square - 2 * (high - low) * beyond.mean
    return _Moments(low + mean, max(square - mean**2, 0.0))
