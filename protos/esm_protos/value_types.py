"""Types of ONNX values: tensors, their elements, sequences and optional values."""

from __future__ import annotations

import re
from typing import NamedTuple

from esm_protos.v1 import onnx_view_pb2 as view


class Element(NamedTuple):
    """Type of a tensor's elements.

    Attributes:
        name: Name in numpy, or ONNX's name in lower case if numpy lacks the type.
        number: Number in ``TensorProto.DataType``.
        bits: Bits of one element as ONNX stores it; 0 for strings.
        storage: numpy type that holds one element; ``uint8`` for types below 8 bits.
    """

    name: str
    number: int
    bits: int
    storage: str

    @property
    def in_numpy(self) -> bool:
        """Whether numpy has the type; it holds strings as objects."""
        return self.name in (self.storage, "string")

    def stored_bytes(self, count: int) -> int:
        """Return the bytes of ``count`` elements in ONNX; those below 8 bits are packed."""
        return -(-count * self.bits // 8)


def _numpys(number: int, name: str, bits: int) -> Element:
    return Element(name, number, bits, name)


ELEMENTS = (
    _numpys(1, "float32", 32),
    _numpys(2, "uint8", 8),
    _numpys(3, "int8", 8),
    _numpys(4, "uint16", 16),
    _numpys(5, "int16", 16),
    _numpys(6, "int32", 32),
    _numpys(7, "int64", 64),
    Element("string", 8, 0, "object"),
    _numpys(9, "bool", 8),
    _numpys(10, "float16", 16),
    _numpys(11, "float64", 64),
    _numpys(12, "uint32", 32),
    _numpys(13, "uint64", 64),
    _numpys(14, "complex64", 64),
    _numpys(15, "complex128", 128),
    Element("bfloat16", 16, 16, "uint16"),
    Element("float8e4m3fn", 17, 8, "uint8"),
    Element("float8e4m3fnuz", 18, 8, "uint8"),
    Element("float8e5m2", 19, 8, "uint8"),
    Element("float8e5m2fnuz", 20, 8, "uint8"),
    Element("uint4", 21, 4, "uint8"),
    Element("int4", 22, 4, "uint8"),
    Element("float4e2m1", 23, 4, "uint8"),
    Element("float8e8m0", 24, 8, "uint8"),
    Element("uint2", 25, 2, "uint8"),
    Element("int2", 26, 2, "uint8"),
)
BY_NUMBER = {element.number: element for element in ELEMENTS}
_BY_NAME = {element.name: element for element in ELEMENTS}
_OF_RUNTIME = {"float": "float32", "double": "float64"}
_TENSOR = re.compile(r"(optional\()?(seq\()?tensor\((\w+)\)\)*", re.ASCII)


class ValueType(NamedTuple):
    """Type of an input: a tensor, a sequence of tensors, or either as an optional value."""

    element: Element
    is_sequence: bool = False
    is_optional: bool = False

    def __str__(self) -> str:
        """Return the type as text, such as ``optional(seq(float32))``."""
        text = f"seq({self.element.name})" if self.is_sequence else self.element.name
        return f"optional({text})" if self.is_optional else text


def runtime_type(text: str) -> ValueType | None:
    """Parse a type in ONNX Runtime's form, ``seq(tensor(float))``; None for any other kind."""
    found = _TENSOR.fullmatch(text)
    if found is None or text.count("(") != text.count(")"):
        return None
    optional, sequence, name = found.groups()
    element = _BY_NAME.get(_OF_RUNTIME.get(name, name))
    return None if element is None else ValueType(element, bool(sequence), bool(optional))


def value_type(declared: view.Type) -> ValueType | None:
    """Convert a type that a model declares; None for any other kind."""
    inner = declared.optional_type.elem_type if declared.HasField("optional_type") else declared
    element = BY_NUMBER.get(tensor_type(declared).elem_type)
    if element is None:
        return None
    return ValueType(element, inner.HasField("sequence_type"), inner is not declared)


def tensor_type(declared: view.Type) -> view.TensorType:
    """Return the tensor type, also inside a sequence or optional; empty for other kinds."""
    inner = declared.optional_type.elem_type if declared.HasField("optional_type") else declared
    if inner.HasField("sequence_type"):
        inner = inner.sequence_type.elem_type
    return inner.tensor_type
