"""Messages that a peer might send, drawn for every field of their type: most as they should be."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

M = TypeVar("M", bound=Message)

_FLOATS = (0.0, -0.0, -1.0, 1e-320, 1e300, 1e15, math.inf, -math.inf, math.nan)
_INTEGERS = (
    0,
    1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**53 + 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_TEXTS = ("", "\x1b]0;gone\x07\x1b[2J", "two\nlines", "\u202etxt.exe", "\0", "x" * 5000, "é" * 999)
_LEAST = {
    **dict.fromkeys((FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64), 0),
    FieldDescriptor.TYPE_SINT64: -(2**63),
}
_MOST = {
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
    FieldDescriptor.TYPE_SINT64: 2**63 - 1,
}


_MAPPED = st.sampled_from(("1", *_TEXTS))


def messages(kind: type[M], odd: int = 8) -> st.SearchStrategy[M]:
    """Messages of a type; about one value in ``odd`` is not as a peer would mean it."""
    return st.composite(lambda draw: _drawn(draw, kind, odd))()


def _drawn(draw: Any, kind: type[M], odd: int) -> M:
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.containing_oneof is not None and draw(st.booleans()):
            continue
        if field.is_repeated:
            count = draw(st.integers(0, 3))
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                key = field.message_type.fields_by_name["key"]
                keys = [_value(draw, key, odd) for _ in range(count)]
                getattr(message, field.name).update({each: draw(_MAPPED) for each in keys})
                continue
            values = [_value(draw, field, odd) for _ in range(count)]
            getattr(message, field.name).extend(values)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, field.name).CopyFrom(_value(draw, field, odd))
        else:
            setattr(message, field.name, _value(draw, field, odd))
    return message


def _value(draw: Any, field: Any, odd: int) -> Any:
    strange = draw(st.integers(1, odd)) == odd
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _drawn(draw, field.message_type._concrete_class, odd)
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw(st.sampled_from(_TEXTS) if strange else st.sampled_from(("m", "cpu", "Conv")))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.sampled_from((b"", bytes(32), bytes(31))))
    if field.type == FieldDescriptor.TYPE_BOOL:
        return draw(st.booleans())
    if field.type == FieldDescriptor.TYPE_ENUM:
        known = [value.number for value in field.enum_type.values if value.number]
        return draw(st.sampled_from((0, 99, -1) if strange else known))
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        usual = st.floats(1, 1000) if field.name.endswith("ns") else st.floats(0, 1)
        return draw(st.sampled_from(_FLOATS) if strange else usual)
    low, high = _LEAST[field.type], _MOST[field.type]
    return draw(
        st.sampled_from([n for n in _INTEGERS if low <= n <= high])
        if strange
        else st.integers(1, 1000)
    )
