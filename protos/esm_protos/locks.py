"""Locks on files, which not every file system has."""

from __future__ import annotations

import errno
import fcntl
from typing import IO

# NFS says EBADF for a folder, which cannot be opened for writing.
_NONE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


def lock(file: IO[bytes] | int, wait: bool) -> bool:
    """Lock an open file, until it is closed, against every other program.

    Returns:
        Whether it is locked; False on a file system without locks.

    Raises:
        BlockingIOError: another program has it locked, and ``wait`` is not set.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NONE:
            raise
        return False
    return True
