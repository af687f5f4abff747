"""Detection of terminals that take escape sequences, and of users who want them."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}
_USUAL = 80


def shows_escapes(stream: TextIO) -> bool:
    """Whether a stream is a terminal that may get colours and moves of its cursor.

    It may not where TERM is dumb, or NO_COLOR has a value (https://no-color.org).
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def styled(text: str, style: str, stream: TextIO) -> str:
    """Return text in bold, red, green or yellow where the stream shows that; else as it is."""
    return f"\033[{_CODES[style]}m{text}\033[0m" if shows_escapes(stream) else text


def width_of(stream: TextIO) -> int | None:
    """Return the columns of a terminal; None where the stream is none and lines may be long."""
    if not stream.isatty():
        return None
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
