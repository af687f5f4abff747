"""How much memory a model takes, by the kernel's high-water mark; Linux alone keeps one."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

_SELF = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), clear_refs
_SLACK_KIB = 4096


class PeakMemory:
    """The peak that a process with one model alone would have, from a process with several.

    Made while the process holds no model.

    Args:
        folder: the process's in ``/proc``.
    """

    def __init__(self, folder: Path = _SELF) -> None:
        self._folder = folder
        self._bare = _kib(folder, "VmRSS")
        self._before: int | None = None

    def begin(self) -> None:
        """From here on counts; memory that models left behind is given back first."""
        gc.collect()
        _give_back()
        self._before = _kib(self._folder, "VmRSS")
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
        return max(peak - self._before, 0) * 1024 + self._bare * 1024


def _kib(folder: Path, what: str) -> int | None:
    try:
        status = (folder / "status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{what}:\s*(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else None


def _give_back() -> None:
    """Else the next model would fill what is free already, and seem to take nothing."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return  # glibc alone has it; Windows has no CDLL(None)
