"""Detection of terminals: escape sequences, colours and width."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}
_USUAL = 80


def shows_escapes(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that shows escape sequences.

    False if TERM is "dumb" or NO_COLOR has a value (https://no-color.org).
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def styled(text: str, style: str, stream: TextIO) -> str:
    """Return text in bold, red, green or yellow if the stream shows it; else unchanged."""
    return f"\033[{_CODES[style]}m{text}\033[0m" if shows_escapes(stream) else text


def width_of(stream: TextIO) -> int | None:
    """Return the columns of a terminal; None if the stream is not a terminal."""
    if not stream.isatty():
        return None
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or _USUAL
