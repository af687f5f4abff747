"""How much memory a model takes, by the kernel's high-water mark; Linux alone keeps one."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

_SELF = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs
_SLACK_KIB = 4096
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ .*$", re.MULTILINE)
_RESIDENT = re.compile(r"^Rss:\s*(\d+) kB$", re.MULTILINE)


class PeakMemory:
    """The peak that a process with one model alone would have, from a process with several.

    Made while the process holds no model. Code of the runtime that earlier models have brought into
    memory counts for later ones too: alone, they would bring it in themselves.

    Args:
        folder: the process's in ``/proc``.
    """

    def __init__(self, folder: Path = _SELF) -> None:
        self._folder = folder
        self._bare = _kib(folder, "VmRSS")
        self._bare_code = _code_kib(folder)
        self._more_code = 0
        self._before: int | None = None

    def begin(self) -> None:
        """From here on counts; memory that models left behind is given back first."""
        gc.collect()
        _give_back()
        self._before = _kib(self._folder, "VmRSS")
        self._more_code = max(_code_kib(self._folder) - self._bare_code, 0)
        try:
            (self._folder / "clear_refs").write_text(_RESET_PEAK)
        except OSError:
            self._before = None
            return
        peak = _kib(self._folder, "VmHWM")
        if self._before is not None and peak is not None and peak > self._before + _SLACK_KIB:
            self._before = None  # an emulator that ignores it

    def peak_bytes(self) -> int | None:
        """Since :meth:`begin`, without the other models; None where the system does not tell."""
        peak = _kib(self._folder, "VmHWM")
        if peak is None or self._before is None or self._bare is None:
            return None
        return (max(peak - self._before, 0) + self._bare + self._more_code) * 1024


def _kib(folder: Path, what: str) -> int | None:
    try:
        status = (folder / "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{what}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else None


def _code_kib(folder: Path) -> int:
    """Return how much of the shared libraries is in memory; 0 where the system does not tell."""
    try:
        text = (folder / "smaps").read_text()
    except OSError:
        return 0
    mappings = _MAPPING.findall(text)
    resident = map(int, _RESIDENT.findall(text))
    return sum(kib for line, kib in zip(mappings, resident, strict=False) if ".so" in line)


def _give_back() -> None:
    """Else the next model would fill what is free already, and seem to take nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # glibc alone has it; Windows has no CDLL(None)
