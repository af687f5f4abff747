"""Both orders of runs as loops over callables, without runtime, files or processes.

Only ``run()`` is between two clock readings. All other work (progress, the device's state,
cancellation) is in ``between``, called between visits, and in ``tick``, called after every
inference. Visit, round, session, block and pace are defined in :mod:`esm_protos.messages`. ESM is
the paper that README.md cites (DAC 2025).
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from esm_protos.estimates import Estimate, Runs, estimate_block
from esm_protos.messages import Measurement, MeasureSpec, Nanoseconds
from esm_protos.statistics import PACE_MODELS, trimmed_mean

Run = Callable[[], object]
Clock = Callable[[], int]
"""Function that returns the time, ns, from any fixed origin."""
Between = Callable[[int, float], bool | None]
"""Function called before a visit with the model's index and the share of the block that is done.
It returns whether it has run other models, which leaves the caches cold."""
Tick = Callable[[], None]
"""Function called after every inference, which shows that the models do not hang."""
Failed = Callable[[int, Exception], None]
"""Function called with a model whose run raised an error; the model is not run again."""

_WARM_NS = 25_000_000
"""Time after which caches are warm; a slow model needs fewer uncounted runs than a fast one."""
_SLOW_NS = 200_000_000
"""Latency from which a model needs no uncounted run; cold caches cost it less than 1 ms."""
_VISIT_NS = 100_000_000
"""Duration after which a short visit ends."""
_LONG_WARMUP, _LONG_TIMED = 5, 3
"""Numbers of uncounted runs that end a long visit: to warm the model up, then to time it."""
_WARMING_TRIM = 0.2
FIRST_CHECK = 10
"""Rounds before the first check of the intervals; with fewer, too many are narrow by chance."""
_ROUND_VARIES = 1.5
"""Longest expected duration of the next round, relative to the longest so far."""
_CHECK_GROWTH = 1.2
"""Growth of the number of rounds until the next check of the intervals. A check after every round
would stop too many models by chance."""
_REDUCIBLE_ONCE_PRECISE = 0.7
"""Threshold for a model whose runs have reached the precision. It stays in the block only if more
runs can reduce at least this share of its interval."""
_REDUCIBLE_BEFORE = 0.2
"""The same threshold for a model whose runs have not reached the precision."""
_SESSION_ROUNDS, _LEAST_S = 2, 0.1
"""Minimum rounds of a session; time for all sessions if the block has no minimum, seconds."""
_SESSION_WORTH = 20
"""Minimum duration of further sessions, as a multiple of the time to open them."""
_RESULT_SHARE, _RESULT_S = 0.1, 5.0
"""Share of a block's limit, and its maximum in seconds, reserved for the work after the rounds."""
SETTLE_NS = 5_000_000_000
"""Maximum time to wait for a stable clock."""
_SETTLE_WINDOW_NS = 250_000_000
_SETTLED_WINDOWS, _SETTLED_SPREAD = 3, 0.02
_COPIES, _COPY_WARMUP = 10, 2


Estimates = Callable[[Mapping[int, "Samples"]], Mapping[int, Estimate]]
"""Function that estimates the latencies of models from their samples so far."""
Renew = Callable[[dict[int, "Samples"], float], None]
"""Function that opens new sessions of the models and replaces their runs. It removes a model that
fails from the samples. Its second argument is the share of the block that is done."""


@dataclass
class Samples:
    """Recorder of a model's runs: counted latencies in time order, and uncounted times.

    Attributes:
        latency_ns: Latencies of the counted runs, ns.
        start_ns: Start times of the counted runs, ns.
        running_ns: Total time of all inferences, counted or not, ns.
        fastest_ns: Fastest inference so far, counted or not, ns; 0 before the first.
        runs_per_visit: Counted runs of a visit; 0 until the first visit sets it.
        session_began: Index of the first counted run of each session after the first.
        warming_ns: Latencies of the uncounted runs before counted ones, by their place in the
            visit, ns.
        warm_ns: Latency at the end of each long visit, ns.
    """

    latency_ns: list[int] = field(default_factory=list)
    start_ns: list[int] = field(default_factory=list)
    running_ns: int = 0
    fastest_ns: int = 0
    runs_per_visit: int = 0
    session_began: list[int] = field(default_factory=list)
    warming_ns: dict[int, list[int]] = field(default_factory=dict)
    warm_ns: list[int] = field(default_factory=list)

    def add_runs(self, run: Run, warmup: int, runs: int, clock: Clock, tick: Tick) -> None:
        """Add ``runs`` counted runs after ``warmup`` uncounted ones."""
        for _ in range(warmup):
            self._uncounted(run, clock, tick)
        for _ in range(runs):
            self._counted(run, clock, tick)

    def visit(
        self,
        run: Run,
        warmup: int,
        most: int,
        clock: Clock,
        tick: Tick,
        warmup_limit_ns: int = _WARM_NS,
        visit_ns: int = _VISIT_NS,
        long: bool = False,
    ) -> None:
        """Add the counted runs of a visit, after uncounted ones that warm the caches.

        Args:
            run: Function that runs the model once.
            warmup: Maximum number of uncounted runs.
            most: Maximum number of counted runs.
            clock: Clock.
            tick: Function called after every inference.
            warmup_limit_ns: Time after which no further warm-up run begins, ns.
            visit_ns: Duration of the counted runs after which the first visit ends, ns; later
                visits have the same number of runs.
            long: Whether to add a fixed number of uncounted runs to a visit shorter than
                ``warmup_limit_ns``, and record the latency afterwards.
        """
        entered = clock()
        if self.fastest_ns < _SLOW_NS:
            for place in range(warmup):
                took = self._uncounted(run, clock, tick)
                self.warming_ns.setdefault(place, []).append(took)
                if clock() - entered >= warmup_limit_ns:
                    break
        decided = self.runs_per_visit
        for count in range(1, min(most, decided or most) + 1):
            self._counted(run, clock, tick)
            if not decided:
                # All visits get this number of runs, so a single delayed run must not set it.
                self.runs_per_visit = count
                if count * self.fastest_ns >= visit_ns:
                    break
        if long and clock() - entered < warmup_limit_ns:
            for _ in range(_LONG_WARMUP):
                self._uncounted(run, clock, tick)
            warm = [self._uncounted(run, clock, tick) for _ in range(_LONG_TIMED)]
            self.warm_ns.append(round(sum(warm) / len(warm)))

    def _counted(self, run: Run, clock: Clock, tick: Tick) -> None:
        start = clock()
        run()
        took = clock() - start
        tick()
        self._add(took)
        # A coarse clock may not have moved.
        self.latency_ns.append(max(took, 1))
        self.start_ns.append(start)

    def _uncounted(self, run: Run, clock: Clock, tick: Tick) -> int:
        start = clock()
        run()
        took = clock() - start
        tick()
        self._add(took)
        return max(took, 1)

    def _add(self, took: int) -> None:
        self.running_ns += took
        self.fastest_ns = max(min(self.fastest_ns or took, took), 1)

    def measurement(
        self, model_id: str, load_ns: int, first_run_ns: int, origin_ns: int
    ) -> Measurement:
        """Return these samples as a message, with start times relative to ``origin_ns``."""
        return Measurement(
            model_id=model_id,
            latency_ns=np.array(self.latency_ns, dtype=np.int64),
            start_ns=np.array(self.start_ns, dtype=np.int64) - origin_ns,
            load_ns=load_ns,
            first_run_ns=first_run_ns,
            runs_per_visit=self.runs_per_visit,
            session_runs=self.session_runs(),
            warming_ns=tuple(
                trimmed_mean(np.array(taken), _WARMING_TRIM) for taken in self.warming_ns.values()
            ),
            warm_ns=np.array(self.warm_ns, dtype=np.int64),
        )

    def begin_session(self) -> None:
        """Begin a new session."""
        self.session_began.append(len(self.latency_ns))

    def as_runs(self, weight_bytes: int = 0, name: str = "") -> Runs:
        """Return these samples in the form for estimates."""
        return Runs(
            np.array(self.latency_ns, dtype=np.int64),
            np.array(self.start_ns, dtype=np.int64),
            max(self.runs_per_visit, 1),
            weight_bytes,
            self.session_runs(),
            name,
        )

    def session_runs(self) -> tuple[int, ...]:
        """Return the counted runs of each session; empty for a single session."""
        ends = [0, *self.session_began, len(self.latency_ns)]
        counts = tuple(end - start for start, end in itertools.pairwise(ends) if end > start)
        return counts if len(counts) > 1 else ()


def raise_error(index: int, error: Exception) -> None:
    """Raise the error of a model, which ends the block."""
    raise error


def settle(
    runs: Mapping[int, Run],
    clock_mhz: Callable[[], float | None],
    between: Between,
    clock: Clock = time.perf_counter_ns,
    failed: Failed = raise_error,
) -> None:
    """Run the models in turn, uncounted, until the device's pace is stable, for 5 s at most.

    Args:
        runs: Functions that run the models, by index.
        clock_mhz: Function that returns the device's clock; if it returns None, the duration of a
            round is used instead.
        between: Function called before each run.
        clock: Clock.
        failed: Function called with a model that fails.
    """
    began = clock()
    paces: list[float] = []
    left = dict(runs)
    while left:
        window, rounds = clock(), 0
        while left and clock() - window < _SETTLE_WINDOW_NS:
            for index, run in list(left.items()):
                between(index, 0.0)
                try:
                    run()
                except Exception as error:
                    del left[index]
                    failed(index, error)
                if clock() - began >= SETTLE_NS:
                    return
            rounds += 1
        paces.append(clock_mhz() or (clock() - window) / rounds)
        latest = paces[-_SETTLED_WINDOWS:]
        if len(latest) == _SETTLED_WINDOWS and max(latest) <= min(latest) * (1 + _SETTLED_SPREAD):
            return


def copies(
    copy: Run, clock: Clock = time.perf_counter_ns, tick: Tick = lambda: None
) -> Nanoseconds:
    """Return the durations of some copies to or from a device's memory, ns, without warm-up."""
    for _ in range(_COPY_WARMUP):
        copy()
        tick()
    took = []
    for _ in range(_COPIES):
        start = clock()
        copy()
        took.append(max(clock() - start, 1))
        tick()
    return np.array(took, dtype=np.int64)


def sequential(
    run: Run,
    spec: MeasureSpec,
    clock: Clock = time.perf_counter_ns,
    tick: Tick = lambda: None,
) -> Samples:
    """Take all runs of a model in a row, after the warm-up (ESM, II-C)."""
    samples = Samples()
    samples.add_runs(run, spec.warmup, spec.runs, clock, tick)
    return samples


def interleaved(
    runs: Mapping[int, Run],
    spec: MeasureSpec,
    between: Between = lambda index, fraction: None,
    clock: Clock = time.perf_counter_ns,
    tick: Tick = lambda: None,
    first_run_ns: Mapping[int, int] | None = None,
    limit_s: float = math.inf,
    failed: Failed = raise_error,
    estimates: Estimates | None = None,
    renew: Renew = lambda samples, share: None,
    finish_requested: Callable[[], bool] = lambda: False,
) -> dict[int, Samples]:
    """Take runs in rounds over all models, in a new random order, with a few runs per visit.

    A slow phase of the device lasts longer than a model's runs in a row, so trimming cannot
    remove it. In rounds it affects a few samples of every model, and the visits of other models
    before and after show its size.

    With a precision, a model leaves the block once its interval is narrow enough. It also leaves
    if its runs are precise and a longer block would hardly narrow the interval. At least
    ``PACE_MODELS`` models stay, because the device's pace is estimated from several.

    With several sessions, new ones are opened between rounds, after equal shares of the runs. With
    a precision, they are opened after equal shares of the block's minimum time.

    Args:
        runs: Functions that run the models, by index; looked up at every visit.
        spec: Settings of the block.
        between: Function called before each visit.
        clock: Clock.
        tick: Function called after every inference.
        first_run_ns: Durations of the models' first runs, ns; a slow model needs no uncounted run.
        limit_s: Time limit of a block with a precision, seconds. The rounds end earlier, to leave
            time for the result.
        failed: Function called with a model whose run raises an error, and which then leaves the
            block; by default the error is raised.
        estimates: Function whose estimates are compared with the precision; by default from the
            block's models alone.
        renew: Function called before each session except the first; its time does not count.
        finish_requested: Function that returns whether to end early; called before each visit
            from the second round on.

    Returns:
        Samples of each model that did not fail. Without a precision each has ``spec.runs`` runs,
        or fewer if ``spec.max_block_s`` or ``finish_requested`` ended the block. The last visit is
        shorter if ``runs_per_visit`` does not divide the runs.
    """
    first = first_run_ns or {}
    per_visit = 0 if spec.short_visits else spec.runs_per_visit
    samples = {i: Samples(fastest_ns=first.get(i, 0), runs_per_visit=per_visit) for i in runs}
    active = list(runs)
    shuffle = random.Random(spec.seed).shuffle
    began = clock()
    next_check = FIRST_CHECK
    rounds, session, opening_s = 0, 1, 0.0
    ends = began + (limit_s - min(_RESULT_SHARE * limit_s, _RESULT_S)) * 1e9
    share = lasted_s = longest_s = 0.0
    round_s = sum(first.values()) / 1e9
    last = None
    while active:
        done = max(len(samples[index].latency_ns) for index in active)
        shuffle(active)
        for position, index in enumerate(active):
            if rounds and finish_requested():
                return samples
            count = min(spec.runs_per_visit, spec.runs - done)
            visited = (done + count * position / len(active)) / spec.runs
            whole_s = max(spec.max_block_s, spec.min_rounds * round_s)
            spent = (clock() - began) / 1e9 / whole_s if spec.max_block_s else 0.0
            share = max(share, min(max(visited, spent), 1.0))  # of runs or time, the larger
            if between(index, share):
                last = None
            # A model that is alone in the block finds its caches warm.
            warmup = 0 if len(active) == 1 and index == last else spec.warmup
            most = min(spec.runs_per_visit, spec.runs - len(samples[index].latency_ns))
            long = bool(spec.long_visits) and rounds % spec.long_visits == spec.long_visits // 2
            try:
                samples[index].visit(runs[index], warmup, most, clock, tick, long=long)
            except Exception as error:
                del samples[index]
                failed(index, error)
            last = index
        rounds += 1
        before_s, lasted_s = lasted_s, (clock() - began) / 1e9
        longest_s, round_s = max(longest_s, lasted_s - before_s), lasted_s / rounds
        active = [i for i in active if i in samples and len(samples[i].latency_ns) < spec.runs]
        if spec.max_block_s and lasted_s > spec.max_block_s and rounds >= spec.min_rounds:
            break
        if spec.precision and clock() + _ROUND_VARIES * longest_s * 1e9 > ends:
            break
        if active and _session_ends(
            spec,
            session,
            max(len(samples[i].latency_ns) for i in active),
            rounds,
            lasted_s,
            opening_s,
        ):
            before = clock()
            renew(samples, share)
            session, last = session + 1, None
            active = [i for i in active if i in samples]
            began += (took := clock() - before)
            opening_s += took / 1e9
        if active and spec.precision and rounds >= next_check and lasted_s >= spec.min_block_s:
            current = (estimates or partial(own_estimates, trim=spec.trim))(samples)
            active = _select_active(samples, active, spec, current)
            next_check = math.ceil(rounds * _CHECK_GROWTH)
    return samples


def _session_ends(
    spec: MeasureSpec, session: int, runs: int, rounds: int, lasted_s: float, opening_s: float
) -> bool:
    """Return whether a session has had its share of the block.

    With a precision, more than ``spec.sessions`` sessions are opened if the block continues.

    Args:
        spec: Settings of the block.
        session: Number of the session, from 1.
        runs: Counted runs of a model so far.
        rounds: Rounds so far.
        lasted_s: Duration of the block so far, seconds.
        opening_s: Time spent on opening the sessions after the first, seconds.
    """
    if spec.sessions == 1:
        return False
    if not spec.precision:
        return session < spec.sessions and runs >= spec.runs * session / spec.sessions
    if session >= spec.sessions and lasted_s < _SESSION_WORTH * opening_s:
        return False
    least_s = spec.min_block_s or _LEAST_S
    return rounds >= _SESSION_ROUNDS * session and lasted_s >= least_s * session / spec.sessions


def own_estimates(samples: Mapping[int, Samples], trim: float) -> dict[int, Estimate]:
    """Return estimates from a block's own models, without reference models."""
    block = estimate_block([each.as_runs() for each in samples.values()], trim, common_pace=True)
    return dict(zip(samples, block.models, strict=True))


def _select_active(
    samples: Mapping[int, Samples],
    active: list[int],
    spec: MeasureSpec,
    estimates: Mapping[int, Estimate],
) -> list[int]:
    """Return the models that need more rounds, with others up to ``PACE_MODELS``.

    A model returns to the block if a later estimate of the pace widens its interval again.
    """
    open_ = [index for index, s in samples.items() if len(s.latency_ns) < spec.runs]
    wide = {index for index in open_ if _needs_more(estimates[index], spec.precision)}
    if not wide:
        return []
    wanted = sorted(open_, key=lambda i: (i not in wide, i not in active, -estimates[i].interval))
    return wanted[: max(len(wide), PACE_MODELS)]


def _needs_more(estimate: Estimate, precision: float) -> bool:
    parts = estimate.parts
    if parts.interval < precision:
        return False
    worth = _REDUCIBLE_BEFORE if parts.runs >= precision else _REDUCIBLE_ONCE_PRECISE
    return parts.passing >= worth * parts.interval
