"""The word that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(given: str, known: Iterable[str]) -> str:
    """``did you mean 'x'? ``, or nothing where nothing is near."""
    words = {word.lower(): word for word in known}
    near = difflib.get_close_matches(given.lower(), words, n=1)
    return f"did you mean '{words[near[0]]}'? " if near else ""
