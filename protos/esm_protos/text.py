"""Text that is safe to print, counts with their nouns, and the install command of an extra."""

from __future__ import annotations

LONGEST_TEXT = 1000
"""Maximum characters of a message, a name or a description from a peer; longer text is cut."""


def printable(text: str) -> str:
    """Return text on one line, without control and direction characters.

    White space becomes a space, and any other unprintable character a question mark.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def foreign(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a peer's text in printable form, cut to ``longest`` characters."""
    return printable(text if len(text) <= longest else text[: longest - 1] + "…")


def counted(count: float, noun: str, form: str = "") -> str:
    """Return a count with its noun: ``1 model``, ``2 models``.

    Args:
        count: Count.
        noun: Noun whose plural ends with s.
        form: Format of the count, as in :func:`format`.
    """
    return f"{count:{form}} {noun}{'' if count == 1 else 's'}"


def install(extra: str) -> str:
    """Return the command that installs an extra; the project is on no package index."""
    return f"pip install '.[{extra}]' in a clone of esm-profiler"
