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
_made: set[Path] = set()
"""By this process, which may have the number of one that is gone: the first of a container's."""


def make_scratch(base: Path | None = None) -> Path:
    """Make a fresh folder named after this process; remove those of processes that are gone.

    Args:
        base: where; None: where temporary files are.

    Raises:
        OSError: it cannot be made.
    """
    base = base or _temporary()
    for folder in base.glob(f"{_PREFIX}*"):
        pid, _, _ = folder.name.removeprefix(_PREFIX).partition("-")
        if not pid.isdigit() or folder in _made:
            continue
        if int(pid) == os.getpid() or not _alive(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
    # A name that nobody else can have taken before.
    scratch = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))  # mode 0700
    _made.add(scratch)
    return scratch


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        text = "no folder for temporary files can be written to: set TMPDIR to one"
        raise OSError(error.errno, text) from None


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
