"""Base classes of energy sources: counters of joules, and meters of watts."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

from esm_protos.messages import EnergySensor

PACKAGE, BOARD, GPU, BATTERY = "package", "board", "gpu", "battery"
"""Coverages of the built-in sources; a user's class may have any other text."""


class SensorError(Exception):
    """Error of a sensor that does not work; the message is one line.

    Attributes:
        fix: Remedy; empty if there is none.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.fix = fix


class EnergySource(ABC):
    """Counter of joules.

    Attributes:
        name: Name in results.
        covers: Part of the device that it measures, such as ``"board"``.
        tick_s: Time between two new values, seconds; 0: measured before the first energy.
        resolution_j: Smallest step of the value, joules; 0: unknown.
        sampled: Whether :meth:`sample` must be called every ``tick_s``.
    """

    name: str = ""
    covers: str = "meter"
    tick_s: float = 0.0
    resolution_j: float = 0.0
    sampled: ClassVar[bool] = False

    @abstractmethod
    def joules(self) -> float:
        """Return the energy since any fixed moment, joules.

        Raises:
            Exception: the sensor cannot be read.
        """

    def start(self) -> None:  # noqa: B027  most counters need nothing
        """Prepare a measurement.

        Raises:
            Exception: the sensor does not work now.
        """

    def sample(self) -> None:  # noqa: B027  counters are not sampled
        """Read a meter of watts."""

    def sensor(self) -> EnergySensor:
        """Return the description for hosts."""
        return EnergySensor(
            self.name or type(self).__name__, self.covers, self.resolution_j, self.tick_s
        )


class PowerMeter(EnergySource):
    """Meter of watts, integrated over time.

    The value of a sample holds until the next one. In a window of constant power the delay of the
    sensor cancels, because it is the same at both ends.

    Attributes:
        clock: Clock, seconds.
    """

    tick_s = 0.1
    sampled = True
    clock: Callable[[], float] = staticmethod(time.perf_counter)
    _held = (0.0, 0.0, 0.0)
    """Joules until the last sample, its time and its watts: one tuple, which threads can share."""

    @abstractmethod
    def watts(self) -> float:
        """Return the present power, watts.

        Raises:
            Exception: the sensor cannot be read.
        """

    def start(self) -> None:
        self._held = (0.0, self.clock(), self.watts())

    def sample(self) -> None:
        watts, now = self.watts(), self.clock()
        joules, at, before = self._held
        self._held = (joules + before * (now - at), now, watts)

    def joules(self) -> float:
        joules, at, watts = self._held
        return joules + watts * (self.clock() - at)


@contextmanager
def sampling(source: EnergySource) -> Iterator[Callable[[], None]]:
    """Sample a meter of watts in a thread.

    Yields:
        Function that raises the error of a sample that failed.
    """
    ended = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        while not ended.wait(source.tick_s):
            try:
                source.sample()
            except Exception as error:  # anything that a user's class may do
                errors.append(error)
                return

    def check() -> None:
        if errors:
            raise errors[0]

    source.start()
    if not source.sampled:
        yield check
        return
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield check
    finally:
        ended.set()
        thread.join()
