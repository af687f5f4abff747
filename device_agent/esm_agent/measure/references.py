"""The agent's own reference models, timed along with a block's for a tenth of its time.

They span what slows a device down: arithmetic, and weights of growing size that the caches hold
or do not hold. What they take now, against what they usually take, tells the device's paces.
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
"""Of a block's time."""
_WARMUP, _WARM_NS = 6, 4_000_000
"""Uncounted runs of a visit end with either. A network whose weights others have driven out of the
caches is warm after six runs, a slow one earlier."""
_COUNTED, _COUNTED_NS = 16, 5_000_000
"""Counted runs of a visit end with either: warming up costs as much as they do."""
_FEWEST_VISITS = 5
"""Made even if they take more than their share: fewer have no interval."""
_COMPLETED, _COMPLETED_NS = 0.25, 2_000_000_000
"""Time for these visits at most, once a block is over: the larger one of a share of the block's,
and of 2 s."""
_OFTEN = {"large": 3}
"""Visits in each turn of all. What this one tells varies most from visit to visit."""


def reference_models() -> tuple[UploadedModel, ...]:
    """Return the models that come with the agent, by name."""
    return tuple(UploadedModel(path.stem, path) for path in sorted(FOLDER.glob("*.onnx")))


class Company:
    """Reference models that are visited between a block's own models.

    Args:
        runs: by their names.
        first_run_ns: how long their first runs took; a slow one then needs no uncounted run.
        share: of the time from the first call of :meth:`visit` on.

    Attributes:
        samples: what was taken of each so far. One whose run raised an exception is not there.
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
        """Visit every reference as often as an interval takes, if that does not take too long.

        Args:
            limit_s: time that is left.
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
        except Exception:  # a block is not lost for want of a reference
            del self.samples[name], self._runs[name]
            self._next = [each for each in self._next if each != name]
        self._spent_ns += self._clock() - entered
