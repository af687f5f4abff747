"""Settings of this device that affect timing and stay constant while it measures."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from esm_agent.device import sysfs
from esm_agent.device.cgroups import read_groups
from esm_agent.device.facts import memory_bytes, physical_bytes, usable_cpus

# "When the core temperature is between 80 and 85 degrees, the ARM cores will be progressively
# throttled back" (Raspberry Pi documentation, Frequency management and thermal control). Its trip
# points give only the temperature at which it switches off.
_PI_THROTTLES_AT_C = 80.0

_TURBO_SWITCHES = (
    # file under sys/devices/system/cpu, and its value when turbo is on
    ("intel_pstate/no_turbo", 0),
    ("cpufreq/boost", 1),
)


@dataclass(frozen=True)
class Turbo:
    """Setting of the processor's turbo clock.

    Attributes:
        on: Whether the processor may use it.
        fix: Command that switches it off.
    """

    on: bool
    fix: str


@dataclass(frozen=True)
class Machine:
    """Settings of a machine; a value is None or empty if the device does not report it.

    Attributes:
        memory_bytes: Memory available to this program.
        online: Numbers of the processors that are switched on.
        usable: Numbers of the processors that this process may run on.
        siblings: Processors that share a core, for each core with several.
        max_mhz: Highest clock of each processor.
        isolated: Processors on which the kernel runs only programs pinned to them.
        quota: Control group's quota of processor time, in processors; None without a limit.
        memory_limit_bytes: Control group's memory limit; None without a limit.
        physical_bytes: Memory of the whole machine.
        turbo: Setting of the turbo clock.
        throttles_at_c: Temperature at which the clock is lowered.
        clock_step_ns: Smallest step of the clock that times runs.
        clock_source: Hardware source of the kernel's clock.
    """

    memory_bytes: int
    online: tuple[int, ...]
    usable: tuple[int, ...]
    siblings: tuple[tuple[int, ...], ...] = ()
    max_mhz: Mapping[int, float] = field(default_factory=dict)
    isolated: tuple[int, ...] = ()
    quota: float | None = None
    memory_limit_bytes: int | None = None
    physical_bytes: int = 0
    turbo: Turbo | None = None
    throttles_at_c: float | None = None
    clock_step_ns: int = 1
    clock_source: str | None = None


def read_machine(root: Path = Path("/"), usable: tuple[int, ...] | None = None) -> Machine:
    """Return the settings of this machine.

    Args:
        root: Folder that holds ``proc`` and ``sys``; for tests.
        usable: Processors that this process may run on; by default those of its affinity.
    """
    usable = usable_cpus() if usable is None else usable
    groups = read_groups(root)
    folders = {int(cpu.name[3:]): cpu for cpu in sysfs.cpu_folders(root)}
    siblings = {
        cpu_list(sysfs.read(cpu / "topology/thread_siblings_list")) for cpu in folders.values()
    }
    khz = {n: sysfs.number(cpu / "cpufreq/cpuinfo_max_freq") for n, cpu in folders.items()}
    clock_source = root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    return Machine(
        memory_bytes=memory_bytes(root),
        online=cpu_list(sysfs.read(root / sysfs.CPU / "online")) or usable,
        usable=usable,
        siblings=tuple(sorted(group for group in siblings if len(group) > 1)),
        max_mhz={n: value / 1000 for n, value in khz.items() if value},
        isolated=cpu_list(sysfs.read(root / sysfs.CPU / "isolated")),
        quota=groups.cpu_quota(),
        memory_limit_bytes=groups.memory_limit(),
        physical_bytes=physical_bytes(),
        turbo=read_turbo(root),
        throttles_at_c=min(_limits(root), default=None),
        clock_step_ns=_clock_step_ns(),
        clock_source=sysfs.read(clock_source),
    )


def cpu_list(text: str | None) -> tuple[int, ...]:
    """Return the numbers of a list such as ``0-3,8``; none if a part is not a number."""
    numbers: set[int] = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            return ()
        numbers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(numbers))


def read_turbo(root: Path) -> Turbo | None:
    """Return the setting of the turbo clock; None if it is unknown."""
    for name, on in _TURBO_SWITCHES:
        path = root / sysfs.CPU / name
        if (value := sysfs.number(path)) in (0, 1):
            return Turbo(value == on, f"echo {1 - on} | sudo tee /{sysfs.CPU}/{name}")
    return None


def _limits(root: Path) -> Iterator[float]:
    """Yield temperatures at which the processor slows down or switches off, degrees Celsius."""
    if (sysfs.read(root / "proc/device-tree/model") or "").startswith("Raspberry Pi"):
        yield _PI_THROTTLES_AT_C
    for zone in sysfs.thermal_zones(root)[0]:
        for kind in zone.glob("trip_point_*_type"):
            # "active" only turns a fan on (Linux, Documentation/driver-api/thermal).
            if sysfs.read(kind) in ("passive", "hot", "critical"):
                yield from _celsius(kind.with_name(kind.name.replace("_type", "_temp")))
    for hwmon in sysfs.cpu_hwmons(root):
        for path in hwmon.glob("temp*_crit"):
            yield from _celsius(path)


def _celsius(path: Path) -> Iterator[float]:
    millidegrees = sysfs.number(path)
    if millidegrees is not None and 0 < millidegrees < 200_000:  # unset ones are 0 or below
        yield millidegrees / 1000


def _clock_step_ns() -> int:
    readings = [time.perf_counter_ns() for _ in range(2000)]
    steps = (later - earlier for earlier, later in itertools.pairwise(readings))
    # A clock that did not move in 2000 readings has a step of about a millisecond or more.
    return min((step for step in steps if step > 0), default=1_000_000)
