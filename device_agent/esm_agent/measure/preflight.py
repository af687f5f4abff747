"""Checks of a model file before the runtime loads it: size, data locations, operators.

They use the few fields of :mod:`esm_protos.v1.onnx_view_pb2` and run in the measuring process,
because parsing may exhaust the memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from google.protobuf.message import DecodeError

from esm_protos.graphs import (
    MAX_RANK,
    Body,
    bodies,
    external_location,
    is_memory_address,
    tensors,
    too_large,
)
from esm_protos.messages import Failure, FailureKind, Limits
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.weights import WEIGHTLESS_LOCATION

_DOMAINS = {
    *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"),
    *("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"),  # ONNX Runtime's own
}
_FLOAT_BYTES = 4  # weights are drawn as float32
_MOST_NUMBERS = 2**63 - 1  # the runtime counts in int64


class _RefusedError(Exception):
    def __init__(self, message: str, kind: FailureKind = FailureKind.INVALID_MODEL) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def examine(
    data: bytes | memoryview, limits: Limits, external: Collection[str] = frozenset()
) -> Failure | None:
    """Return why the model is refused; None if the runtime may load it.

    Args:
        data: Contents of the model file.
        limits: Limits of the device.
        external: Locations of the external files uploaded with the model.
    """
    try:
        model = view.Model()
        model.MergeFromString(data)
        model.DiscardUnknownFields()  # the weights are among them
        if not model.HasField("graph"):
            return Failure(FailureKind.INVALID_MODEL, "this is not an ONNX file: it has no graph")
        if excess := too_large(data, model, limits):
            return Failure(FailureKind.INVALID_MODEL, excess)
        if (size := _least_bytes(data, model)) > limits.max_memory_bytes:
            text = (
                f"the model's weights take {size / 1e9:.2g} GB, more than the "
                f"{limits.max_memory_bytes / 1e9:.2g} GB that a model may use on this device: "
                "give a smaller model, or start the agent with a larger --memory-limit"
            )
            return Failure(FailureKind.OUT_OF_MEMORY, text)
        known = _DOMAINS | {function.domain for function in model.functions}
        for number, body in enumerate(bodies(model)):
            _check_nodes(body, known)
            _check_dims(body)
            drawn = len(model.graph.initializer) if number == 0 else 0
            _check_places(body, drawn, external)
    except DecodeError:
        return Failure(FailureKind.INVALID_MODEL, "this is not an ONNX file")
    except _RefusedError as refused:
        return refused.failure
    return None


def _least_bytes(data: bytes | memoryview, model: view.Model) -> int:
    """Return the minimum memory of the model, bytes: its file and its drawn weights.

    External data does not count: it is memory-mapped.
    """
    drawn: Iterator[int] = (
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if external_location(tensor) == WEIGHTLESS_LOCATION
    )
    return len(data) + _FLOAT_BYTES * sum(drawn)


def _short(name: str | bytes) -> str:
    """Return a name shortened for messages; refuse names that are not UTF-8, given as bytes."""
    if isinstance(name, bytes):
        raise _RefusedError("a name in the model is not UTF-8")
    return name[:100]


def _check_nodes(body: Body, known: set[str]) -> None:
    for node in body.node:
        for name in (node.domain, node.op_type):
            _short(name)
        if node.domain not in known:
            # The agent registers no custom operators.
            raise _RefusedError(
                f"operator {_short(node.op_type)} belongs to domain '{_short(node.domain)}', "
                "which this device does not support",
                FailureKind.UNSUPPORTED_OP,
            )
        if node.op_type == "EPContext":
            raise _RefusedError(
                "an EPContext node refers to a file of compiled code, which cannot be uploaded",
                FailureKind.UNSUPPORTED_OP,
            )


def _check_dims(body: Body) -> None:
    for tensor in tensors(body):
        what = f"tensor {_short(tensor.name)}"
        if any(dim < 0 for dim in tensor.dims):
            raise _RefusedError(f"{what} has a negative dimension")
        _check_product(what, tensor.dims)
    if isinstance(body, view.Graph):
        for sparse in body.sparse_initializer:
            if any(dim < 0 for dim in sparse.dims):
                raise _RefusedError("a sparse initializer has a negative dimension")
            _check_product("a sparse initializer", sparse.dims)
        for given in body.input:
            # A dimension that is not positive is free, and becomes 1.
            dims = [max(dim.dim_value, 1) for dim in given.type.tensor_type.shape.dim]
            _check_product(f"input {_short(given.name)}", dims)


def _check_product(what: str, dims: Sequence[int]) -> None:
    if len(dims) > MAX_RANK:
        raise _RefusedError(f"{what} has {len(dims)} dimensions; {MAX_RANK} is the limit")
    numbers = 1
    for dim in dims:
        numbers *= max(dim, 1)  # a dimension of 0 must not hide an overflow
    if numbers > _MOST_NUMBERS // 8:
        raise _RefusedError(f"{what} has more elements than can be addressed")


def _check_places(body: Body, drawn: int, external: Collection[str]) -> None:
    """Check the data locations of tensors; the first ``drawn`` may be weightless."""
    for position, tensor in enumerate(tensors(body)):
        # Check every entry: the runtime would read this process's memory.
        if any(is_memory_address(str(entry.value)) for entry in tensor.external_data):
            raise _RefusedError(
                f"tensor {_short(tensor.name)} refers to an address in memory, not to a file"
            )
        location = external_location(tensor)
        if location is None or (location == WEIGHTLESS_LOCATION and position < drawn):
            continue
        named = [entry for entry in tensor.external_data if entry.key == "location"]
        if location in external and len(named) == 1:  # the runtime might use a second one
            continue
        if location == WEIGHTLESS_LOCATION:
            raise _RefusedError(
                f"tensor {_short(tensor.name)} is weightless; only initializers of the main "
                "graph may be"
            )
        raise _RefusedError(
            f"tensor {_short(tensor.name)} is stored in another file "
            f"({location[:100] or 'unnamed'}), which was not uploaded with the model"
        )
