"""File locks, on file systems that support them."""

from __future__ import annotations

import errno
import fcntl
from typing import IO

# NFS returns EBADF for a folder, which cannot be opened for writing.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


def lock(file: IO[bytes] | int, wait: bool) -> bool:
    """Lock an open file against all other programs, until it is closed.

    Returns:
        Whether the file is locked; False on a file system without locks.

    Raises:
        BlockingIOError: another program holds the lock, and ``wait`` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True
