"""Suggestion for a misspelt word, and the message that refuses it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` for the most similar word; "" if none is similar."""
    words = {word.lower(): word for word in known}
    near = difflib.get_close_matches(given.lower(), words, n=1)
    return f"did you mean '{words[near[0]]}'? " if near else ""


def unknown(
    what: str, given: str, known: Iterable[str], *, where: str = "", choices: str = ""
) -> str:
    """Return the message that refuses a name.

    Args:
        what: Word for the name, such as ``"space"``.
        given: Refused name.
        known: Valid names.
        where: Words after the name, such as ``"of table.parquet"``.
        choices: Remedy that replaces the list of valid names.
    """
    names = list(known)
    remedy = choices or (f"choose {', '.join(names)}" if names else "there is none")
    place = f" {where}" if where else ""
    return f"unknown {what} '{given}'{place}: {nearest(given, names)}{remedy}"
