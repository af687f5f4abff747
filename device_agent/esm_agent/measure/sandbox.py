"""Confinement of the measuring process, which runs untrusted models in native code.

The process confines itself before it loads the runtime. A measure that the system does not
support is skipped. :func:`confine` returns the names of those that took effect.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import re
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from esm_agent.device.facts import memory_bytes, usable_cpus
from esm_agent.device.machine import cpu_list

MIN_MEMORY_BYTES = 256 << 20
"""Minimum memory limit; the runtime itself needs about as much."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def size_bytes(flag: str, text: str) -> int:
    """Return a size such as ``1500M`` or ``2G`` in bytes.

    Raises:
        ValueError: it is not a size; the message names ``flag``.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{flag} {text}: give a size such as 1500M or 2G")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def default_memory_bytes() -> int:
    """Return three quarters of the memory; the agent and the system need the rest."""
    return memory_bytes() * 3 // 4


@dataclass(frozen=True)
class Confinement:
    """Limits of the measuring process.

    Attributes:
        memory_bytes: Limit of its data, as RLIMIT_DATA counts it.
        cpus: Processors to run on; empty for those of the agent.
        folder: Folder for its temporary files, emptied first; None for the system's.
    """

    memory_bytes: int = field(default_factory=default_memory_bytes)
    cpus: tuple[int, ...] = ()
    folder: Path | None = None

    @classmethod
    def parse(cls, memory_limit: str | None, cpus: str | None) -> Confinement:
        """Return the confinement for the options of a command line.

        Raises:
            ValueError: an option is invalid; the message names it.
        """
        size = default_memory_bytes()
        if memory_limit is not None:
            size = size_bytes("--memory-limit", memory_limit)
            if not MIN_MEMORY_BYTES <= size < 2**60:
                raise ValueError(
                    f"--memory-limit {memory_limit}: give {MIN_MEMORY_BYTES >> 20}M or more"
                )
        chosen = cpu_list(cpus)
        if cpus is not None and not (chosen and set(chosen) <= set(usable_cpus())):
            usable = ",".join(map(str, usable_cpus()))
            raise ValueError(f"--cpus {cpus}: choose from {usable}, such as {usable_cpus()[-1]}")
        return cls(size, chosen)


def leave_cpus(cpus: tuple[int, ...]) -> None:
    """Move this program off the processors that run models, if there are others."""
    others = set(usable_cpus()) - set(cpus)
    if cpus and others:
        with contextlib.suppress(OSError):
            _pin(others)


def confine(confinement: Confinement) -> tuple[str, ...]:
    """Confine this process permanently, and return the names of the measures that took effect."""
    measures: dict[str, Callable[[], None]] = {
        "memory": lambda: _limit_memory(confinement.memory_bytes),
        "cores": _no_core_dumps,
        "network": _no_network,
    }
    if confinement.cpus:
        measures["cpus"] = lambda: _pin(set(confinement.cpus))
    if confinement.folder is not None:
        folder = confinement.folder
        measures["tmp"] = lambda: _move_into(folder)
    return tuple(name for name, apply in measures.items() if _took(apply))


def _took(apply: Callable[[], None]) -> bool:
    try:
        apply()
    except (OSError, ValueError):
        return False
    return True


def _limit_memory(size: int) -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "this system does not count data")
    import resource

    # If the device still runs out of memory, the kernel kills this process, not the agent.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Not RLIMIT_AS: it also counts reserved address space, and CUDA reserves a lot.
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return
    raise OSError(errno.ENOSYS, "an emulator that ignores the limit")


def _no_core_dumps() -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "this system has no limits")
    import resource

    # With 0 the kernel would still pipe a core dump to a handler; with 1 it does not.
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _pin(cpus: set[int]) -> None:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "this system does not pin")
    for thread in os.listdir("/proc/self/task"):  # numpy has already started threads
        os.sched_setaffinity(int(thread), cpus)


def _move_into(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    os.chdir(folder)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # so that tempfile reads TMPDIR again


# Seccomp (linux/seccomp.h, linux/filter.h, linux/audit.h).

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_LOAD, _EQUAL, _NOT_BELOW, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data
_X32 = 0x40000000  # first number of the x32 system calls of x86_64
_IO_URING_SETUP = 425  # can create sockets without socket(2)


@dataclass(frozen=True)
class _Architecture:
    audit: int
    socket: int
    seccomp: int


_ARCHITECTURES = {
    "x86_64": _Architecture(audit=0xC000003E, socket=41, seccomp=317),
    "aarch64": _Architecture(audit=0xC00000B7, socket=198, seccomp=277),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _no_network() -> None:
    """Make socket(2) fail with EACCES in all threads, except for AF_UNIX."""
    architecture = _ARCHITECTURES.get(platform.machine())
    if sys.platform != "linux" or architecture is None or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, "no filter for this system")
    code = _filter(architecture)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(code) // 8, code)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    # prctl(2) would not apply to the threads that numpy has started; seccomp(2) does.
    arguments = (architecture.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC)
    if libc.syscall(*map(ctypes.c_long, arguments), ctypes.byref(program)) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except PermissionError:
        return
    raise OSError(errno.ENOSYS, "an emulator that ignores the filter")


def _filter(architecture: _Architecture) -> bytes:
    """Return the filter in classic BPF, in which jumps count instructions to skip."""
    refuse, allow = 8, 9
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 0, refuse - 2, architecture.audit),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_NOT_BELOW, refuse - 4, 0, _X32),
        (_EQUAL, refuse - 5, 0, _IO_URING_SETUP),
        (_EQUAL, 0, allow - 6, architecture.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_EQUAL, allow - 8, 0, socket.AF_UNIX),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
