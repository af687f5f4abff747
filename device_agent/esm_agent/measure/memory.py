"""Peak memory of a model, from the kernel's high-water mark, which only Linux keeps."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

_SELF = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_OWN_MAPPING = 16 << 10
"""Size of allocations, bytes, from which each has a mapping of its own during a measurement.

The C library keeps and reuses the memory of smaller ones, so a peak depends on what was loaded
before. Its own threshold grows to megabytes as models are freed.
"""
_USUAL_MAPPING = 32 << 20
"""Largest size that the C library's own threshold grows to."""
_MOST_PLUGGED = 1 << 30
"""Size of the largest free part of the heap that is looked for, bytes."""
_SLACK_KIB = 4096
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ .*$", re.MULTILINE)
_RESIDENT = re.compile(r"^Rss:\s*(\d+) kB$", re.MULTILINE)


class PeakMemory:
    """Peak memory that a model would need alone, measured in a process with several models.

    Create it before the process loads a model. Code of the runtime that earlier models have loaded
    counts for later ones too, as they would load it themselves.

    Args:
        folder: Folder of the process in ``/proc``.
    """

    def __init__(self, folder: Path = _SELF) -> None:
        self._folder = folder
        self._allocator = _Allocator()
        self._bare = _kib(folder, "VmRSS")
        self._bare_code = _code_kib(folder)
        self._more_code = 0
        self._before: int | None = None

    def begin(self) -> None:
        """Begin a measurement, after returning the memory of earlier models to the system.

        Call :meth:`end` after it, whatever happens.
        """
        self._allocator.unplug()
        gc.collect()
        self._allocator.map_from(_OWN_MAPPING)
        self._allocator.give_back()
        self._allocator.plug(_OWN_MAPPING)
        self._before = _kib(self._folder, "VmRSS")
        self._more_code = max(_code_kib(self._folder) - self._bare_code, 0)
        try:
            (self._folder / "clear_refs").write_text(_RESET_PEAK)
        except OSError:
            self._before = None
            return
        peak = _kib(self._folder, "VmHWM")
        if self._before is not None and peak is not None and peak > self._before + _SLACK_KIB:
            self._before = None  # emulators may ignore the reset

    def peak_bytes(self) -> int | None:
        """Return the peak since :meth:`begin`, without other models; None if unknown."""
        peak = _kib(self._folder, "VmHWM")
        if peak is None or self._before is None or self._bare is None:
            return None
        return (max(peak - self._before, 0) + self._bare + self._more_code) * 1024

    def end(self) -> None:
        """End a measurement: memory is allocated as usual."""
        self._allocator.unplug()
        self._allocator.map_from(_USUAL_MAPPING)


def _kib(folder: Path, what: str) -> int | None:
    try:
        status = (folder / "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{what}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else None


def _code_kib(folder: Path) -> int:
    """Return the resident size of the shared libraries, KiB; 0 if the system does not report it."""
    try:
        text = (folder / "smaps").read_text()
    except OSError:
        return 0
    mappings = _MAPPING.findall(text)
    resident = map(int, _RESIDENT.findall(text))
    return sum(kib for line, kib in zip(mappings, resident, strict=False) if ".so" in line)


class _Allocator:
    """Allocator of the C library: glibc's; of others it changes nothing."""

    def __init__(self) -> None:
        self._plugs: list[int] = []
        try:
            library = ctypes.CDLL(None)
            self._mallopt, self._trim = library.mallopt, library.malloc_trim
            self._malloc, self._free = library.malloc, library.free
        except (AttributeError, OSError, TypeError):
            self._is_known = False  # only glibc has malloc_trim; Windows has no CDLL(None)
            return
        self._is_known = True
        self._malloc.restype, self._malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        self._free.restype, self._free.argtypes = None, [ctypes.c_void_p]

    def give_back(self) -> None:
        """Return free memory to the system.

        Otherwise the next model would reuse it, and seem to take no memory.
        """
        if self._is_known:
            self._trim(0)

    def map_from(self, size: int) -> None:
        """Give allocations from this size on, bytes, a mapping that is freed with each.

        Free memory of the heap is still preferred.
        """
        if self._is_known:
            self._mallopt(_MMAP_THRESHOLD, size)
            self._mallopt(_TRIM_THRESHOLD, 2 * size)  # the C library's own ratio

    def plug(self, least: int) -> None:
        """Take all free memory of the heap in parts of this size or more, bytes, untouched.

        So allocations of this size have mappings of their own.
        """
        size = _MOST_PLUGGED if self._is_known else 0
        while size >= least:
            place = self._malloc(size)
            if place and not _is_mapped(place):
                self._plugs.append(place)
                continue
            if place:
                self._free(place)
            size //= 2

    def unplug(self) -> None:
        """Free what :meth:`plug` took."""
        while self._plugs:
            self._free(self._plugs.pop())


def _is_mapped(place: int) -> bool:
    """Return whether an allocation of glibc has a mapping of its own, from its header."""
    header = ctypes.c_size_t.from_address(place - ctypes.sizeof(ctypes.c_size_t))
    return bool(header.value & 2)
