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
    *("matmul", "attention"),
)
"""Kinds of operators. ``conv`` is a convolution with one group and a kernel above 1, and
``pointwise`` one with kernel 1. ``linear`` is a fully connected layer, and ``matmul`` a product of
two activations."""

RARE_KINDS = ("matmul", "attention")
"""Kinds that only transformers have; encodings of other spaces leave them out."""

_FREE = (
    *("Flatten", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Dropout"),
    *("Cast", "ConstantOfShape", "Shape", "Trilu"),  # computed once from constants
)
"""Operators that move no bytes."""
_LAYOUT = (*_FREE, "Concat", "Expand", "Gather", "Pad", "Slice", "Split", "Transpose")
_NORMS = ("BatchNormalization", "LayerNormalization", "RMSNormalization")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class OperatorCost:
    """Cost of an operator in one inference, in float32.

    Attributes:
        kind: One of :data:`KINDS`.
        macs: Multiply-adds of a convolution or linear layer; 0 for other operators.
        flops: 2 per multiply-add; 1 per number read for other operators. Biases are not counted.
        activation_bytes: Bytes of the inputs read and the outputs written.
        weight_bytes: Bytes of the parameters read.
        parameters: Number of parameters. An embedding reads some of them, and those that two
            operators share count for each.
    """

    kind: str
    macs: int
    flops: int
    activation_bytes: int
    weight_bytes: int
    parameters: int

    @property
    def bytes(self) -> int:
        """Bytes read and written, with weights."""
        return self.activation_bytes + self.weight_bytes


def operator_cost(
    node: onnx.NodeProto,
    inputs: Sequence[Shape],
    weights: Sequence[Shape],
    outputs: Sequence[Shape],
) -> OperatorCost:
    """Return the cost of an operator, counted from its shapes; every input is read once.

    Of a table with indices (``Gather``), only the elements that the output has are read.

    Args:
        node: Operator.
        inputs: Shapes of its activations.
        weights: Shapes of its initializers.
        outputs: Shapes of its results.
    """
    kind, macs, flops = _work(node, inputs, weights, outputs[0])
    parameters = read = _numbers(weights)
    if node.op_type in _FREE:
        moved = 0
    elif node.op_type == "Gather":
        taken = _numbers(outputs)
        read = taken if weights else 0
        moved = _numbers(inputs[-1:]) + (taken if weights else 2 * taken)
    else:
        moved = _numbers([*inputs, *outputs])
    return OperatorCost(kind, macs, flops, _FLOAT_BYTES * moved, _FLOAT_BYTES * read, parameters)


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
        macs = size * (inputs or weights)[0][-1]
        return "linear" if weights else "matmul", macs, 2 * macs
    if node.op_type == "Attention":
        keys = inputs[1][-2]
        macs = (math.prod(inputs[0]) + size) * keys
        return "attention", macs, 2 * macs
    if node.op_type in _POOLS:
        kernel = [helper.get_attribute_value(a) for a in node.attribute if a.name == "kernel_shape"]
        return "pool", 0, size * math.prod(kernel[0]) if kernel else _numbers(inputs)
    if node.op_type in _NORMS:
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
