"""Energy of models in words."""

from __future__ import annotations

import math

from esm_host.arguments import argument
from esm_host.dataset.energy_cure import problem_text
from esm_protos.energy import choose, least_energy_s, without_sensor
from esm_protos.messages import DeviceInfo, Energy


def has_energy_sensor(device: DeviceInfo) -> bool:
    """Return whether a device has a sensor of energy that works."""
    return any(not sensor.problem for sensor in device.energy_sensors)


def missing_energy(device: DeviceInfo) -> str:
    """Return why a device cannot measure energy."""
    if not device.energy_sensors:
        return "no energy: the device's agent is too old for it, upgrade esm-profiler there"
    return f"no energy: {without_sensor(device.energy_sensors)}"


def too_slow(device: DeviceInfo, provider: str, energy_s: float) -> str:
    """Return why a time per model is too short for a device's sensor; empty if it may not be.

    Args:
        device: The device.
        provider: Execution provider.
        energy_s: Time per model, s.
    """
    working = [sensor for sensor in device.energy_sensors if not sensor.problem]
    # A provider other than the CPU's may run on a GPU or not.
    places = [False] if provider == "cpu" else [False, True]
    chosen = [sensor for on_gpu in places if (sensor := choose(working, on_gpu))]
    slow = [each for each in chosen if energy_s < least_energy_s(each.tick_s)]
    if not slow or len(slow) < len(chosen):
        return ""
    fastest = min(slow, key=lambda each: each.tick_s)
    return (
        f"{argument('energy_time_s')} {energy_s:g} is too short for {fastest.name}, which has a "
        f"value every {fastest.tick_s:.3g} s: give {math.ceil(least_energy_s(fastest.tick_s))}"
    )


def energy_text(energy: Energy) -> str:
    """Return the source and the verdict of an energy, with marked names of arguments."""
    if not energy.problem:
        return f"energy by {energy.source}, covers the {energy.covers}"
    by = f" by {energy.source}" if energy.source else ""
    return f"energy{by} unresolved: {problem_text(energy.problem, energy.needs_s)}"
