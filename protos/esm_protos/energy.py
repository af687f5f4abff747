"""Sensors and windows of energy, as agents and hosts know them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from esm_protos.messages import EnergySensor

PACKAGE, BOARD, GPU, BATTERY = "package", "board", "gpu", "battery"
"""Coverages of the built-in sensors; a user's class may have any other text."""

TICKS = 20
"""Fewest ticks of a window: each end may be off by one."""
FEWEST_WINDOWS = 8
"""Fewest windows of a model, and of rest per model."""
_LEAD_TICKS, _LEAST_LEAD_S = 3, 0.1
"""Time before a window's first reading: the sensor's delay, and threads that go on spinning."""


class _Covering(Protocol):
    @property
    def covers(self) -> str: ...


C = TypeVar("C", bound=_Covering)


def choose(working: Sequence[C], on_gpu: bool) -> C | None:
    """Return the best sensor for models on the CPU, or on a GPU; None if none covers it.

    A user's own sensor comes first.
    """
    other = PACKAGE if on_gpu else GPU
    order = [GPU, BOARD, BATTERY] if on_gpu else [BOARD, PACKAGE, BATTERY]
    return min(
        (sensor for sensor in working if sensor.covers != other),
        key=lambda each: order.index(each.covers) if each.covers in order else -1,
        default=None,
    )


def without_sensor(sensors: Iterable[EnergySensor]) -> str:
    """Return why no sensor of a device works, with a cure."""
    found = list(sensors)
    lines = [sensor.line for sensor in found]
    if not any(sensor.fix for sensor in found):
        lines.append("start the agent with --energy FILE.py:CLASS for a meter of your own")
    return "; ".join(lines)


def lead_s(tick_s: float) -> float:
    """Return the time before the first reading of a window, seconds."""
    return max(_LEAD_TICKS * tick_s, _LEAST_LEAD_S)


def least_energy_s(tick_s: float) -> float:
    """Return the least time per model for windows of enough ticks, half of it rest, seconds."""
    return 2 * FEWEST_WINDOWS * ((TICKS + 0.5) * tick_s + lead_s(tick_s))
