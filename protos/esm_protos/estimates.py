"""Estimates of the latencies of a block's models, with confidence intervals.

The agent stops measuring by these estimates, and the host reports them and trains on them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm_protos.messages import Measurement, MeasureSpec, RunOrder, UsualLatencies
from esm_protos.paces import WEIGHTLESS, KnownModel, Paces, Reading, Shift
from esm_protos.statistics import (
    BATCHES,
    PACE_MODELS,
    degrees_of_freedom,
    half_width,
    influence,
    pace,
    relative_interval,
    t_quantile,
    trimmed_mean,
)

Floats = NDArray[np.float64]
Known = Mapping[str, tuple[float, float]]
"""Usual latencies, nanoseconds, and their standard errors, as shares, by the names of models."""

_PRIOR_SESSIONS, _SESSION_FREEDOM = 3, 10
"""Number of sessions that the prior of their variance counts as; degrees of freedom of the
posterior."""
_SESSION_BATCHES = 5
_MIN_BATCHES = 10
_COMMON = 0.8
"""Share of the batches in which every model must have a visit."""
_MEMORY_EXCESS = 0.2
"""Largest excess of a model's mean over its quick runs that memory alone causes, as a logarithm.
With 15 to 25 MB of weights it was 0.15 to 0.29."""
_MIN_WEIGHT = 0.02
"""Smallest weight of a reference model that is used."""
_MAX_SLOWDOWN = 100
"""Largest plausible slowdown of a device. Beyond it the usual latencies are wrong or belong to
another device."""
_VISIT_SPREAD = 0.1
"""Prior standard deviation between visits, as a share of the latency."""
_NORMAL_FREEDOM = 100
"""Degrees of freedom at which Student's distribution counts as normal."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Counted runs of a model in a block.

    Attributes:
        latency_ns: Latencies in time order, ns, shape ``(runs,)``.
        start_ns: Start times, ns, shape ``(runs,)``.
        runs_per_visit: Counted runs of a visit.
        weight_bytes: Bytes of the model's initializers; 0 if unknown.
        session_runs: Counted runs of each session; empty for a single session.
        name: Id of the model.
    """

    latency_ns: NDArray[np.int64]
    start_ns: NDArray[np.int64]
    runs_per_visit: int
    weight_bytes: int = 0
    session_runs: tuple[int, ...] = ()
    name: str = ""

    @classmethod
    def of(cls, measurement: Measurement, spec: MeasureSpec) -> Runs:
        """Return the runs of a measurement without failure."""
        return cls(
            measurement.latency_ns,
            measurement.start_ns,
            measurement.visit_runs(spec),
            measurement.weight_bytes,
            measurement.session_runs,
            measurement.model_id,
        )

    @property
    def visits(self) -> Floats:
        """Latencies, ns, shape ``(visits, runs per visit)``, without an incomplete last visit."""
        per_visit = min(self.runs_per_visit, len(self.latency_ns))
        full = len(self.latency_ns) // per_visit
        return self.latency_ns[: full * per_visit].reshape(full, per_visit).astype(np.float64)

    @property
    def quickest(self) -> Runs:
        """Quickest run of each visit.

        A lower clock slows down every run; other disturbances slow down only some.
        """
        shortest = self.visits.min(axis=1).astype(np.int64)
        return replace(
            self,
            latency_ns=shortest,
            start_ns=self.visit_starts_ns,
            runs_per_visit=1,
            session_runs=(),
        )

    @property
    def visit_starts_ns(self) -> NDArray[np.int64]:
        """Start times of the visits, ns, shape ``(visits,)``."""
        return self.start_ns[:: self.runs_per_visit][: len(self.visits)]


@dataclass(frozen=True)
class Parts:
    """Parts of a confidence interval, one for each source of error.

    Each is the half-width of a 95 % interval of the latency's logarithm. A small one is nearly a
    share of the latency.

    Attributes:
        runs: Error from the model's runs, without what they share with the reference models'
            runs; infinite with fewer than ``MIN_ROUNDS`` rounds.
        own_runs: Error from the model's runs, of its latency in the block; None if equal to
            ``runs``.
        readings: Error of the device's paces from the reference models' runs, if ``runs`` does
            not include it.
        sessions: Difference between sessions.
        pace: Error of the usual paces, and variation between moments of this model alone.
        history: Part of ``pace`` that is common to blocks minutes apart.
        moments: Number of moments in the device's history of its reference models.
        blocks: Difference between blocks at several moments, which replaces the first four; None
            for one block.
    """

    runs: float
    own_runs: float | None = None
    readings: float = 0.0
    sessions: float = 0.0
    pace: float = 0.0
    history: float = 0.0
    moments: int = 0
    blocks: float | None = None

    @property
    def interval(self) -> float:
        """Half-width for this device at any time."""
        if self.blocks is not None:
            return math.hypot(self.blocks, self.history)
        return math.hypot(self.runs, self.readings, self.sessions, self.pace)

    @property
    def within(self) -> float:
        """Half-width within the block."""
        return self.raw.interval

    @property
    def raw(self) -> Parts:
        """Parts of the interval of the latency within the block."""
        runs = self.runs if self.own_runs is None else self.own_runs
        return Parts(runs, sessions=self.sessions, moments=self.moments)

    @property
    def passing(self) -> float:
        """Half-width of the part that a longer block reduces."""
        return math.hypot(self.runs, self.readings)


@dataclass(frozen=True)
class Estimate:
    """Estimate of a model's latency, with its confidence interval.

    Attributes:
        latency_ns: Trimmed mean of the runs at the device's usual pace, ns; at the block's pace
            if the usual one is unknown.
        raw_ns: Trimmed mean of the uncorrected runs, ns.
        parts: Parts of the confidence interval.
        shift: Distance of the block from the usual; None without reference models.
    """

    latency_ns: float
    raw_ns: float
    parts: Parts
    shift: Shift | None = None

    @property
    def in_block(self) -> Estimate:
        """Estimate of the latency in the block, at the block's pace."""
        return replace(self, latency_ns=self.block_pace_ns, parts=self.parts.raw)

    @property
    def latency_ms(self) -> float:
        """Latency at the usual pace, ms."""
        return self.latency_ns / 1e6

    @property
    def raw_ms(self) -> float:
        """Uncorrected latency, ms."""
        return self.raw_ns / 1e6

    @property
    def block_pace_ns(self) -> float:
        """Latency at the block's own pace, nanoseconds."""
        return self.latency_ns * math.exp(self.slower)

    @property
    def slower(self) -> float:
        """Logarithm of the block's slowdown for this model, compared with usual; 0 if unknown."""
        return 0.0 if self.shift is None else self.shift.value

    @property
    def interval(self) -> float:
        """Half-width of the 95 % interval of the logarithm for this device at any time."""
        return self.parts.interval

    @property
    def within(self) -> float:
        """Half-width of the 95 % interval of the logarithm within this block."""
        return self.parts.within


@dataclass(frozen=True)
class BlockEstimate:
    """Estimates of a block's models.

    Attributes:
        models: Estimates of the models, in their order.
        slowdown: Excess of the pace in the block's last third over that in its first, as a share;
            0 if the pace is unknown.
        paces: Paces of the block; None without reference models.
    """

    models: list[Estimate]
    slowdown: float
    paces: Paces | None = None


@dataclass(frozen=True)
class RatioShift:
    """Distance of two models' latency ratio in a block from their usual ratio.

    Attributes:
        value: Logarithm of the ratio minus that of the usual ratio.
        half: Half-width of the 95 % interval of ``value``, from paces and sessions.
        shared: Part of ``half`` that is common to blocks minutes apart.
    """

    value: float
    half: float
    shared: float


def ratio_shift(paces: Paces, one: tuple[int, Estimate], other: tuple[int, Estimate]) -> RatioShift:
    """Return the distance of two models' latency ratio in a block from their usual ratio.

    Args:
        paces: Paces of the block.
        one: Bytes of weights and estimate of the first model.
        other: The same of the second model.
    """
    shift = paces.difference(_in_block(*one), _in_block(*other))
    sessions = [each.parts.sessions for _, each in (one, other)]
    t = _t(_freedom(paces))
    return RatioShift(shift.value, math.hypot(t * shift.error, *sessions), t * shift.shared)


def _in_block(weight_bytes: int, estimate: Estimate) -> tuple[int, float]:
    return weight_bytes, estimate.block_pace_ns


def estimate_references(
    references: Sequence[Measurement], spec: MeasureSpec
) -> dict[str, Estimate]:
    """Return the estimates of the reference models at the pace of their block, by name.

    Models that failed are left out.
    """
    runs = [_pace_runs(Runs.of(m, spec)) for m in references if m.failure is None]
    block = estimate_block(runs, spec.trim, spec.run_order is RunOrder.INTERLEAVED)
    return {each.name: estimate for each, estimate in zip(runs, block.models, strict=True)}


def _pace_runs(reference: Runs) -> Runs:
    """Return the runs of a reference model that show the device's pace.

    A model with hardly any weights shows the processor's clock by its quickest runs. A
    disturbance that delays only some runs, and long ones more often, is not the clock.
    """
    return reference.quickest if reference.weight_bytes < WEIGHTLESS else reference


def estimate_measured(
    measurements: Sequence[Measurement],
    spec: MeasureSpec,
    references: Sequence[Measurement] = (),
    usual: UsualLatencies | None = None,
    known: Known | None = None,
) -> BlockEstimate:
    """Return the estimates of a block's models, in their order, without those that failed.

    Args:
        measurements: Measurements of the models.
        spec: Settings of the block.
        references: Measurements of the reference models.
        usual: Usual latencies of the reference models; None if unknown.
        known: Usual latency, ns, and its standard error, as a share, by model id. They come from
            other blocks.
    """
    return BlockRuns.of(measurements, spec, references).estimate(usual, known)


def estimate_block(
    models: Sequence[Runs],
    trim: float,
    common_pace: bool,
    references: Sequence[Runs] = (),
    usual: UsualLatencies | None = None,
    known: Known | None = None,
) -> BlockEstimate:
    """Return the estimates of a block's models, from their runs.

    Args:
        models: Runs of the models.
        trim: Share of the runs dropped at each end.
        common_pace: Whether the block was interleaved, so that its models share a pace.
        references: Runs of the reference models in the block.
        usual: Usual latencies of the reference models; None if unknown.
        known: As in :func:`estimate_measured`, by the names of the models.
    """
    return BlockRuns(models, trim, common_pace, references).estimate(usual, known)


class BlockRuns:
    """Runs of a block, with all derived values that depend on the block alone.

    The usual latencies of a device change with every block. Estimates for new ones are cheap.

    Args:
        models: Runs of the models.
        trim: Share of the runs dropped at each end.
        common_pace: Whether the block was interleaved, so that its models share a pace.
        references: Runs of the reference models in the block.

    Attributes:
        slowdown: As in :class:`BlockEstimate`.
    """

    def __init__(
        self,
        models: Sequence[Runs],
        trim: float,
        common_pace: bool,
        references: Sequence[Runs] = (),
    ) -> None:
        all_runs = [*models, *map(_pace_runs, references)]
        visits = [runs.visits for runs in all_runs]
        starts = [runs.visit_starts_ns for runs in all_runs]
        if common_pace and len(models) >= PACE_MODELS:
            factors = pace([np.median(v, axis=1) for v in visits], starts)
        else:  # visits of reference models are too rare to give the pace at every visit
            factors = [np.ones(len(v)) for v in visits]
        self._trim = trim
        self._models = [
            _ModelRuns(*each, trim) for each in zip(all_runs, visits, starts, factors, strict=True)
        ]
        self._references = self._models[len(models) :]
        del self._models[len(models) :]
        self.slowdown = _slowdown(factors, starts)

    @classmethod
    def of(
        cls,
        measurements: Sequence[Measurement],
        spec: MeasureSpec,
        references: Sequence[Measurement] = (),
    ) -> BlockRuns:
        """Build from the measurements without failure."""
        return cls(
            [Runs.of(m, spec) for m in measurements if m.failure is None],
            spec.trim,
            spec.run_order is RunOrder.INTERLEAVED,
            [Runs.of(m, spec) for m in references if m.failure is None],
        )

    def estimate(
        self, usual: UsualLatencies | None = None, known: Known | None = None
    ) -> BlockEstimate:
        """Return the estimates of the models, in their order.

        Args:
            usual: Usual latencies of the reference models; None if unknown.
            known: As in :func:`estimate_measured`, by the names of the models.
        """
        if not self._references:
            return BlockEstimate([each.alone for each in self._models], self.slowdown)
        readings = [
            Reading(each.runs.name, each.runs.weight_bytes, each.alone.latency_ns, each.error)
            for each in self._references
        ]
        known_models = [
            KnownModel(
                each.runs.weight_bytes,
                each.alone.latency_ns,
                math.log(each.alone.latency_ns / known[each.runs.name][0]),
                math.hypot(each.error, known[each.runs.name][1]),
            )
            for each in self._models
            if known and each.runs.name in known
        ]
        if usual is not None and not _of_this_device(readings, usual):
            usual = None
        paces = Paces(readings, usual, known_models)
        estimates = [
            each.at_usual(paces, _joint_half_width(each, self._references, paces, self._trim))
            for each in self._models
        ]
        return BlockEstimate(estimates, self.slowdown, paces)


class _ModelRuns:
    """Runs of a model in a block, and the estimate from them alone.

    Args:
        runs: Runs of the model.
        visited: Latencies, ns, shape ``(visits, runs per visit)``.
        start_ns: Start times of the visits, ns, shape ``(visits,)``.
        factors: Pace of the device at each visit, shape ``(visits,)``.
        trim: Share of the runs dropped at each end.

    Attributes:
        alone: Estimate without correction by reference models, at the block's mean pace.
    """

    def __init__(
        self,
        runs: Runs,
        visited: Floats,
        start_ns: NDArray[np.int64],
        factors: Floats,
        trim: float,
    ) -> None:
        self.runs = runs
        self.start_ns = start_ns
        self._visited = visited
        self._at_pace = visited / factors[:, None]
        self._trim = trim
        # An incomplete last visit counts in the mean, at the pace of the visit before.
        of_runs = np.repeat(factors, visited.shape[1])
        of_runs = np.pad(of_runs, (0, len(runs.latency_ns) - len(of_runs)), mode="edge")
        self.alone = Estimate(
            latency_ns=trimmed_mean(runs.latency_ns / of_runs, trim),
            raw_ns=trimmed_mean(runs.latency_ns, trim),
            parts=Parts(runs=relative_interval(self._at_pace, trim)),
        )

    @cached_property
    def influence(self) -> Floats:
        """Influence of each visit on the mean, shape ``(visits,)``."""
        return influence(self._at_pace, self._trim)

    @cached_property
    def error(self) -> float:
        return _error(self.alone, self._visited)

    @cached_property
    def _interruptions(self) -> float:
        """Standard deviation between moments of the delay by interruptions, as a share.

        Other programs delay most runs more than memory alone does, by an amount that varies with
        time. Half of the delay is the estimate of its standard deviation.
        """
        longer = math.log(self.alone.latency_ns / float(np.quantile(self._at_pace, 0.1)))
        return max(longer - _MEMORY_EXCESS, 0.0) / 2

    @cached_property
    def _sessions(self) -> _Sessions:
        ends = np.cumsum(self.runs.session_runs or (len(self.runs.latency_ns),))
        ends //= self._at_pace.shape[1]
        parts = [
            np.log(np.median(self._at_pace[start:end], axis=1))
            for start, end in itertools.pairwise([0, *ends.tolist()])
            if end - start > 1
        ]
        count = max(len(self.runs.session_runs), 1)
        if len(parts) < 2:
            return _Sessions(count)
        means = np.array([np.median(part) for part in parts])
        by_runs = float(np.mean([_median_error(part) ** 2 for part in parts]))
        return _Sessions(count, float(means.var(ddof=1)), by_runs, len(parts))

    def at_usual(self, paces: Paces, joint: float | None) -> Estimate:
        """Return the latency at the device's usual pace.

        Args:
            paces: Paces of the block.
            joint: Half-width from :func:`_joint_half_width`; None if there is none.
        """
        runs, alone = self.runs, self.alone
        shift = paces.shift(runs.weight_bytes, alone.latency_ns)
        expected = paces.session_error(runs.weight_bytes, alone.latency_ns)
        t = _t(_freedom(paces))
        parts = Parts(
            runs=alone.parts.runs if joint is None else joint,
            own_runs=alone.parts.runs,
            readings=_t(_NORMAL_FREEDOM) * shift.passing if joint is None else 0.0,
            sessions=_t(_SESSION_FREEDOM) * self._sessions.error(expected),
            pace=t * math.hypot(shift.lasting, self._interruptions),
            history=t * shift.shared,
            moments=paces.moments,
        )
        return Estimate(alone.latency_ns * math.exp(-shift.value), alone.raw_ns, parts, shift)


def _joint_half_width(
    model: _ModelRuns, references: Sequence[_ModelRuns], paces: Paces, trim: float
) -> float | None:
    """Return the half-width from a model's and the reference models' runs together.

    A disturbance of a second slows down the model and the reference models alike, so it cancels
    when their paces are divided out. Batches are therefore intervals of time.

    Returns:
        None if a reference model has too few visits, or visits in only a part of the block.
    """
    weights = paces.weights(model.runs.weight_bytes, model.alone.latency_ns)
    used = [each for each in references if abs(weights.get(each.runs.name, 0.0)) > _MIN_WEIGHT]
    count = min(BATCHES, *(len(each.start_ns) for each in [model, *used]))
    if count < _MIN_BATCHES:
        return None
    began = min(int(each.start_ns[0]) for each in [model, *used])
    ended = max(int(each.start_ns[-1]) for each in [model, *used]) + 1
    sums = np.zeros(count)
    for each in [model, *used]:
        weight = 1.0 if each is model else -weights[each.runs.name]
        batch = (each.start_ns - began) * count // (ended - began)
        if len(np.unique(batch)) < _COMMON * count:  # its mean covers another part of the block
            return None
        sums += weight * np.bincount(batch, each.influence, count)
    return half_width(sums, degrees_of_freedom(count, trim))


def _of_this_device(readings: Sequence[Reading], usual: UsualLatencies) -> bool:
    """Return whether usual latencies are plausible for the device of a block."""
    known = dict(zip(usual.references, usual.latency_ns.tolist(), strict=True))
    return all(
        1 / _MAX_SLOWDOWN < each.latency_ns / known[each.name] < _MAX_SLOWDOWN
        for each in readings
        if each.name in known
    )


class _Sessions(NamedTuple):
    """Observed spread between a model's sessions.

    Attributes:
        sessions: Number of sessions.
        means_variance: Variance of the sessions' mean logarithms; 0 with fewer than two compared
            sessions.
        runs_variance: Part of ``means_variance`` that runs within sessions explain.
        compared: Number of sessions with enough visits to be compared.
    """

    sessions: int
    means_variance: float = 0.0
    runs_variance: float = 0.0
    compared: int = 0

    def error(self, expected: float) -> float:
        """Return the standard error of a mean over sessions, from their spread, as a share.

        Args:
            expected: Prior standard deviation between sessions.
        """
        variance = expected**2
        if self.compared > 1:
            # The spread of runs hides a part of the spread of sessions.
            shown = (variance / (variance + self.runs_variance)) ** 2
            freedom = (self.compared - 1) * shown
            seen = max(self.means_variance - self.runs_variance, 0.0)
            variance = _PRIOR_SESSIONS * variance + freedom * seen
            variance /= _PRIOR_SESSIONS + freedom
        # If a batch of rounds spans a session or more, the runs' part includes their spread.
        return math.sqrt(variance * max(1 / self.sessions - 1 / BATCHES, 0.0))


def _median_error(values: Floats) -> float:
    """Return the standard error of the median of consecutive visits, from batch medians."""
    count = min(len(values), _SESSION_BATCHES)
    batches = [np.median(part) for part in np.array_split(values, count)]
    # With one visit per batch the medians are plain values; a median has pi / 2 times the variance.
    factor = math.pi / 2 if len(values) < 2 * count else 1.0
    return math.sqrt(factor * float(np.var(batches, ddof=1)) / count)


def _error(estimate: Estimate, visited: Floats) -> float:
    """Return the standard error of a latency, as a share.

    Few visits may agree by chance, so the prior spread counts as a further visit.
    """
    if math.isfinite(estimate.parts.runs):
        return estimate.parts.runs / 2
    values = np.median(visited, axis=1)
    deviations = values / values.mean() - 1
    return math.sqrt(_VISIT_SPREAD**2 + float(deviations @ deviations)) / len(values)


def _freedom(paces: Paces) -> float:
    """Return the degrees of freedom of the history of a device's paces."""
    return min(paces.freedom, _NORMAL_FREEDOM) if paces.known else _NORMAL_FREEDOM


def _t(freedom: float) -> float:
    return t_quantile(max(int(freedom), 1))


def _slowdown(paces: Sequence[Floats], began: Sequence[NDArray[np.int64]]) -> float:
    if not paces:
        return 0.0
    in_time = np.concatenate(paces)[np.argsort(np.concatenate(began), kind="stable")]
    third = max(len(in_time) // 3, 1)
    return float(np.median(in_time[-third:]) / np.median(in_time[:third]) - 1)
