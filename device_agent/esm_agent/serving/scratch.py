"""Temporary folder for uploads, which the next agent removes if its own agent was killed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esm_protos.locks import lock

PREFIX = "esm-agent-uploads-"
"""Beginning of the names of scratch folders."""
_NAME = re.compile(re.escape(PREFIX) + "[0-9a-f]{8}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_TRIES = 20


class Scratch:
    """New folder, locked while this process lives; folders of dead agents are removed.

    The lock shows whether an agent lives. A process id does not, because containers number their
    processes separately. A folder that cannot be locked is never removed by another agent.

    Args:
        base: Folder to create it in; None for the system's temporary folder.

    Raises:
        OSError: the folder cannot be created; a full disk is not an error.
    """

    def __init__(self, base: Path | None = None) -> None:
        base = base or _temporary()
        for folder in base.glob(f"{PREFIX}*"):
            if _NAME.fullmatch(folder.name):
                _remove_abandoned(folder)
        for _ in range(_TRIES):  # another agent may remove it before it is locked
            self.path = base / f"{PREFIX}{secrets.token_hex(4)}"
            self._lock = None
            try:
                self.path.mkdir(mode=0o700)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                return  # created later, when a block needs it
            self._lock = _locked(self.path)
            if self._is_ours():
                return
            self._unlock()
        raise FileExistsError(errno.EEXIST, "cannot lock a folder for this agent", str(base))

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Create a folder in it for the duration of the context.

        The scratch folder itself is created again if it is gone, because systems delete temporary
        files after some days.

        Raises:
            OSError: the folder cannot be created, or another user has one of this name.
        """
        if not self._is_ours():
            self._make_again()
        with tempfile.TemporaryDirectory(dir=self.path, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Remove the folder with its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _is_ours(self) -> bool:
        if self._lock is None:
            return False
        try:
            current, locked = self.path.lstat(), os.fstat(self._lock)
        except OSError:
            return False
        return (current.st_dev, current.st_ino) == (locked.st_dev, locked.st_ino)

    def _make_again(self) -> None:
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        status = self.path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "another user has this name", str(self.path))
        lock = _locked(self.path)
        if lock is not None:
            self._unlock()
            self._lock = lock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        text = "no folder for temporary files is writable: set TMPDIR to one"
        raise OSError(error.errno, text) from None


def _locked(folder: Path) -> int | None:
    """Lock a folder, and return the descriptor that holds the lock.

    Returns:
        None if another process holds the lock. On a file system without locks, a descriptor
        without a lock.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        lock(descriptor, wait=False)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder if its agent is dead."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another user's, or gone
        return
    try:
        if lock(descriptor, wait=False):  # without locks the agent may be alive
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its agent is alive
        pass
    finally:
        os.close(descriptor)
