"""Base classes of energy sources: counters of joules, and meters of watts."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any, ClassVar

from esm_protos.messages import EnergySensor

LONGEST_TICK_S = 3600.0
"""Largest valid ``tick_s``."""


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
        self._held = (0.0, self.clock(), _number(self.watts))

    def sample(self) -> None:
        watts, now = _number(self.watts), self.clock()
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


def check_attributes(source: EnergySource) -> None:
    """Check the attributes that a user's class may set.

    Raises:
        ValueError: an attribute has an invalid value.
    """
    for name in ("name", "covers"):
        text = getattr(source, name)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} is {text!r}: give a text")
    tick_s, step_j = source.tick_s, source.resolution_j
    if not _is_number(tick_s) or not 0 <= tick_s <= LONGEST_TICK_S:
        raise ValueError(f"tick_s is {tick_s!r}: give 0 to {LONGEST_TICK_S:g} seconds")
    if source.sampled and not tick_s:
        raise ValueError(f"tick_s is {tick_s!r}: give a meter of watts more than 0 seconds")
    if not _is_number(step_j) or not 0 <= step_j < math.inf:
        raise ValueError(f"resolution_j is {step_j!r}: give joules, or 0 if unknown")


def read_joules(source: EnergySource) -> float:
    """Return the joules of a source as a finite number.

    Raises:
        TypeError: they are no number.
        ValueError: they are not finite.
        Exception: the sensor cannot be read.
    """
    return _number(source.joules)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(method: Callable[[], Any]) -> float:
    """Return the result of a method that a user's class may have, as a finite number."""
    value = method()
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    # The traceback has no line of the method, which has returned.
    code = getattr(method, "__code__", None)
    where = f" (line {code.co_firstlineno} of {code.co_filename})" if code else ""
    kind = ValueError if isinstance(value, Real) else TypeError
    raise kind(f"{method.__name__}() returned {value!r}: return a finite number{where}")
