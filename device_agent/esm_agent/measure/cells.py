"""Numbers that the agent and its measuring process share while both run."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import IO, Any


class Cells:
    """Whole numbers in memory that a spawned process gets as well.

    Not multiprocessing's RawArray: that keeps its memory in /dev/shm, which may be read-only.

    Args:
        count: how many, at first 0.

    Raises:
        OSError: there is no memory to share.
    """

    def __init__(self, count: int) -> None:
        file: IO[bytes] = _memory()
        file.truncate(count * ctypes.sizeof(ctypes.c_int64))
        self._map(file, count)

    def _map(self, file: IO[bytes], count: int) -> None:
        self._file = file  # to be handed to the process
        self._count = count
        self._numbers = (ctypes.c_int64 * count).from_buffer(mmap.mmap(file.fileno(), 0))

    def __getitem__(self, index: Any) -> Any:
        return self._numbers[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._numbers[index] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (reduction.DupFd(self._file.fileno()), self._count)


def _memory() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("esm-cells"), "w+b")
    return tempfile.TemporaryFile()


def _received(descriptor: Any, count: int) -> Cells:
    cells = Cells.__new__(Cells)
    cells._map(os.fdopen(descriptor.detach(), "r+b"), count)
    return cells
