"""What a model takes on the device that runs it."""

from __future__ import annotations

import math

import onnx

_COPIES = 3
"""Drawn or read, as the runtime keeps it, and packed for its kernels: 2.0 to 3.0 times the
weights were measured while large models of all spaces load."""
_FIXED_BYTES = 10_000_000


def memory_bytes(model: bytes) -> int:
    """Memory that a float32 ONNX model needs while a runtime loads and runs it, roughly."""
    weights = onnx.ModelProto.FromString(model).graph.initializer
    numbers: int = sum(math.prod(tensor.dims) for tensor in weights)
    return _COPIES * 4 * numbers + _FIXED_BYTES
