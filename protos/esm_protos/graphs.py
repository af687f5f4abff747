"""Graphs, tensors and size of an ONNX model; agent and host count with the same code."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from google.protobuf.message import DecodeError

from esm_protos.messages import Limits
from esm_protos.v1 import onnx_view_pb2 as view
from esm_protos.value_types import BY_NUMBER
from esm_protos.weights import WEIGHTLESS_LOCATION

Body: TypeAlias = view.Graph | view.Function
"""Part of a model that has nodes."""

_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """Map a file into memory, which reads only the pages that are accessed.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.stat().st_size:
        yield memoryview(b"")
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages,
        memoryview(pages) as data,
    ):
        yield data


def bodies(model: view.Model) -> Iterator[Body]:
    """Yield the main graph, then those in attributes, in functions and for training."""
    pending: list[Body] = [*model.functions]
    for training in model.training_info:
        pending += [training.initialization, training.algorithm]
    pending.append(model.graph)
    while pending:
        body = pending.pop()
        yield body
        for attribute in _attributes(body):
            pending.extend(attribute.graphs)
            if attribute.HasField("g"):
                pending.append(attribute.g)


def tensors(body: Body) -> Iterator[view.Tensor]:
    """Yield the tensors of a body: initializers first, then attributes.

    A sparse tensor gives its values and its indices. Nested bodies are left out.
    """
    sparse: list[view.SparseTensor] = []
    if isinstance(body, view.Graph):
        yield from body.initializer
        sparse += body.sparse_initializer
    for attribute in _attributes(body):
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            sparse.append(attribute.sparse_tensor)
        sparse += attribute.sparse_tensors
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices


def external_location(tensor: view.Tensor) -> str | None:
    """Return the location of a tensor's external data.

    Returns:
        None if the model holds the data; "" if the tensor gives no location.
    """
    if tensor.data_location != _EXTERNAL and not tensor.external_data:
        return None
    named = [str(entry.value) for entry in tensor.external_data if entry.key == "location"]
    # The runtime could use a second entry.
    return next((value for value in named if value != WEIGHTLESS_LOCATION), *named[:1] or [""])


def is_memory_address(location: str) -> bool:
    """Return whether ONNX Runtime could read an external location as a memory address.

    Its tags are ``*/_ORT_MEM_ADDR_/*`` and ``*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*``. Some releases
    compare them as text, others as paths, which ignore ``//`` and ``/./``.
    """
    return "_MEM_ADDR_" in location.upper() or location.startswith("*")


def too_large(data: bytes | memoryview, model: view.Model, limits: Limits) -> str | None:
    """Return the limit that a model exceeds, with both values; None if it is within all limits."""
    if len(data) > limits.max_model_bytes:
        return (
            f"the model has {len(data) / 1e6:.0f} MB, more than this device's limit of "
            f"{limits.max_model_bytes / 1e6:.0f} MB"
        )
    nodes = parameters = 0
    for body in bodies(model):
        nodes += len(body.node)
        if nodes > limits.max_model_nodes:
            return f"the model has more nodes than this device's limit of {limits.max_model_nodes}"
        for tensor in tensors(body):
            parameters += count(tensor.dims)
            if parameters > limits.max_model_parameters:
                return (
                    "the model has more parameters than this device's limit of "
                    f"{limits.max_model_parameters}"
                )
    return None


def weight_bytes(path: Path) -> int:
    """Return the bytes of all tensors of a model file; 0 if it is not an ONNX model."""
    model = view.Model()
    try:
        with mapped(path) as data:
            model.MergeFromString(data)
    except (DecodeError, OSError):
        return 0
    total = 0
    for body in bodies(model):
        for tensor in tensors(body):
            element = BY_NUMBER.get(tensor.data_type)
            total += element.stored_bytes(count(tensor.dims)) if element else 0
    return total


def count(dims: Sequence[int]) -> int:
    """Return the number of elements of a shape; 0 if a dimension is negative."""
    return max(math.prod(dims), 0) if len(dims) <= MAX_RANK else 0


MAX_RANK = 64
"""Largest number of dimensions: far above what operators accept, and quick to multiply."""


def _attributes(body: Body) -> Iterator[view.Attribute]:
    if isinstance(body, view.Function):
        yield from body.attribute_proto
    yield from chain.from_iterable(node.attribute for node in body.node)
