"""A folder of the agent's own for uploads, which no killed agent leaves behind for good."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "esm-agent-uploads-"
_NAME = re.compile(re.escape(_PREFIX) + "[0-9a-f]{8}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TRIES = 20


class Scratch:
    """A fresh folder, locked while this process lives; those of dead agents are removed.

    The lock, and no process number, tells whether an agent lives: agents in containers of their own
    count processes anew. A folder that cannot be locked is never removed by another agent.

    Args:
        base: folder to make it in; None: the system's for temporary files.

    Raises:
        OSError: the folder cannot be made, for another reason than that the disk is full.
    """

    def __init__(self, base: Path | None = None) -> None:
        base = base or Path(tempfile.gettempdir())
        for folder in base.glob(f"{_PREFIX}*"):
            if _NAME.fullmatch(folder.name):
                _remove_abandoned(folder)
        for _ in range(_TRIES):  # another agent may take it for abandoned before it is locked
            self.path = base / f"{_PREFIX}{secrets.token_hex(4)}"
            self._lock = None
            try:
                self.path.mkdir(mode=0o700)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                return  # it is made when a block needs it
            self._lock = _locked(self.path)
            if self._is_ours():
                return
            self._unlock()
        raise FileExistsError(errno.EEXIST, "no folder of this agent's own", str(base))

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Make a folder in it for as long as the context lasts.

        The scratch folder itself is made again if it is gone: systems clear their temporary files
        of what has not been touched for days.

        Raises:
            OSError: it cannot be made, or another user has taken the name.
        """
        if not self._is_ours():
            self._make_again()
        with tempfile.TemporaryDirectory(dir=self.path, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _is_ours(self) -> bool:
        if self._lock is None:
            return False
        try:
            found, locked = self.path.lstat(), os.fstat(self._lock)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (locked.st_dev, locked.st_ino)

    def _make_again(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "another user has this name", str(self.path))
        lock = _locked(self.path)
        if lock is not None:
            self._unlock()
            self._lock = lock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(folder: Path) -> int | None:
    """Lock a folder, and return the descriptor that keeps the lock; None: another process has it.

    Where the file system has no locks the descriptor is returned all the same.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder whose agent is certainly dead."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, or gone
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its agent lives, or nobody can tell
        pass
    finally:
        os.close(descriptor)
