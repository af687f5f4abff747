"""Parsing and checking of all messages from a peer: a message is accepted or refused as a whole.

Both sides parse every message with :func:`received`. The checks use the type and the unit of a
field, so a new field is checked too:

- numbers are finite and fit into 63 bits; durations fit into 53 bits of nanoseconds;
- fractional numbers are not negative, except temperatures and values of metrics;
- enumerations have a number that this side defines;
- lists and names have a maximum length;
- maps hold text or integers by text, which a peer compares;
- text for people is made printable and shortened (:mod:`esm_protos.text`). Names that a peer
  compares stay unchanged.

:mod:`esm_protos.convert` checks whether the fields of a message agree with each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from esm_protos.text import foreign

LONGEST_NAME = 4096
"""Maximum characters of a name that a peer compares; a model's name may be its path."""
MOST_NUMBERS = 1_000_000
"""Maximum numbers in a list: the maximum counted runs of a model."""
MOST_ITEMS = 100_000
"""Maximum messages or texts in a list; some exporters write a file for every tensor."""

_GREATEST = 2**63 - 1
_GREATEST_NS = 2**53  # 104 days
_UNITS = {"ns": "ns", "s": "s", "mhz": "MHz", "c": "C", "w": "W", "bytes": "bytes"}
_COMPARED = {"location", "input"}  # and all that end in _id

M = TypeVar("M", bound=Message)


class NonsenseError(ValueError):
    """Invalid message from a peer; the error text is one line."""


def received(kind: type[M], data: bytes) -> M:
    """Parse and check a message from a peer.

    Raises:
        NonsenseError: the bytes are not a message of this kind, or a field is invalid.
    """
    try:
        message: M = kind.FromString(data)
    except DecodeError:
        raise NonsenseError(f"{len(data)} bytes are not a {kind.DESCRIPTOR.name}") from None
    check(message)
    return message


def check(message: Message) -> None:
    """Check all fields of a message, and make its text printable.

    Raises:
        NonsenseError: a field is invalid.
    """
    check_lengths(message)
    for field, value in message.ListFields():
        name = field.name
        if _is_map(field):
            _check_map(name, value)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for each in value if _is_list(field) else (value,):
                check(each)
        elif field.type == FieldDescriptor.TYPE_STRING:
            _check_text(message, field, value)
        elif field.type == FieldDescriptor.TYPE_ENUM:
            known = field.enum_type.values_by_number
            for number in value if _is_list(field) else (value,):
                if number not in known:
                    raise NonsenseError(f"unknown {_words(name)} number {number}")
        elif field.type in _FLOATS:
            _check_floats(name, value if _is_list(field) else (value,))
        elif field.type not in (FieldDescriptor.TYPE_BOOL, FieldDescriptor.TYPE_BYTES):
            _check_integers(name, value if _is_list(field) else (value,))


def check_lengths(message: Message) -> None:
    """Check the lengths of a message's lists; a partly merged message can be checked too.

    Raises:
        NonsenseError: a list is too long.
    """
    for field, value in message.ListFields():
        if _is_list(field):
            large = field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING)
            most = MOST_ITEMS if large else MOST_NUMBERS
            if len(value) > most:
                raise NonsenseError(f"a list of {len(value)} {_words(field.name)}: {most} at most")
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            check_lengths(value)


def nonsense(name: str, value: float) -> NonsenseError:
    """Return the error for a field's value: ``latency of 0 ns``."""
    stem, _, unit = name.rpartition("_")
    if stem and unit in _UNITS:
        return NonsenseError(f"{_words(stem)} of {value} {_UNITS[unit]}")
    return NonsenseError(f"{_words(name)} of {value}")


_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)


def _is_list(field: Any) -> bool:
    return bool(field.is_repeated)


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _check_map(name: str, entries: Mapping[str, object]) -> None:
    """Names and values are compared: they stay as they are."""
    values = entries.values()
    longest = max(len(text) for text in (*entries, *values) if isinstance(text, str))
    if longest > LONGEST_NAME:
        raise NonsenseError(f"{_words(name)} of {longest} letters: {LONGEST_NAME} at most")
    if numbers := [number for number in values if not isinstance(number, str)]:
        _check_integers(name, numbers)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _check_text(message: Message, field: Any, value: Any) -> None:
    name = field.name
    texts = value if _is_list(field) else (value,)
    if name.endswith("_id") or name in _COMPARED:
        longest = max(map(len, texts))
        if longest > LONGEST_NAME:
            raise NonsenseError(f"{_words(name)} of {longest} characters: {LONGEST_NAME} at most")
    elif _is_list(field):
        value[:] = [foreign(text) for text in texts]
    else:
        setattr(message, name, foreign(value))


def _check_floats(name: str, values: Iterable[float]) -> None:
    least = -math.inf if name.endswith("_c") or name == "value" else 0.0
    most = _GREATEST_NS if name.endswith("ns") else _GREATEST
    for value in values:
        if not (math.isfinite(value) and least <= value <= most):
            raise nonsense(name, value)


def _check_integers(name: str, values: Any) -> None:
    most = _GREATEST_NS if name.endswith("_ns") else _GREATEST
    for value in (min(values), max(values)):
        if abs(value) > most:
            raise nonsense(name, value)
