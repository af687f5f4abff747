"""The two protocols, as loops over callables: no runtime, no files, no processes in here.

Only ``run()`` lies between two clock readings. Whatever else has to happen (progress,
cancellation) happens in ``between``, which the loops call between visits.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from esm_protos.messages import Measurement, MeasureSpec

Run = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds from any fixed origin, never going back."""
Between = Callable[[int, float], None]
"""Told the model that is visited next and the share of the visits already made."""


@dataclass
class Samples:
    """Counted runs of one model, in the order in which they were taken."""

    latency_ns: list[int] = field(default_factory=list)
    start_ns: list[int] = field(default_factory=list)
    running_ns: int = 0
    """Time inside all its inferences, counted or not."""

    def visit(self, run: Run, warmup: int, runs: int, clock: Clock) -> None:
        """Adds ``runs`` counted runs after ``warmup`` uncounted ones."""
        entered = clock()
        for _ in range(warmup):
            run()
        for _ in range(runs):
            start = clock()
            run()
            self.latency_ns.append(clock() - start)
            self.start_ns.append(start)
        self.running_ns += clock() - entered

    def measurement(
        self, model_id: str, load_ns: int, first_run_ns: int, origin_ns: int
    ) -> Measurement:
        """These samples as a message; starts count from ``origin_ns``."""
        return Measurement(
            model_id=model_id,
            latency_ns=np.array(self.latency_ns, dtype=np.int64),
            start_ns=np.array(self.start_ns, dtype=np.int64) - origin_ns,
            load_ns=load_ns,
            first_run_ns=first_run_ns,
        )


def sequential(run: Run, spec: MeasureSpec, clock: Clock = time.perf_counter_ns) -> Samples:
    """All runs of one model in a row, after the warm-up (ESM, II-C)."""
    samples = Samples()
    samples.visit(run, spec.warmup, spec.runs, clock)
    return samples


def interleaved(
    runs: Mapping[int, Run],
    spec: MeasureSpec,
    between: Between = lambda index, fraction: None,
    clock: Clock = time.perf_counter_ns,
) -> dict[int, Samples]:
    """Rounds over all models, each round in another random order, a few runs per visit.

    A slow episode of the device outlasts any model's runs in a row, so trimming cannot remove it
    there. Here it touches a few samples of every model instead, which trimming does remove; what
    is left is common to the block, and its reference models tell how much it is.

    Args:
        runs: by the model's index in its block.

    Returns:
        Samples of each model: exactly ``spec.runs`` each, the last visit being shorter where
        ``runs_per_visit`` does not divide it.
    """
    samples = {index: Samples() for index in runs}
    order = list(runs)
    shuffle = random.Random(spec.seed).shuffle
    done = 0
    while done < spec.runs:
        count = min(spec.runs_per_visit, spec.runs - done)
        shuffle(order)
        for position, index in enumerate(order):
            between(index, (done + count * position / len(order)) / spec.runs)
            samples[index].visit(runs[index], spec.warmup, count, clock)
        done += count
    return samples
