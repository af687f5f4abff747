"""Files that are written whole or not at all, also when the program is killed meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Whole or not at all; numbers that JSON has no word for are a mistake."""
    write_bytes(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data)
    os.replace(draft, path)
