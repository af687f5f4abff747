"""Number of threads that a model uses, by the processor time of the measuring process."""

from __future__ import annotations

import time
from collections.abc import Callable

_LEAST_NS = 100_000_000
"""Least time of visits; in less, the system's counter, which may move every 4 ms, says little."""

Clock = Callable[[], int]


class ThreadsUsed:
    """Counter of processor time during the visits of models.

    It reads its clocks twice per visit, outside timed runs.

    Args:
        wall: Clock, ns.
        processor: Clock of the processor time of all threads of this process, ns.
    """

    def __init__(
        self, wall: Clock = time.perf_counter_ns, processor: Clock = time.process_time_ns
    ) -> None:
        self._clocks = (wall, processor)
        self._began = (0, 0)
        self._spent: dict[int, tuple[int, int]] = {}

    def begin(self) -> None:
        """Begin a visit."""
        self._began = self._now()

    def end(self, model: int) -> None:
        """End the visit of a model, by its index in the block."""
        wall, processor = self._spent.get(model, (0, 0))
        now, began = self._now(), self._began
        self._spent[model] = (wall + now[0] - began[0], processor + now[1] - began[1])

    def used(self, model: int) -> float:
        """Return the processor time per time of a model's visits; 0 if they were too short."""
        wall, processor = self._spent.get(model, (0, 0))
        return processor / wall if wall >= _LEAST_NS else 0.0

    def _now(self) -> tuple[int, int]:
        wall, processor = self._clocks
        return wall(), processor()
