"""Cost of a model's operators (FLOPs, bytes) and the memory that a model needs.

A number counts as four bytes, also in an int8 network: its architecture is the same, and a
predictor learns the device's speed from measurements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

_COPIES = 3
"""Copies of the weights during loading: drawn or read, kept by the runtime, packed for kernels.
Large models of all spaces needed 2.0 to 3.0 times the weights."""
_FIXED_BYTES = 10_000_000

Shape = tuple[int, ...]

KINDS = (
    *("conv", "pointwise", "depthwise", "grouped", "linear"),
    *("pool", "norm", "elementwise", "layout"),
)
"""Kinds of operators. ``conv`` is a convolution with one group and a kernel above 1, and
``pointwise`` one with kernel 1. ``linear`` is a fully connected layer."""

_FREE = ("Flatten", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Dropout")
"""Operators that move no bytes."""
_LAYOUT = (*_FREE, "Concat", "Transpose", "Pad", "Slice", "Split")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class OperatorCost:
    """Cost of an operator in one inference, in float32.

    Attributes:
        kind: One of :data:`KINDS`.
        macs: Multiply-adds of a convolution or linear layer; 0 for other operators.
        flops: 2 per multiply-add; 1 per number read for other operators. Biases are not counted.
        activation_bytes: Bytes of the inputs read and the output written.
        weight_bytes: Bytes of the parameters read.
    """

    kind: str
    macs: int
    flops: int
    activation_bytes: int
    weight_bytes: int

    @property
    def bytes(self) -> int:
        """Bytes read and written, with weights."""
        return self.activation_bytes + self.weight_bytes


def operator_cost(
    node: onnx.NodeProto, inputs: Sequence[Shape], weights: Sequence[Shape], output: Shape
) -> OperatorCost:
    """Return the cost of an operator, counted from its shapes; every input is read once.

    Args:
        node: Operator.
        inputs: Shapes of its activations.
        weights: Shapes of its initializers.
        output: Shape of its result.
    """
    kind, macs, flops = _work(node, inputs, weights, output)
    moved = 0 if node.op_type in _FREE else _numbers([*inputs, output])
    return OperatorCost(kind, macs, flops, _FLOAT_BYTES * moved, _FLOAT_BYTES * _numbers(weights))


def _work(
    node: onnx.NodeProto, inputs: Sequence[Shape], weights: Sequence[Shape], output: Shape
) -> tuple[str, int, int]:
    """Return kind, multiply-adds and FLOPs."""
    size = math.prod(output)
    if node.op_type == "Conv":
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        out_channels, *per_output = weights[0]
        macs = size * math.prod(per_output)
        if group == 1:
            kind = "pointwise" if math.prod(per_output[1:]) == 1 else "conv"
        else:
            kind = "depthwise" if group == out_channels == inputs[0][1] else "grouped"
        return kind, macs, 2 * macs
    if node.op_type in ("Gemm", "MatMul"):
        macs = size * inputs[0][-1]
        return "linear", macs, 2 * macs
    if node.op_type in _POOLS:
        kernel = [helper.get_attribute_value(a) for a in node.attribute if a.name == "kernel_shape"]
        return "pool", 0, size * math.prod(kernel[0]) if kernel else _numbers(inputs)
    if node.op_type == "BatchNormalization":
        return "norm", 0, 2 * size
    if node.op_type in _LAYOUT:
        return "layout", 0, 0
    return "elementwise", 0, size


def _numbers(shapes: Sequence[Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def memory_bytes(model: bytes) -> int:
    """Return a rough estimate of the memory that loading and running an ONNX model needs, bytes.

    The weights of an int8 model are float32 until it is loaded, so it needs no more than that.
    """
    weights = onnx.ModelProto.FromString(model).graph.initializer
    numbers: int = sum(math.prod(tensor.dims) for tensor in weights)
    return _COPIES * 4 * numbers + _FIXED_BYTES
