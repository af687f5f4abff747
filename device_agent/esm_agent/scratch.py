"""A folder of the agent's own for uploads, which no killed agent leaves behind for good."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "esm-agent-"


def make_scratch(base: Path | None = None) -> Path:
    """A fresh folder named after this process; those of processes that are gone are removed.

    Args:
        base: where; None: where temporary files are.
    """
    base = base or Path(tempfile.gettempdir())
    for folder in base.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX)
        if pid.isdigit() and (int(pid) == os.getpid() or not _alive(int(pid))):
            shutil.rmtree(folder, ignore_errors=True)
    scratch = base / f"{_PREFIX}{os.getpid()}"
    scratch.mkdir(mode=0o700)
    return scratch


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True
