"""Control groups of this process: what they allow, and what became of it (Linux, cgroups(7)).

A limit of any group that the process's own group lies in holds as well, so every value is taken
over the own group and its parents, as far as they are visible. Files have other names in versions
1 and 2; both are read, since systems may mount both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esm_agent.device import sysfs

_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes spaces in paths


@dataclass(frozen=True)
class CpuCounters:
    """Counters of CPU bandwidth control, since the groups were made.

    Attributes:
        periods: in which the group ran.
        throttled: periods in which the quota stopped it.
        throttled_s: for how long it was stopped.
    """

    periods: int
    throttled: int
    throttled_s: float


@dataclass(frozen=True)
class ControlGroups:
    """Folders of this process's control groups: its own first, then those that it lies in.

    Attributes:
        cpu: of the controller that limits processor time; empty where there is none.
        memory: likewise of memory.
    """

    cpu: tuple[Path, ...] = ()
    memory: tuple[Path, ...] = ()

    def cpu_quota(self) -> float | None:
        """Return the processors' worth of time that the groups get; None without a limit."""
        return min((q for q in map(_quota, self.cpu) if q is not None), default=None)

    def cpu_counters(self) -> CpuCounters | None:
        """Return what bandwidth control counted; None where no group has such counters.

        A stop at any level stops the process, so stops add up.
        """
        counted = [c for c in map(_counters, self.cpu) if c is not None]
        if not counted:
            return None
        return CpuCounters(
            max(c.periods for c in counted),
            sum(c.throttled for c in counted),
            sum(c.throttled_s for c in counted),
        )

    def memory_limit(self) -> int | None:
        """Return the least limit in bytes, which in version 1 is a huge number without one."""
        return min((n for n in map(_memory_limit, self.memory) if n is not None), default=None)

    def memory_available(self) -> int | None:
        """Return the bytes that are left below the limits; None without any.

        Cached files that were not used lately count as free, as in the kernel's MemAvailable.
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
    """Return how many processes the kernel has killed for want of memory; None: not told.

    Counted in this process's own control group, or else on the whole machine.
    """
    for group in read_groups(root).memory[:1]:
        for name in ("memory.events", "memory.oom_control"):
            if (kills := _fields(group / name).get("oom_kill")) is not None:
                return kills
    return _fields(root / "proc/vmstat").get("oom_kill")


def read_groups(root: Path = Path("/")) -> ControlGroups:
    """Find this process's control groups.

    Args:
        root: where ``proc`` and ``sys`` are; for tests.
    """
    mounts = list(_mounts(root))
    found: dict[str, tuple[Path, ...]] = {}
    # Controllers of version 1 first: one that is there is not in version 2.
    lines = (sysfs.read(root / "proc/self/cgroup") or "").splitlines()
    for line in sorted(lines, key=lambda line: line.startswith("0::")):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not path:
            continue
        for name in ("cpu", "memory"):
            if name in found or (controllers and name not in controllers.split(",")):
                continue
            found[name] = _folders(root, mounts, controllers, path)
    return ControlGroups(found.get("cpu", ()), found.get("memory", ()))


@dataclass(frozen=True)
class _Mount:
    """A visible hierarchy, and the group that it is visible from; no controllers: version 2."""

    controllers: frozenset[str]
    group: str
    folder: Path


def _mounts(root: Path) -> Iterator[_Mount]:
    """From proc(5), mountinfo: ``ID PARENT MAJOR:MINOR ROOT POINT OPTIONS ... - TYPE SOURCE
    SUPER_OPTIONS``; the super options of version 1 name the controllers."""
    for line in (sysfs.read(root / "proc/self/mountinfo") or "").splitlines():
        before, found, after = line.partition(" - ")
        fields, about = before.split(), after.split()
        if not found or len(fields) < 5 or len(about) < 3:
            continue
        if about[0] not in ("cgroup", "cgroup2"):
            continue
        group, point = (_OCTAL.sub(lambda o: chr(int(o[1], 8)), text) for text in fields[3:5])
        controllers = about[2].split(",") if about[0] == "cgroup" else ()
        yield _Mount(frozenset(controllers), group, root / point.lstrip("/"))


def _folders(root: Path, mounts: list[_Mount], controllers: str, path: str) -> tuple[Path, ...]:
    wanted = set(filter(None, controllers.split(",")))
    for mount in mounts:
        if wanted <= mount.controllers if wanted else not mount.controllers:
            top, inside = mount.folder, _below(path, mount.group)
            break
    else:  # where systems usually have it
        top, inside = root / "sys/fs/cgroup" / controllers, path.lstrip("/")
    folder = top / inside
    if not folder.is_dir():  # a container that sees only its own group, by the host's path
        folder = top
    return tuple(g for g in (folder, *folder.parents) if g == top or top in g.parents)


def _below(path: str, group: str) -> str:
    """The path of a group below the one that is mounted; what is outside of it is not visible."""
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
    """Lines of a name and a number."""
    fields = {}
    for line in (sysfs.read(path) or "").splitlines():
        name, _, text = line.partition(" ")
        if (value := sysfs.parse(text)) is not None:
            fields[name] = value
    return fields
