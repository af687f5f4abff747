"""Suggestion for a misspelt word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'? `` for the most similar word; "" if none is similar."""
    words = {word.lower(): word for word in known}
    near = difflib.get_close_matches(given.lower(), words, n=1)
    return f"did you mean '{words[near[0]]}'? " if near else ""
