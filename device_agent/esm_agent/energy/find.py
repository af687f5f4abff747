"""Finder of a device's energy sources."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from esm_agent.device.telemetry import Telemetry
from esm_agent.energy.battery import battery
from esm_agent.energy.hwmon import Hwmon
from esm_agent.energy.nvml import Nvml
from esm_agent.energy.pmic import Pmic
from esm_agent.energy.rapl import Rapl
from esm_agent.energy.source import EnergySource, SensorError, check_attributes, read_joules
from esm_protos.energy import BATTERY, BOARD, GPU, PACKAGE, choose
from esm_protos.messages import NOT_FOUND, EnergySensor, Finding, Severity
from esm_protos.plugins import Family, PluginError, described_in

_RESTART = "check the meter, restart the agent"
_LOOK_S, _LONGEST_LOOK_S = 0.5, 4.0
"""Time for which a counter is watched to measure its tick; longest time if it changes rarely."""
_FEWEST_CHANGES = 3

log = logging.getLogger(__name__)

METERS = Family(
    what="energy meter",
    group="esm.energy",
    base="esm_agent.energy.source:EnergySource",
    builtin={},
)


@dataclass(frozen=True)
class Sources:
    """Energy sources of a device.

    Attributes:
        working: Sources that work, a user's own ones first.
        sensors: Descriptions of all that were looked for.
    """

    working: tuple[EnergySource, ...]
    sensors: tuple[EnergySensor, ...]

    @property
    def finding(self) -> Finding:
        """Finding of the doctor."""
        if self.working:
            lines = (source.sensor().line for source in self.working)
            return Finding("energy", Severity.OK, "; ".join(lines))
        existing = [sensor for sensor in self.sensors if sensor.problem != NOT_FOUND]
        if not existing:
            looked_for = ", ".join(sensor.name for sensor in self.sensors)
            return Finding("energy", Severity.OK, f"no sensor found (looked for {looked_for})")
        text = "; ".join(f"{sensor.name}: {sensor.problem}" for sensor in existing)
        fix = next((sensor.fix for sensor in existing if sensor.fix), "")
        return Finding("energy", Severity.UNKNOWN, text, fix)

    def choose(self, on_gpu: bool) -> EnergySource | None:
        """Return the best source for models on the CPU, or on a GPU; None if none covers it."""
        return choose(self.working, on_gpu)


def load_meters(names: Sequence[str]) -> tuple[list[EnergySource], list[EnergySensor]]:
    """Create the meters of a user.

    Args:
        names: Names: ``path/to/file.py:Class``, or entry points.

    Returns:
        Meters that work, and descriptions of those that do not start.

    Raises:
        PluginError: a meter does not exist, has an invalid attribute, or cannot be created or read.
    """
    meters: list[EnergySource] = []
    broken: list[EnergySensor] = []
    for name in names:
        try:
            made = METERS.load(name)
            try:
                meter: EnergySource = made()
                meter.name = meter.name or made.__name__
                check_attributes(meter)
                if problem := _start(meter):
                    log.warning("--energy %s: %s: %s", name, problem, _RESTART)
                    broken.append(replace(meter.sensor(), problem=problem, fix=_RESTART))
                    continue
                read_joules(meter)
            except Exception as error:  # anything that a user's class may do
                raise PluginError(described_in(error, made)) from error
        except PluginError as error:
            raise PluginError(f"--energy {name}: {error}") from error
        meters.append(meter)
    return meters, broken


def _start(meter: EnergySource) -> str:
    """Start a meter; return why that fails, if it does."""
    try:
        meter.start()
    except Exception as error:  # such as a plug that is off
        return described_in(error, type(meter))
    return ""


def find_sources(
    telemetry: Telemetry,
    own: Sequence[EnergySource] = (),
    root: Path = Path("/"),
    calibration: Path | None = None,
    broken_meters: Sequence[EnergySensor] = (),
) -> Sources:
    """Return the energy sources of this device.

    Args:
        telemetry: Reader of the device's state, which knows its GPUs.
        own: Meters of the user.
        root: Folder that holds ``sys``; for tests.
        calibration: JSON file with the calibration of a Raspberry Pi's PMIC.
        broken_meters: Meters of the user that do not start.
    """
    looked_for: tuple[tuple[str, str, Callable[[], EnergySource]], ...] = (
        ("INA2xx and INA3221", BOARD, lambda: Hwmon(root)),
        ("PMIC", BOARD, lambda: Pmic(calibration=calibration)),
        ("RAPL", PACKAGE, lambda: Rapl(root)),
        ("NVML", GPU, lambda: Nvml(telemetry.gpu_energy())),
        ("battery", BATTERY, lambda: battery(root)),
    )
    working, broken = list(own), list(broken_meters)
    for name, covers, make in looked_for:
        try:
            source = make()
        except SensorError as error:
            broken.append(EnergySensor(name, covers, problem=str(error), fix=error.fix))
        else:
            working.append(source)
    return Sources(tuple(working), (*(source.sensor() for source in working), *broken))


def measure_tick(
    joules: Callable[[], float],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Return the median time between two values of a counter, seconds.

    A counter that changes rarely is watched for up to 4 s, which is then the result.

    Raises:
        SensorError: the counter does not change.
    """
    began, last = clock(), joules()
    changes: list[float] = []
    while (watched := clock() - began) < _LONGEST_LOOK_S:
        if watched >= _LOOK_S and len(changes) >= _FEWEST_CHANGES:
            return statistics.median(b - a for a, b in itertools.pairwise(changes))
        sleep(0.001)
        now = joules()
        if now != last:
            changes.append(clock())
            last = now
    if not changes:
        raise SensorError(f"{no_new_value(_LONGEST_LOOK_S)}; a slow meter of yours needs a tick_s")
    return _LONGEST_LOOK_S


def no_new_value(seconds: float) -> str:
    """Return the problem of a counter that did not change for a time."""
    return f"the sensor gave no new value in {seconds:.3g} s: check the sensor"
