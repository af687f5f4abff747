"""Files that are written when the measuring is over, and looked at before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from esm_host.errors import UsageError


def check_output(path: Path | None) -> None:
    """Raises UsageError unless ``--json`` can write there; nothing and - always can."""
    if path is None or str(path) == "-":
        return
    if not path.parent.is_dir():
        raise UsageError(f"--json {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--json {path} is a folder: give a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"--json {path} cannot be written: give another file")
