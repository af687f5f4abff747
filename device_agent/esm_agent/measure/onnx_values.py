"""Decoder of ONNX's TensorProto, SequenceProto and OptionalProto, with checks of untrusted data."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from esm_protos.graphs import MAX_RANK
from esm_protos.v1 import onnx_values_pb2 as pb
from esm_protos.value_types import BY_NUMBER, Element, ValueType

Value: TypeAlias = NDArray[Any] | tuple[NDArray[Any], ...] | None
"""Tensor, sequence of tensors, or absent optional value.

Arrays have the type of :attr:`~esm_protos.value_types.Element.storage`. For types that numpy
lacks, they hold the bits.
"""

_EXTERNAL = 1  # TensorProto.DataLocation.EXTERNAL
_FIELDS = {
    **dict.fromkeys(("float32", "complex64"), ("float_data", "<f4")),
    **dict.fromkeys(("float64", "complex128"), ("double_data", "<f8")),
    **dict.fromkeys(("uint32", "uint64"), ("uint64_data", "<u8")),
    "int64": ("int64_data", "<i8"),
}
"""Field and type of the numbers in a TensorProto without raw data; other types: ``int32_data``."""


def decode(data: bytes, kind: ValueType) -> Value:
    """Decode the value of an input of this type.

    Raises:
        ValueError: the data are another proto, have another type, or are damaged.
    """
    if not kind.is_optional:
        if kind.is_sequence:
            return _sequence(_parsed(data, pb.Sequence()), kind.element)
        return tensor(_parsed(data, pb.Tensor()), kind.element)
    optional = _parsed(data, pb.Optional())
    if optional.HasField("sequence_value") and kind.is_sequence:
        return _sequence(optional.sequence_value, kind.element)
    if optional.HasField("tensor_value") and not kind.is_sequence:
        return tensor(optional.tensor_value, kind.element)
    if optional.HasField("sequence_value") or optional.HasField("tensor_value"):
        raise ValueError(f"the model takes {kind}, given an optional value of another type")
    return None


def tensor(proto: pb.Tensor, element: Element) -> NDArray[Any]:
    """Return a tensor as an array.

    Raises:
        ValueError: the tensor has another type, or is damaged.
    """
    given = BY_NUMBER.get(proto.data_type)
    if given is not element:
        name = given.name if given else f"type {proto.data_type}"
        raise ValueError(f"the model takes {element.name}, given {name}")
    if proto.data_location == _EXTERNAL:
        raise ValueError("its data is in another file: save it with its data inside")
    dims = tuple(proto.dims)
    if len(dims) > MAX_RANK or any(dim < 0 for dim in dims):
        raise ValueError(f"invalid shape: {str(list(dims))[:100]}")
    count = math.prod(dims)
    if element.name == "string":
        _check_count(len(proto.string_data), count, "strings")
        words = np.empty(count, dtype=np.object_)
        words[:] = [text.decode() for text in proto.string_data]
        return words.reshape(dims)
    return _numbers(proto, element, count).reshape(dims)


def packed(array: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return elements of less than 8 bits as ONNX stores them, the first in the low bits."""
    per_byte = 8 // bits
    padded = np.zeros(-(-array.size // per_byte) * per_byte, dtype=np.uint8)
    padded[: array.size] = array.ravel() & (2**bits - 1)
    shifted = padded.reshape(-1, per_byte) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(np.bitwise_or.reduce(shifted, axis=1), dtype=np.uint8)


def _parsed(data: bytes, proto: Any) -> Any:
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ValueError("not an ONNX value, or of another type than the input") from error
    assert isinstance(proto, Message)
    return proto


def _sequence(proto: pb.Sequence, element: Element) -> tuple[NDArray[Any], ...]:
    if not proto.tensor_values and proto.elem_type not in (0, 1):
        raise ValueError("a sequence of other values than tensors")
    return tuple(tensor(each, element) for each in proto.tensor_values)


def _numbers(proto: pb.Tensor, element: Element, count: int) -> NDArray[Any]:
    storage = np.dtype(element.storage)
    if proto.HasField("raw_data") or not count:
        stored = np.frombuffer(proto.raw_data, dtype=np.uint8)
        _check_count(stored.size, element.stored_bytes(count), "bytes")
        if element.bits < 8:
            return _unpacked(stored, element.bits, count)
        if element.name == "bool":
            return np.asarray(stored != 0)
        return stored.view(storage.newbyteorder("<")).astype(storage)
    field, stored_as = _FIELDS.get(element.name, ("int32_data", "<i4"))
    values = getattr(proto, field)
    expected = element.stored_bytes(count) if element.bits < 8 else count
    _check_count(len(values), expected * (1 + (storage.kind == "c")), "numbers")
    numbers = np.fromiter(values, dtype=stored_as, count=len(values))
    if element.bits < 8:
        return _unpacked(numbers.astype(np.uint8), element.bits, count)
    if element.name == "bool":
        return np.asarray(numbers != 0)
    if field == "int32_data":  # floats of 16 and 8 bits are stored as bits
        return numbers.astype(f"u{storage.itemsize}").view(storage)
    return numbers.astype(storage) if storage.kind != "c" else numbers.view(storage)


def _unpacked(stored: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    shifted = stored[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray(shifted & (2**bits - 1), dtype=np.uint8).ravel()[:count]


def _check_count(given: int, expected: int, what: str) -> None:
    if given != expected:
        raise ValueError(f"its shape needs {expected} {what}, it has {given}")
