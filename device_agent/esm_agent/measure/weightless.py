"""Weights of weightless models: drawn for a session, or written into a copy of the model."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from esm_agent.measure.block import UploadedModel
from esm_agent.measure.outcomes import ModelError
from esm_protos.graphs import external_location, mapped
from esm_protos.messages import FailureKind
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.weights import WEIGHTLESS_LOCATION, draw_weights

_FLOAT_BYTES = 4
_FLOAT = 1  # TensorProto.DataType.FLOAT
_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_RAW_DATA = b"\x4a"  # TensorProto.raw_data, field 9 of bytes; the view lacks it
_MAX_FILE_BYTES = 2**31 - 1  # protobuf's own limit
_MAX_WEIGHTLESS_BYTES = 256 << 20  # a graph without its weights is far smaller
_WEIGHTLESS = re.compile(re.escape(WEIGHTLESS_LOCATION.encode()))


def drawn_weights(path: Path, seed: int) -> tuple[list[str], list[Any]]:
    """Return the names and arrays of weightless initializers, drawn at random.

    Raises:
        ModelError: the file is not an ONNX model, or an initializer cannot be drawn.
    """
    _, missing = _weightless(path)
    names = [tensor.name for tensor in missing]
    return names, [draw_weights(t.name, tuple(t.dims), seed) for t in missing]


@contextmanager
def with_weights(model: UploadedModel, seed: int) -> Iterator[UploadedModel | None]:
    """Write the drawn weights of a weightless model into a copy of it.

    Yields:
        The copy, whose file is removed afterwards; None if the model is not weightless, or if the
        copy would be too large for one file.

    Raises:
        ModelError: as :func:`drawn_weights`.
    """
    graph, missing = _weightless(model.path)
    size = sum(_FLOAT_BYTES * math.prod(tensor.dims) for tensor in missing)
    if graph is None or not missing or size + graph.ByteSize() > _MAX_FILE_BYTES:
        yield None
        return
    for tensor in missing:
        data = draw_weights(tensor.name, tuple(tensor.dims), seed).astype("<f4", copy=False)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.MergeFromString(_RAW_DATA + _varint(data.nbytes) + data.tobytes())
    # External data of other initializers is in the folder of the model.
    folder = model.path.parent if model.external else None
    with tempfile.NamedTemporaryFile(suffix=".onnx", dir=folder, delete=False) as file:
        file.write(graph.SerializeToString())
    try:
        yield replace(model, path=Path(file.name))
    finally:
        os.unlink(file.name)


def _weightless(path: Path) -> tuple[view.Model | None, list[view.Tensor]]:
    """Return a model that may be weightless, with its weightless initializers."""
    if path.stat().st_size > _MAX_WEIGHTLESS_BYTES:
        return None, []
    with mapped(path) as data:
        if _WEIGHTLESS.search(data) is None:
            return None, []  # avoids parsing most models with weights
        model = view.Model()
        try:
            model.MergeFromString(data)
        except DecodeError as error:
            raise ModelError(FailureKind.INVALID_MODEL, "this is not an ONNX file") from error
    missing = [
        tensor
        for tensor in model.graph.initializer
        if tensor.data_location == _EXTERNAL and external_location(tensor) == WEIGHTLESS_LOCATION
    ]
    for tensor in missing:
        if tensor.data_type != _FLOAT or any(dim < 1 for dim in tensor.dims):
            raise ModelError(
                FailureKind.INVALID_MODEL,
                f"weightless initializer {tensor.name} must be float32 with positive dimensions",
            )
    return model, missing


def _varint(number: int) -> bytes:
    """Return a number as protobuf encodes it."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
