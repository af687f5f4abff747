"""Control groups of this process: their limits and counters (Linux, cgroups(7)).

The limits of all parent groups apply too, so every value covers the process's own group and its
visible parents. File names differ between versions 1 and 2. Both are read, because a system can
mount both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esm_agent.device import sysfs

_OCTAL = re.compile(r"\\([0-7]{3})")  # mountinfo's form of spaces in paths


@dataclass(frozen=True)
class CpuCounters:
    """Counters of CPU bandwidth control since the groups were created.

    Attributes:
        periods: Periods in which the group ran.
        throttled: Periods in which the quota stopped it.
        throttled_s: Total time for which it was stopped, seconds.
    """

    periods: int
    throttled: int
    throttled_s: float


@dataclass(frozen=True)
class ControlGroups:
    """Folders of this process's control groups: its own first, then the parents.

    Attributes:
        cpu: Groups of the controller that limits processor time; empty without one.
        memory: Groups of the controller that limits memory; empty without one.
    """

    cpu: tuple[Path, ...] = ()
    memory: tuple[Path, ...] = ()

    def cpu_quota(self) -> float | None:
        """Return the quota of processor time, in processors; None without a limit."""
        return min((q for q in map(_quota, self.cpu) if q is not None), default=None)

    def cpu_counters(self) -> CpuCounters | None:
        """Return the counters of bandwidth control; None if no group has any.

        A stop of any group stops the process, so stops are added up.
        """
        counters = [c for c in map(_counters, self.cpu) if c is not None]
        if not counters:
            return None
        return CpuCounters(
            max(c.periods for c in counters),
            sum(c.throttled for c in counters),
            sum(c.throttled_s for c in counters),
        )

    def memory_limit(self) -> int | None:
        """Return the smallest limit, bytes; version 1 without a limit gives a huge number."""
        return min((n for n in map(_memory_limit, self.memory) if n is not None), default=None)

    def memory_available(self) -> int | None:
        """Return the bytes left below the limits; None without a limit.

        Inactive cached files count as free, as in the kernel's MemAvailable.
        """
        left = []
        for group in self.memory:
            limit, used = _memory_limit(group), _first_number(group, _MEMORY_USED)
            if limit is not None and used is not None:
                stat = _fields(group / "memory.stat")
                cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
                left.append(max(limit - max(used - cached, 0), 0))
        return min(left, default=None)


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return the number of processes that the kernel killed for lack of memory; None if unknown.

    The count is that of this process's own control group, or else of the whole machine.
    """
    for group in read_groups(root).memory[:1]:
        for name in ("memory.events", "memory.oom_control"):
            if (kills := _fields(group / name).get("oom_kill")) is not None:
                return kills
    return _fields(root / "proc/vmstat").get("oom_kill")


def read_groups(root: Path = Path("/")) -> ControlGroups:
    """Return this process's control groups.

    Args:
        root: Folder that holds ``proc`` and ``sys``; for tests.
    """
    mounts = list(_mounts(root))
    groups: dict[str, tuple[Path, ...]] = {}
    # Version 1 first: a controller that it has is not in version 2.
    lines = (sysfs.read(root / "proc/self/cgroup") or "").splitlines()
    for line in sorted(lines, key=lambda line: line.startswith("0::")):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not path:
            continue
        for name in ("cpu", "memory"):
            if name in groups or (controllers and name not in controllers.split(",")):
                continue
            groups[name] = _folders(root, mounts, controllers, path)
    return ControlGroups(groups.get("cpu", ()), groups.get("memory", ()))


@dataclass(frozen=True)
class _Mount:
    """Mounted hierarchy and the group at its top; version 2 has no list of controllers."""

    controllers: frozenset[str]
    group: str
    folder: Path


def _mounts(root: Path) -> Iterator[_Mount]:
    """Yield the mounted hierarchies from mountinfo (proc(5)).

    A line is ``ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE SUPER_OPTIONS``. The
    super options of version 1 name the controllers.
    """
    for line in (sysfs.read(root / "proc/self/mountinfo") or "").splitlines():
        before, separator, after = line.partition(" - ")
        fields, source = before.split(), after.split()
        if not separator or len(fields) < 5 or len(source) < 3:
            continue
        if source[0] not in ("cgroup", "cgroup2"):
            continue
        group, point = (_OCTAL.sub(lambda o: chr(int(o[1], 8)), text) for text in fields[3:5])
        controllers = source[2].split(",") if source[0] == "cgroup" else ()
        yield _Mount(frozenset(controllers), group, root / point.lstrip("/"))


def _folders(root: Path, mounts: list[_Mount], controllers: str, path: str) -> tuple[Path, ...]:
    wanted = set(filter(None, controllers.split(",")))
    for mount in mounts:
        if wanted <= mount.controllers if wanted else not mount.controllers:
            top, inside = mount.folder, _below(path, mount.group)
            break
    else:  # the usual location
        top, inside = root / "sys/fs/cgroup" / controllers, path.lstrip("/")
    folder = top / inside
    if not folder.is_dir():  # in a container: only its own group is visible, under the host's path
        folder = top
    return tuple(g for g in (folder, *folder.parents) if g == top or top in g.parents)


def _below(path: str, group: str) -> str:
    """Return the path of a group below the mounted one; "" if it is outside."""
    if group != "/" and (path == group or path.startswith(f"{group}/")):
        path = path[len(group) :]
    parts = [part for part in path.split("/") if part]
    return "" if ".." in parts else "/".join(parts)


def _quota(group: Path) -> float | None:
    words = (sysfs.read(group / "cpu.max") or "").split()
    if not words:
        words = [
            sysfs.read(group / name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        ]
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    return None  # "max", or -1: no limit


def _counters(group: Path) -> CpuCounters | None:
    stat = _fields(group / "cpu.stat")
    if "nr_periods" not in stat or "nr_throttled" not in stat:
        return None  # the root of version 2
    if "throttled_usec" in stat:
        stopped_s = stat["throttled_usec"] / 1e6
    else:
        stopped_s = stat.get("throttled_time", 0) / 1e9
    return CpuCounters(stat["nr_periods"], stat["nr_throttled"], stopped_s)


_MEMORY_LIMIT = ("memory.max", "memory.limit_in_bytes")
_MEMORY_USED = ("memory.current", "memory.usage_in_bytes")


def _memory_limit(group: Path) -> int | None:
    return _first_number(group, _MEMORY_LIMIT)


def _first_number(group: Path, names: tuple[str, ...]) -> int | None:
    for name in names:
        if (value := sysfs.number(group / name)) is not None:
            return value
    return None


def _fields(path: Path) -> dict[str, int]:
    """Return the numbers of a file with lines of a name and a number."""
    fields = {}
    for line in (sysfs.read(path) or "").splitlines():
        name, _, text = line.partition(" ")
        if (value := sysfs.parse(text)) is not None:
            fields[name] = value
    return fields
