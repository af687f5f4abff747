"""The two protocols, as loops over callables: no runtime, no files, no processes in here.

Only ``run()`` lies between two clock readings. Whatever else has to happen (progress, the
device's state, cancellation) happens in ``between``, which the loops call between visits, and in
``tick``, which they call after every inference.
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
"""Nanoseconds from any fixed origin."""
Between = Callable[[int, float], bool | None]
"""Told the model that is visited next and the share of the visits already made; says whether it
has run other models, which leave the caches cold."""
Tick = Callable[[], None]
"""Told that an inference is over, whatever it was for: shows that the models do not hang."""
Failed = Callable[[int, Exception], None]
"""Told of a model whose run raised an exception; it is not run again."""

_WARM_NS = 25_000_000
"""Caches are warm after so long: a slow model needs fewer uncounted runs than a fast one."""
_SLOW_NS = 200_000_000
"""A model that runs so long needs no uncounted run: cold caches cost it less than a millisecond."""
_VISIT_NS = 100_000_000
"""A short visit ends once it has lasted so long."""
_LONG_RUNS, _LONG_COUNTED = 5, 3
"""Runs of a long visit after its counted ones: as many as make a model warm, and those that tell
how long it takes then."""
_WARMING_TRIM = 0.2
FIRST_LOOK = 10
"""Rounds before which no interval is looked at: with fewer, too many are narrow by chance."""
_ROUND_VARIES = 1.5
"""How many times as long as the longest round so far the next one may take."""
_LOOK_AGAIN = 1.2
"""Intervals are looked at each time the rounds have grown by this factor: looking after every
round would stop too many models at a lucky moment."""
_MOST_PASSING = 0.7
"""With a smaller share of an interval that a longer block reduces, it is hardly worth its time."""
_HARDLY_PASSING = 0.2
"""Smallest such share that is worth a longer block, whatever the precision of the runs."""
_SESSION_ROUNDS, _LEAST_S = 2, 0.1
"""Rounds of a session at least; and what the sessions share where no least time is given."""
_SESSION_WORTH = 20
"""Shortest duration of later sessions, as a multiple of the time that opening them takes."""
_RESULT_SHARE, _RESULT_S = 0.1, 5.0
"""Of a block's limit, a share up to some seconds is left for what comes after the rounds."""
SETTLE_NS = 5_000_000_000
"""No waiting for a clock that never stays."""
_SETTLE_WINDOW_NS = 250_000_000
_SETTLED_WINDOWS, _SETTLED_SPREAD = 3, 0.02
_COPIES, _COPY_WARMUP = 10, 2


Estimates = Callable[[Mapping[int, "Samples"]], Mapping[int, Estimate]]
"""Makes estimates of models from what was taken of them so far."""
Renew = Callable[[dict[int, "Samples"], float], None]
"""Opens models' sessions anew, and puts the new runs in place of the old ones; a model that fails
leaves the samples. Told the share of the visits already made."""


@dataclass
class Samples:
    """Counted runs of one model, in the order in which they were taken.

    Attributes:
        running_ns: time inside all its inferences, counted or not.
        fastest_ns: its fastest inference so far, counted or not; 0 before there is any.
        runs_per_visit: counted runs of a visit; 0 until its first visit has decided it.
        session_began: number of the first counted run of each session after the first.
        warming_ns: uncounted runs before counted ones, by their place in the visit.
        warm_ns: latency at the end of each long visit.
    """

    latency_ns: list[int] = field(default_factory=list)
    start_ns: list[int] = field(default_factory=list)
    running_ns: int = 0
    fastest_ns: int = 0
    runs_per_visit: int = 0
    session_began: list[int] = field(default_factory=list)
    warming_ns: dict[int, list[int]] = field(default_factory=dict)
    warm_ns: list[int] = field(default_factory=list)

    def row(self, run: Run, warmup: int, runs: int, clock: Clock, tick: Tick) -> None:
        """Adds ``runs`` counted runs after ``warmup`` uncounted ones."""
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
        warm_ns: int = _WARM_NS,
        visit_ns: int = _VISIT_NS,
        long: bool = False,
    ) -> None:
        """Adds the counted runs of a visit, after the uncounted ones that warm caches take.

        Args:
            warmup: uncounted runs at most.
            most: counted runs at most.
            warm_ns: no uncounted run begins after so long.
            visit_ns: the first visit ends once its counted runs have taken so long; later ones
                have as many runs.
            long: go on, uncounted, until the model is warm, and note how long it takes then.
        """
        entered = clock()
        if self.fastest_ns < _SLOW_NS:
            for place in range(warmup):
                took = self._uncounted(run, clock, tick)
                self.warming_ns.setdefault(place, []).append(took)
                if clock() - entered >= warm_ns:
                    break
        decided = self.runs_per_visit
        for count in range(1, min(most, decided or most) + 1):
            self._counted(run, clock, tick)
            if not decided:
                # All visits are alike, and not by a first run that something held up.
                self.runs_per_visit = count
                if count * self.fastest_ns >= visit_ns:
                    break
        if long and clock() - entered < warm_ns:
            for _ in range(_LONG_RUNS):
                self._uncounted(run, clock, tick)
            warm = [self._uncounted(run, clock, tick) for _ in range(_LONG_COUNTED)]
            self.warm_ns.append(round(sum(warm) / len(warm)))

    def _counted(self, run: Run, clock: Clock, tick: Tick) -> None:
        start = clock()
        run()
        took = clock() - start
        tick()
        self._add(took)
        # A coarse clock may not have moved, but a run takes some time.
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
        """These samples as a message; starts count from ``origin_ns``."""
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

    def renewed(self) -> None:
        """Begin a new session."""
        self.session_began.append(len(self.latency_ns))

    def as_runs(self, weight_bytes: int = 0, name: str = "") -> Runs:
        """These samples as estimates take them."""
        return Runs(
            np.array(self.latency_ns, dtype=np.int64),
            np.array(self.start_ns, dtype=np.int64),
            max(self.runs_per_visit, 1),
            weight_bytes,
            self.session_runs(),
            name,
        )

    def session_runs(self) -> tuple[int, ...]:
        """Counted runs of each session; empty where there was one."""
        ends = [0, *self.session_began, len(self.latency_ns)]
        counts = tuple(end - start for start, end in itertools.pairwise(ends) if end > start)
        return counts if len(counts) > 1 else ()


def raised(index: int, error: Exception) -> None:
    """Let a failure end the whole block."""
    raise error


def settle(
    runs: Mapping[int, Run],
    clock_mhz: Callable[[], float | None],
    between: Between,
    clock: Clock = time.perf_counter_ns,
    failed: Failed = raised,
) -> None:
    """Run the models in turn, uncounted, until the device keeps its pace.

    It ends with the run that reaches 5 s.

    Args:
        clock_mhz: the device's clock; where it tells none, how long a round takes stands for it.
        between: told the model that runs next.
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
    """Durations of a few crossings to or from a device's memory, the first ones left out."""
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
    """All runs of one model in a row, after the warm-up (ESM, II-C)."""
    samples = Samples()
    samples.row(run, spec.warmup, spec.runs, clock, tick)
    return samples


def interleaved(
    runs: Mapping[int, Run],
    spec: MeasureSpec,
    between: Between = lambda index, fraction: None,
    clock: Clock = time.perf_counter_ns,
    tick: Tick = lambda: None,
    first_run_ns: Mapping[int, int] | None = None,
    limit_s: float = math.inf,
    failed: Failed = raised,
    estimates: Estimates | None = None,
    renew: Renew = lambda samples, share: None,
    finished: Callable[[], bool] = lambda: False,
) -> dict[int, Samples]:
    """Rounds over all models, each round in another random order, a few runs per visit.

    A slow episode of the device outlasts any model's runs in a row, so trimming cannot remove it
    there. Here it touches a few samples of every model instead, and the models visited before
    and after tell by how much.

    With a precision, a model leaves while its interval is tight, or while its runs are and a longer
    block would hardly narrow the interval; unless fewer than ``PACE_MODELS`` would stay: those that
    are left need others to tell the device's pace.

    With several sessions, models are opened anew between rounds: after equal shares of the runs,
    or, with a precision, of the time that the block takes at least.

    Args:
        runs: by the model's index in its block; looked up at every visit.
        first_run_ns: how long the models' first runs took; a slow one then needs no uncounted run.
        limit_s: time after which the block is broken off: with a precision, no round begins that
            would reach it.
        failed: a model leaves when its run raises an exception; by default that is raised here.
        estimates: what a precision is held against; by default, of the block's models alone.
        renew: called before each session but the first; the time that it takes does not count.
        finished: once true, no visit begins after the first round.

    Returns:
        Samples of each model that did not fail. Without a precision exactly ``spec.runs`` each,
        the last visit being shorter where ``runs_per_visit`` does not divide it; fewer where
        ``spec.max_block_s`` or ``finished`` ended the block.
    """
    first = first_run_ns or {}
    per_visit = 0 if spec.short_visits else spec.runs_per_visit
    samples = {i: Samples(fastest_ns=first.get(i, 0), runs_per_visit=per_visit) for i in runs}
    active = list(runs)
    shuffle = random.Random(spec.seed).shuffle
    began = clock()
    look_at = FIRST_LOOK
    rounds, session, opening_s = 0, 1, 0.0
    ends = began + (limit_s - min(_RESULT_SHARE * limit_s, _RESULT_S)) * 1e9
    share = lasted_s = longest_s = 0.0
    round_s = sum(first.values()) / 1e9
    last = None
    while active:
        done = max(len(samples[index].latency_ns) for index in active)
        shuffle(active)
        for position, index in enumerate(active):
            if rounds and finished():
                return samples
            count = min(spec.runs_per_visit, spec.runs - done)
            visited = (done + count * position / len(active)) / spec.runs
            whole_s = max(spec.max_block_s, spec.min_rounds * round_s)
            spent = (clock() - began) / 1e9 / whole_s if spec.max_block_s else 0.0
            share = max(share, min(max(visited, spent), 1.0))  # whatever ends the block first
            if between(index, share):
                last = None
            # Alone, a model finds the caches as it left them.
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
        if active and spec.precision and rounds >= look_at and lasted_s >= spec.min_block_s:
            found = (estimates or partial(of_block, trim=spec.trim))(samples)
            active = _staying(samples, active, spec, found)
            look_at = math.ceil(rounds * _LOOK_AGAIN)
    return samples


def _session_ends(
    spec: MeasureSpec, session: int, runs: int, rounds: int, lasted_s: float, opening_s: float
) -> bool:
    """Return whether session number ``session``, from 1 on, has had its share.

    With a precision, more sessions than ``spec.sessions`` are opened while the block goes on.

    Args:
        runs: counted runs of a model so far.
        opening_s: what opening the sessions after the first has taken.
    """
    if spec.sessions == 1:
        return False
    if not spec.precision:
        return session < spec.sessions and runs >= spec.runs * session / spec.sessions
    if session >= spec.sessions and lasted_s < _SESSION_WORTH * opening_s:
        return False
    least_s = spec.min_block_s or _LEAST_S
    return rounds >= _SESSION_ROUNDS * session and lasted_s >= least_s * session / spec.sessions


def of_block(samples: Mapping[int, Samples], trim: float) -> dict[int, Estimate]:
    """Return estimates by what the models of a block say of each other."""
    block = estimate_block([each.as_runs() for each in samples.values()], trim, common_pace=True)
    return dict(zip(samples, block.models, strict=True))


def _staying(
    samples: Mapping[int, Samples],
    active: list[int],
    spec: MeasureSpec,
    found: Mapping[int, Estimate],
) -> list[int]:
    """Who needs more rounds, and those who must keep them company.

    A model that has left may come back: what the others tell of the pace later can widen its
    interval again.
    """
    open_ = [index for index, s in samples.items() if len(s.latency_ns) < spec.runs]
    loose = {index for index in open_ if _needs_more(found[index], spec.precision)}
    if not loose:
        return []
    wanted = sorted(open_, key=lambda i: (i not in loose, i not in active, -found[i].interval))
    return wanted[: max(len(loose), PACE_MODELS)]


def _needs_more(found: Estimate, precision: float) -> bool:
    parts = found.parts
    if parts.interval < precision:
        return False
    worth = _HARDLY_PASSING if parts.runs >= precision else _MOST_PASSING
    return parts.passing >= worth * parts.interval
