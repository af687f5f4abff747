"""What is looked at in a model file before the runtime sees it: size, places, operators.

Read with the few fields of :mod:`esm_protos.v1.onnx_view_pb2`; inside the measuring process,
since even that may be more than there is memory for.
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
_MOST_NUMBERS = 2**63 - 1  # the runtime counts them by int64


class _RefusedError(Exception):
    def __init__(self, message: str, kind: FailureKind = FailureKind.INVALID_MODEL) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def examine(
    data: bytes | memoryview, limits: Limits, external: Collection[str] = frozenset()
) -> Failure | None:
    """Why the model is not to be given to the runtime; None if it may be.

    Args:
        external: files that came with it.
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
                "give a smaller one, or its agent a larger --memory-limit"
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
    """Return the memory that the model takes at least: its file, and the weights drawn for it.

    External data does not count: it is mapped, and need not be in memory as a whole.
    """
    drawn: Iterator[int] = (
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if external_location(tensor) == WEIGHTLESS_LOCATION
    )
    return len(data) + _FLOAT_BYTES * sum(drawn)


def _short(name: str | bytes) -> str:
    """For messages. What is no UTF-8 is bytes here, and nothing that a model may be named."""
    if isinstance(name, bytes):
        raise _RefusedError("a name in the model is not UTF-8")
    return name[:100]


def _check_nodes(body: Body, known: set[str]) -> None:
    for node in body.node:
        for name in (node.domain, node.op_type):
            _short(name)
        if node.domain not in known:
            # No library of operators is ever registered here.
            raise _RefusedError(
                f"operator {_short(node.op_type)} is of domain '{_short(node.domain)}', which this "
                "device does not have",
                FailureKind.UNSUPPORTED_OP,
            )
        if node.op_type == "EPContext":
            raise _RefusedError(
                "an EPContext node names a file of compiled code, and none travels with a model",
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
            # What is not positive is free here, and taken as 1.
            dims = [max(dim.dim_value, 1) for dim in given.type.tensor_type.shape.dim]
            _check_product(f"input {_short(given.name)}", dims)


def _check_product(what: str, dims: Sequence[int]) -> None:
    if len(dims) > MAX_RANK:
        raise _RefusedError(f"{what} has {len(dims)} dimensions; {MAX_RANK} is the limit")
    numbers = 1
    for dim in dims:
        numbers *= max(dim, 1)  # a dimension of 0 hides no overflow of the others
    if numbers > _MOST_NUMBERS // 8:
        raise _RefusedError(f"{what} has more numbers than can be addressed")


def _check_places(body: Body, drawn: int, external: Collection[str]) -> None:
    """``drawn``: how many of its tensors, the first, the device draws if they are weightless."""
    for position, tensor in enumerate(tensors(body)):
        # In any entry, whatever its key: there the runtime would read this process's memory.
        if any(is_memory_address(str(entry.value)) for entry in tensor.external_data):
            raise _RefusedError(
                f"tensor {_short(tensor.name)} lies at an address in memory, not in a file"
            )
        location = external_location(tensor)
        if location is None or (location == WEIGHTLESS_LOCATION and position < drawn):
            continue
        named = [entry for entry in tensor.external_data if entry.key == "location"]
        if location in external and len(named) == 1:  # a second could be what the runtime goes by
            continue
        if location == WEIGHTLESS_LOCATION:
            raise _RefusedError(
                f"tensor {_short(tensor.name)} is weightless, which only the main graph's "
                "initializers may be"
            )
        raise _RefusedError(
            f"tensor {_short(tensor.name)} lies in another file ({location[:100] or 'unnamed'}), "
            "which did not come with the model"
        )
