"""Energy of models in words."""

from __future__ import annotations

import math

from esm_host.arguments import argument
from esm_protos.messages import DeviceInfo, Energy, without_sensor


def has_energy_sensor(device: DeviceInfo) -> bool:
    """Return whether a device has a sensor of energy that works."""
    return any(not sensor.problem for sensor in device.energy_sensors)


def missing_energy(device: DeviceInfo) -> str:
    """Return why a device cannot measure energy."""
    if not device.energy_sensors:
        return "no energy: the device's agent is too old for it, upgrade esm-profiler there"
    return f"no energy: {without_sensor(device.energy_sensors)}"


def energy_text(energy: Energy) -> str:
    """Return the source and the verdict of an energy, with marked names of arguments."""
    if not energy.problem:
        return f"energy by {energy.source}, covers the {energy.covers}"
    by = f" by {energy.source}" if energy.source else ""
    cure = ""
    if energy.needs_s:
        cure = f": give {argument('energy_time_s')} {math.ceil(energy.needs_s)}"
    return f"energy{by} unresolved: {energy.problem}{cure}"
