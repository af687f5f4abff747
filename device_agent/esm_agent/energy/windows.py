"""Windows of back-to-back inferences and of rest, in random order, between two readings.

Everything comes as a callable, so that a simulated device with a clock of its own can take them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esm_agent.energy.estimate import IDLE, Window
from esm_agent.energy.source import SensorError
from esm_protos.energy import FEWEST_WINDOWS, TICKS, lead_s, least_energy_s

_MOST = 20
"""Largest number of windows per model."""
_MARGIN = 1.01
"""Excess of the advised time over the least one."""
_WINDOW_S = 0.5
"""Length of a window up to which more windows are better than longer ones, seconds."""
_SLICE_S = 0.1
"""Longest rest until the next sign of life, seconds."""


@dataclass(frozen=True)
class Plan:
    """Number and length of windows.

    Attributes:
        rounds: Windows of each model, and of rest per model.
        window_s: Length of a window, seconds.
        lead_s: Time before its first reading, seconds; a random part of a tick is added.
        tick_s: Tick of the source, seconds.
    """

    rounds: int
    window_s: float
    lead_s: float
    tick_s: float

    @property
    def resolves(self) -> bool:
        """Whether a window has enough ticks."""
        return self.window_s >= TICKS * self.tick_s

    @property
    def needs_s(self) -> float:
        """Least time per model for windows of enough ticks, seconds."""
        return _MARGIN * least_energy_s(self.tick_s)


def plan(energy_s: float, tick_s: float) -> Plan:
    """Return the windows for a time per model, half of which is rest, seconds."""
    before_s = lead_s(tick_s) + tick_s / 2
    wanted_s = max(1.05 * TICKS * tick_s, _WINDOW_S) + before_s
    rounds = min(max(int(energy_s / (2 * wanted_s)), FEWEST_WINDOWS), _MOST)
    return Plan(rounds, max(energy_s / (2 * rounds) - before_s, 0.0), lead_s(tick_s), tick_s)


def take_windows(
    runs: Mapping[int, Callable[[], object]],
    joules: Callable[[], float],
    chosen: Plan,
    seed: int,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    between: Callable[[int, float], bool],
    tick: Callable[[], None] = lambda: None,
) -> list[Window]:
    """Measure windows of all models and of rest, with rest at both ends.

    Args:
        runs: Functions that make an inference, by model.
        joules: Counter of the source.
        chosen: Number and length of the windows.
        seed: Random seed of the order.
        clock: Clock, seconds.
        sleep: Function that rests, seconds.
        between: Function called before a window with its model and the share that is done; it
            returns whether to end early.
        tick: Function called after every inference and slice of rest.

    Raises:
        SensorError: the counter went back.
        Exception: a run or a reading failed.
    """
    rng = random.Random(seed)

    def rest() -> None:
        sleep(min(_SLICE_S, chosen.window_s))

    def window(model: int) -> Window:
        act = runs.get(model, rest)
        begins = clock() + chosen.lead_s + rng.uniform(0, chosen.tick_s)
        while clock() < begins:
            act()
            tick()
        before, start_s, count = joules(), clock(), 0
        while True:
            act()
            tick()
            count += 1
            if clock() - start_s >= chosen.window_s:
                break
        after, end_s = joules(), clock()
        if after < before:
            raise SensorError(f"the counter went from {before:g} to {after:g} J")
        return Window(model, start_s, end_s - start_s, after - before, count)

    order = [IDLE]
    for _ in range(chosen.rounds):
        one = [*runs, *[IDLE] * len(runs)]
        rng.shuffle(one)
        order += one
    order.append(IDLE)
    taken = []
    for number, model in enumerate(order):
        if between(model, number / len(order)):
            break
        taken.append(window(model))
    return taken
