"""Integers in memory that the agent and its measuring process share."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import IO, Any


class Cells:
    """Integers in memory that can be shared with a spawned process.

    multiprocessing's RawArray uses /dev/shm, which may be read-only.

    Args:
        count: Number of integers; they start at 0.

    Raises:
        OSError: no shared memory is available.
    """

    def __init__(self, count: int) -> None:
        file: IO[bytes] = _memory()
        file.truncate(count * ctypes.sizeof(ctypes.c_int64))
        self._map(file, count)

    def _map(self, file: IO[bytes], count: int) -> None:
        self._file = file  # passed to the process
        self._count = count
        self._numbers = (ctypes.c_int64 * count).from_buffer(mmap.mmap(file.fileno(), 0))

    def __getitem__(self, index: Any) -> Any:
        return self._numbers[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._numbers[index] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (reduction.DupFd(self._file.fileno()), self._count)


def _memory() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("esm-cells"), "w+b")
    return tempfile.TemporaryFile()


def _restore(descriptor: Any, count: int) -> Cells:
    cells = Cells.__new__(Cells)
    cells._map(os.fdopen(descriptor.detach(), "r+b"), count)
    return cells
