"""What docs/raspberry-pi.md tells its reader to type."""

from __future__ import annotations

import re
from pathlib import Path

GUIDE = Path(__file__).parents[2] / "docs" / "raspberry-pi.md"
PI, WORKSTATION = 'sh title="on the Pi"', 'sh title="on the workstation"'

_FENCED = re.compile(r"^```(?P<where>.*)\n(?P<lines>(?:(?!```).*\n)*)```$", re.MULTILINE)


def commands(where: str) -> list[str]:
    """Lines of the fenced blocks marked so, in the guide's order."""
    return [
        line
        for block in _FENCED.finditer(GUIDE.read_text())
        if block["where"] == where
        for line in block["lines"].splitlines()
    ]


def marks() -> set[str]:
    """How the guide's fenced blocks are marked."""
    return {block["where"] for block in _FENCED.finditer(GUIDE.read_text())}
