"""Division of messages above gRPC's size limit into pieces that merge back into one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

PIECE_BYTES = 1 << 20
"""Size of a piece, far below gRPC's limit of 4 MB. A single item of a list is not divided."""

_VARINT_BYTES = 10
_LARGE = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)

M = TypeVar("M", bound=Message)


def pieces(message: M) -> Iterator[M]:
    """Yield the pieces of a message, each of about ``PIECE_BYTES`` at most.

    Merged in order they give ``message``. The first piece has all fields that are not lists. A
    small message is its only piece.
    """
    if message.ByteSize() <= PIECE_BYTES:
        yield message
        return
    kind = type(message)
    first, lists = kind(), []
    for field, value in message.ListFields():
        if field.is_repeated:
            lists.append((field, value))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            head, *rest = pieces(value)
            getattr(first, field.name).CopyFrom(head)
            lists += [(field, each) for each in rest]
        else:
            setattr(first, field.name, value)
    yield first
    for field, value in lists:
        if not field.is_repeated:
            yield kind(**{field.name: value})
        elif field.type in _LARGE:
            yield from _item_pieces(kind, field.name, value)
        else:
            count = PIECE_BYTES // _VARINT_BYTES
            for start in range(0, len(value), count):
                yield kind(**{field.name: value[start : start + count]})


def _item_pieces(kind: type[M], name: str, items: Iterable[object]) -> Iterator[M]:
    piece, size = kind(), 0
    for item in items:
        alone = kind(**{name: [item]})
        item_bytes = alone.ByteSize()
        if size + item_bytes > PIECE_BYTES and size:
            yield piece
            piece, size = kind(), 0
        piece.MergeFrom(alone)
        size += item_bytes
    if size:
        yield piece
