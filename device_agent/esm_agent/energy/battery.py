"""Batteries while they discharge (Linux, Documentation/ABI/testing/sysfs-class-power)."""

from __future__ import annotations

from pathlib import Path

from esm_agent.device import sysfs
from esm_agent.energy.source import EnergySource, PowerMeter, SensorError
from esm_protos.energy import BATTERY
from esm_protos.messages import NOT_FOUND

FOLDER = "sys/class/power_supply"
_GAUGE_TICK_S = 30.0
"""Longest usual time between two values of a fuel gauge."""
_METER_TICK_S = 1.0
_JOULES_PER_UWH = 3.6e-3


def battery(root: Path = Path("/")) -> EnergySource:
    """Return the first battery, by its power if the device tells it, else by its charge.

    Args:
        root: Folder that holds ``sys``.

    Raises:
        SensorError: there is no battery, it does not discharge, or it has no such value.
    """
    folders = sorted((root / FOLDER).glob("*"))
    batteries = [folder for folder in folders if sysfs.read(folder / "type") == "Battery"]
    if not batteries:
        raise SensorError(NOT_FOUND)
    folder = batteries[0]
    _check_discharges(folder)
    if _watts(folder) is not None:
        return BatteryPower(folder)
    if _stored_j(folder) is not None:
        return BatteryCharge(folder)
    raise SensorError(f"{folder} has no power_now, current_now, energy_now or charge_now")


class BatteryPower(PowerMeter):
    """Power that flows out of a battery.

    Args:
        folder: Folder of the battery.
    """

    covers = BATTERY
    tick_s = _METER_TICK_S
    resolution_j = 1e-3 * _METER_TICK_S

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"battery {folder.name}"

    def watts(self) -> float:
        _check_discharges(self._folder)
        watts = _watts(self._folder)
        if watts is None:
            raise SensorError(f"{self._folder} has no power any more")
        return watts


class BatteryCharge(EnergySource):
    """Energy that has left a battery, in the steps of its fuel gauge.

    Args:
        folder: Folder of the battery.
    """

    covers = BATTERY
    tick_s = _GAUGE_TICK_S
    resolution_j = 10_000 * _JOULES_PER_UWH  # most gauges count in 10 mWh

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.name = f"battery {folder.name}"
        self._full_j = _stored_j(folder) or 0.0

    def start(self) -> None:
        _check_discharges(self._folder)

    def joules(self) -> float:
        _check_discharges(self._folder)
        stored = _stored_j(self._folder)
        if stored is None:
            raise SensorError(f"{self._folder} has no charge any more")
        return self._full_j - stored


def _check_discharges(folder: Path) -> None:
    status = sysfs.read(folder / "status") or "unknown"
    if status != "Discharging":
        raise SensorError(
            f"battery {folder.name} has the status {status}",
            "unplug the charger, restart the agent",
        )


def _watts(folder: Path) -> float | None:
    """Return the power of a battery, watts; current may be negative while it discharges."""
    if (microwatts := sysfs.number(folder / "power_now")) is not None:
        return abs(microwatts) / 1e6
    current, voltage = (sysfs.number(folder / f"{name}_now") for name in ("current", "voltage"))
    return None if current is None or voltage is None else abs(current) * voltage / 1e12


def _stored_j(folder: Path) -> float | None:
    """Return the energy in a battery, joules; with a charge, at the nominal voltage."""
    if (microwatt_hours := sysfs.number(folder / "energy_now")) is not None:
        return microwatt_hours * _JOULES_PER_UWH
    charge = sysfs.number(folder / "charge_now")
    volts = sysfs.number(folder / "voltage_min_design") or sysfs.number(folder / "voltage_now")
    return None if charge is None or volts is None else charge * volts / 1e6 * _JOULES_PER_UWH
