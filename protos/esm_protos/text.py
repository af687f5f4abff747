"""Text that others wrote, made safe to print."""

from __future__ import annotations

LONGEST_TEXT = 1000
"""Letters of a message, a name or a description; what is longer is cut."""


def printable(text: str, longest: int | None = LONGEST_TEXT) -> str:
    """Return text on one line, without control and direction characters, cut to a length.

    White space becomes a space; anything else that does not print becomes a question mark. Text
    that went through once does not change any more.

    Args:
        longest: letters that are kept; None keeps all.
    """
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
