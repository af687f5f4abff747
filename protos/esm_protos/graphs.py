"""What an ONNX model consists of, wherever in it that lies: both sides count by this."""

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
"""What has nodes."""

_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL


@contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    """A file's bytes, not read before they are looked at; raises OSError."""
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
    """The main graph first; then those in attributes, in functions and for training."""
    found: list[Body] = [*model.functions]
    for training in model.training_info:
        found += [training.initialization, training.algorithm]
    found.append(model.graph)
    while found:
        body = found.pop()
        yield body
        for attribute in _attributes(body):
            found.extend(attribute.graphs)
            if attribute.HasField("g"):
                found.append(attribute.g)


def tensors(body: Body) -> Iterator[view.Tensor]:
    """Initializers first, then attributes, sparse ones as values and indices; not of bodies
    within."""
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
    """Where a tensor's data lies if not in the model; "" where it does not say."""
    if tensor.data_location != _EXTERNAL and not tensor.external_data:
        return None
    named = [str(entry.value) for entry in tensor.external_data if entry.key == "location"]
    # A second one could be what the runtime goes by.
    return next((value for value in named if value != WEIGHTLESS_LOCATION), *named[:1] or [""])


def is_memory_address(location: str) -> bool:
    """Tell whether ONNX Runtime could take an external location for an address in memory.

    Its tags are ``*/_ORT_MEM_ADDR_/*`` and ``*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*``. Releases compare
    them as text or as paths, where ``//`` and ``/./`` do not count.
    """
    return "_MEM_ADDR_" in location.upper() or location.startswith("*")


def too_large(data: bytes | memoryview, model: view.Model, limits: Limits) -> str | None:
    """What of a model exceeds the limits, and which; None if nothing does."""
    if len(data) > limits.max_model_bytes:
        return (
            f"the model is of {len(data) / 1e6:.0f} MB, above this device's limit of "
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
    """Return the bytes of all tensors that a model file holds or names; 0 if it is none."""
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
    """How many numbers have these dimensions; what is negative counts as none."""
    return max(math.prod(dims), 0) if len(dims) <= MAX_RANK else 0


MAX_RANK = 64
"""Far more than any operator takes, few enough to multiply."""


def _attributes(body: Body) -> Iterator[view.Attribute]:
    if isinstance(body, view.Function):
        yield from body.attribute_proto
    yield from chain.from_iterable(node.attribute for node in body.node)
