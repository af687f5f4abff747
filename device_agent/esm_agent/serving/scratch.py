"""A folder of the agent's own for uploads, which no killed agent leaves behind for good."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def temporary_folder(scratch: Path) -> Iterator[Path]:
    """A folder in ``scratch``, which is made again should it be gone: systems clear their temporary
    files of what has not been touched for days.

    Raises:
        OSError: it cannot be made, or somebody else has taken its name.
    """
    try:
        scratch.mkdir(mode=0o700)
    except FileExistsError:
        found = scratch.lstat()
        if not stat.S_ISDIR(found.st_mode) or (os.name == "posix" and found.st_uid != os.getuid()):
            raise PermissionError(errno.EPERM, "somebody else's", str(scratch)) from None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield Path(folder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True
