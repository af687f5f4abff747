"""The two protocols, as loops over callables: no runtime, no files, no processes in here.

Only ``run()`` lies between two clock readings. Whatever else has to happen (progress, the
device's state, cancellation) happens in ``between``, which the loops call between visits.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from esm_protos.messages import Measurement, MeasureSpec, Nanoseconds
from esm_protos.statistics import MIN_ROUNDS, PACE_MODELS, estimate_block

Run = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds from any fixed origin."""
Between = Callable[[int, float], None]
"""Told the model that is visited next and the share of the visits already made."""

_WARM_NS = 25_000_000
"""Caches are warm after so long: a slow model needs fewer uncounted runs than a fast one."""
_SLOW_NS = 1_000_000_000
"""Cold caches are nothing to a model that runs so long: it needs no uncounted run at all."""
_LOOK_AGAIN = 1.2
"""Intervals are looked at each time the rounds have grown by this factor: looking after every
round would stop too many models at a lucky moment."""
_SETTLE_NS = 5_000_000_000
"""No waiting for a clock that never stays."""
_SETTLE_WINDOW_NS = 250_000_000
_SETTLED_WINDOWS, _SETTLED_SPREAD = 3, 0.02
_COPIES, _COPY_WARMUP = 10, 2


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
        self._count(run, runs, clock, entered)

    def short_visit(self, run: Run, warmup: int, runs: int, clock: Clock) -> None:
        """As :meth:`visit`, with no more uncounted runs than warm caches take."""
        entered = clock()
        if not self.latency_ns or self.latency_ns[-1] < _SLOW_NS:
            for _ in range(warmup):
                run()
                if clock() - entered >= _WARM_NS:
                    break
        self._count(run, runs, clock, entered)

    def _count(self, run: Run, runs: int, clock: Clock, entered: int) -> None:
        for _ in range(runs):
            start = clock()
            run()
            # A coarse clock may not have moved, but a run takes some time.
            self.latency_ns.append(max(clock() - start, 1))
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


def settle(
    runs: Mapping[int, Run],
    clock_mhz: Callable[[], float | None],
    between: Between,
    clock: Clock = time.perf_counter_ns,
) -> None:
    """Runs the models in turn, uncounted, until the device keeps its pace: 5 s at most.

    Args:
        clock_mhz: the device's clock; where it tells none, how long a round takes stands for it.
        between: told the model that runs next.
    """
    began = clock()
    paces: list[float] = []
    while clock() - began < _SETTLE_NS:
        window, rounds = clock(), 0
        while clock() - window < _SETTLE_WINDOW_NS:
            for index, run in runs.items():
                between(index, 0.0)
                run()
            rounds += 1
        paces.append(clock_mhz() or (clock() - window) / rounds)
        latest = paces[-_SETTLED_WINDOWS:]
        if len(latest) == _SETTLED_WINDOWS and max(latest) <= min(latest) * (1 + _SETTLED_SPREAD):
            return


def copies(copy: Run, clock: Clock = time.perf_counter_ns) -> Nanoseconds:
    """Durations of a few crossings to or from a device's memory, the first ones left out."""
    for _ in range(_COPY_WARMUP):
        copy()
    took = []
    for _ in range(_COPIES):
        start = clock()
        copy()
        took.append(max(clock() - start, 1))
    return np.array(took, dtype=np.int64)


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
    there. Here it touches a few samples of every model instead, and the models visited before
    and after tell by how much.

    With a precision, a model leaves while its interval is tight, unless fewer than ``PACE_MODELS``
    would stay: those that are left need somebody to tell the device's pace.

    Args:
        runs: by the model's index in its block.

    Returns:
        Samples of each model. Without a precision exactly ``spec.runs`` each, the last visit
        being shorter where ``runs_per_visit`` does not divide it; fewer where
        ``spec.max_block_s`` ended the block.
    """
    samples = {index: Samples() for index in runs}
    active = list(runs)
    shuffle = random.Random(spec.seed).shuffle
    began = clock()
    look_at = MIN_ROUNDS
    done = rounds = 0
    lasted_s = 0.0
    last = None
    while done < spec.runs and active:
        count = min(spec.runs_per_visit, spec.runs - done)
        shuffle(active)
        for position, index in enumerate(active):
            visited = (done + count * position / len(active)) / spec.runs
            spent = min(lasted_s / spec.max_block_s, 1.0) if spec.max_block_s else 0.0
            between(index, max(visited, spent))  # whatever ends the block first
            # Alone, a model finds the caches as it left them.
            warmup = 0 if len(active) == 1 and index == last else spec.warmup
            samples[index].short_visit(runs[index], warmup, count, clock)
            last = index
        done += count
        rounds += 1
        lasted_s = (clock() - began) / 1e9
        if spec.max_block_s and lasted_s > spec.max_block_s:
            break
        if spec.precision and rounds >= look_at and lasted_s >= spec.min_block_s:
            active = _staying(samples, active, spec)
            look_at = math.ceil(rounds * _LOOK_AGAIN)
    return samples


def _staying(samples: Mapping[int, Samples], active: list[int], spec: MeasureSpec) -> list[int]:
    """Who needs more rounds, and those who must keep them company.

    A model that has left may come back: what the others tell of the pace later can widen its
    interval again.
    """
    block = estimate_block(
        [np.array(s.latency_ns, dtype=np.int64) for s in samples.values()],
        [np.array(s.start_ns, dtype=np.int64) for s in samples.values()],
        spec.runs_per_visit,
        spec.trim,
        common_pace=True,
    )
    interval = {i: e.interval for i, e in zip(samples, block.models, strict=True)}
    loose = {index for index, share in interval.items() if share >= spec.precision}
    if not loose:
        return []
    wanted = sorted(interval, key=lambda i: (i not in loose, i not in active, -interval[i]))
    return wanted[: max(len(loose), PACE_MODELS)]
