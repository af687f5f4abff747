"""Text that others wrote, made safe to print."""

from __future__ import annotations

LONGEST_TEXT = 1000
"""Letters of a message, a name or a description that a peer sends; what is longer is cut."""


def printable(text: str) -> str:
    """Return text on one line, without control and direction characters.

    White space becomes a space; anything else that does not print becomes a question mark.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def foreign(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a peer's text printable, and cut to ``longest`` letters."""
    return printable(text if len(text) <= longest else text[: longest - 1] + "…")


def install(extra: str) -> str:
    """Return how to install what an extra brings: the project is on no index."""
    return f"pip install '.[{extra}]' in a clone of esm-profiler"
