"""What a model takes on the device that runs it, and what each of its operators does.

Numbers count four bytes, also those of int8 networks: that is the same architecture, and a
predictor learns how fast a device runs it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

_COPIES = 3
"""Drawn or read, as the runtime keeps it, and packed for its kernels: 2.0 to 3.0 times the
weights were measured while large models of all spaces load."""
_FIXED_BYTES = 10_000_000

Shape = tuple[int, ...]

KINDS = (
    *("conv", "pointwise", "depthwise", "grouped", "linear"),
    *("pool", "norm", "elementwise", "layout"),
)
"""Of operators: convolutions by how their channels are connected (``conv`` has a kernel above 1
and one group, ``pointwise`` kernel 1), fully connected layers, and what only moves or maps
numbers."""

_FREE = ("Flatten", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Dropout")
"""Rename a tensor at most: no byte moves."""
_LAYOUT = (*_FREE, "Concat", "Transpose", "Pad", "Slice", "Split")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class OperatorCost:
    """What one operator does in one inference, in float32.

    Attributes:
        kind: one of :data:`KINDS`.
        macs: multiply-adds of convolutions and linear layers; 0 of the others.
        flops: 2 per multiply-add, and of other operators one per number that they look at; biases
            are not counted, as is usual.
        activation_bytes: of the inputs read and the output written.
        weight_bytes: of the parameters read.
    """

    kind: str
    macs: int
    flops: int
    activation_bytes: int
    weight_bytes: int

    @property
    def bytes(self) -> int:
        """Read and written, weights included."""
        return self.activation_bytes + self.weight_bytes


def operator_cost(
    node: onnx.NodeProto, inputs: Sequence[Shape], weights: Sequence[Shape], output: Shape
) -> OperatorCost:
    """Counted from an operator's shapes; every input is read once.

    Args:
        inputs: of the activations.
        weights: of the initializers.
    """
    kind, macs, flops = _work(node, inputs, weights, output)
    moved = 0 if node.op_type in _FREE else _numbers([*inputs, output])
    return OperatorCost(kind, macs, flops, _FLOAT_BYTES * moved, _FLOAT_BYTES * _numbers(weights))


def _work(
    node: onnx.NodeProto, inputs: Sequence[Shape], weights: Sequence[Shape], output: Shape
) -> tuple[str, int, int]:
    """Kind, multiply-adds and FLOPs."""
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
    """Memory that an ONNX model needs while a runtime loads and runs it, roughly. Weights of int8
    models are float32 until they are loaded, and take no more."""
    weights = onnx.ModelProto.FromString(model).graph.initializer
    numbers: int = sum(math.prod(tensor.dims) for tensor in weights)
    return _COPIES * 4 * numbers + _FIXED_BYTES
