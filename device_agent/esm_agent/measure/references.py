"""Reference models of the agent, timed between a block's models for a tenth of its time.

They respond to what slows a device down: one to arithmetic, the others to memory, with weights
that fit or do not fit the caches. Their latencies, compared with the usual ones, give the
device's paces.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

from esm_agent.measure.block import UploadedModel
from esm_agent.measure.timing import Clock, Run, Samples, Tick

FOLDER = Path(__file__).parents[1] / "reference_models"
SHARE = 0.1
"""Share of a block's time."""
_WARMUP, _WARM_NS = 6, 4_000_000
"""Limits of the uncounted runs of a visit: number and time. A network whose weights were evicted
from the caches is warm after six runs, a slow one earlier."""
_COUNTED, _COUNTED_NS = 16, 5_000_000
"""Limits of the counted runs of a visit: number and time. They cost as much as the warm-up."""
_FEWEST_VISITS = 5
"""Least visits, even beyond the share of time; fewer give no interval."""
_COMPLETED, _COMPLETED_NS = 0.25, 2_000_000_000
"""Time limit of these visits after a block: a share of its time, or 2 s if that is longer."""
_OFTEN = {"large": 3}
"""Visits of a model in each turn, if more than one. The large model varies most between visits."""


def reference_models() -> tuple[UploadedModel, ...]:
    """Return the models that come with the agent, by name."""
    return tuple(UploadedModel(path.stem, path) for path in sorted(FOLDER.glob("*.onnx")))


class ReferenceVisits:
    """Visits of reference models between the visits of a block's own models.

    Args:
        runs: Functions that run an inference, by model.
        clock: Clock, ns.
        tick: Function called after each inference.
        first_run_ns: Durations of the first runs; a slow model then needs no uncounted run.
        seed: Random seed of the order.
        share: Share of the time since creation.

    Attributes:
        samples: Samples of each model so far, without models whose run raised an exception.
    """

    def __init__(
        self,
        runs: Mapping[str, Run],
        clock: Clock,
        tick: Tick,
        first_run_ns: Mapping[str, int] | None = None,
        seed: int = 0,
        share: float = SHARE,
    ) -> None:
        first = first_run_ns or {}
        self.samples = {name: Samples(fastest_ns=first.get(name, 0)) for name in runs}
        self._runs = dict(runs)
        self._clock = clock
        self._tick = tick
        self._shuffle = random.Random(seed).shuffle
        self._share = share
        self._began = clock()
        self._spent_ns = 0
        self._next: list[str] = []

    def visit(self) -> bool:
        """Visit references for as long as their share of the time allows.

        Returns:
            Whether any was visited.
        """
        visited = False
        while self._runs and self._spent_ns < self._share * (self._clock() - self._began):
            self._visit_next()
            visited = True
        return visited

    def complete(self, limit_s: float = math.inf) -> None:
        """Visit every reference model until it has an interval, within a time limit.

        Args:
            limit_s: Time left, s.
        """
        entered = self._clock()
        allowed = min(max(_COMPLETED * (entered - self._began), _COMPLETED_NS), limit_s * 1e9)
        while lacking := [
            name
            for name, samples in self.samples.items()
            if len(samples.latency_ns) < _FEWEST_VISITS * max(samples.runs_per_visit, 1)
        ]:
            for name in lacking:
                if self._clock() - entered >= allowed:
                    return
                self._visit(name)

    def _visit_next(self) -> None:
        if not self._next:  # a new turn
            self._next = [name for name in self._runs for _ in range(_OFTEN.get(name, 1))]
            self._shuffle(self._next)
        self._visit(self._next.pop())

    def _visit(self, name: str) -> None:
        entered = self._clock()
        try:
            self.samples[name].visit(
                self._runs[name],
                _WARMUP,
                _COUNTED,
                self._clock,
                self._tick,
                _WARM_NS,
                _COUNTED_NS,
            )
        except Exception:  # the block continues without this reference model
            del self.samples[name], self._runs[name]
            self._next = [each for each in self._next if each != name]
        self._spent_ns += self._clock() - entered
