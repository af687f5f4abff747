"""One proxy from end to end: its front, or an adapted one's, measured and pruned on the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esm_host.errors import UsageError
from esm_host.research.transfer.one_proxy import OneProxy, one_proxy
from esm_host.research.transfer.proxy import AdaProxyPredictor
from esm_host.search.front import Floats
from esm_host.search.genes import RowIndex, distinct, keys
from esm_host.search.latency import AT_MOST, LATENCY
from esm_host.search.method import SearchMethod
from esm_host.search.problem import Candidates, Measure, Problem
from esm_host.search.verify import Round, Site, Verification, spread, verify_front
from esm_host.transfer.adapted import Calibration
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.monotonicity import LEAST_SHARED, THRESHOLD, Decision, decide
from esm_host.transfer.source import Source
from esm_models.space import Codes


@dataclass(frozen=True, eq=False)
class ByProxy:
    """What Algorithm 1 found for a target.

    Attributes:
        decision: whose front was taken: the proxy's (``REUSE``) or the adapted one's (``ADAPT``).
        check: how that was decided, and by which predictor the front was searched.
        proposed: the front by predictions, which rank only; their milliseconds are those that
            the samples had at the same rank.
        unpruned: the same architectures as the target measured them; those that failed are out of
            every limit.
        front: of these, what no other beats and what keeps the limits.
        measured: architectures that the target measured, samples and front together.
    """

    decision: Decision
    check: OneProxy
    proposed: Candidates
    unpruned: Candidates
    front: Candidates
    measured: int

    @property
    def samples(self) -> int:
        """Architectures that were measured to decide and to adapt."""
        return self.check.samples


def search_by_proxy(
    problem: Callable[[Sequence[Measure]], Problem],
    proxy: Source,
    measure: Callable[[Codes], Floats],
    pool: Codes,
    method: SearchMethod,
    *,
    proxy_front: Codes | None = None,
    threshold: float = THRESHOLD,
    first: int = 30,
    step: int = 20,
    model: str = "linear",
    seed: int = 0,
) -> ByProxy:
    """Algorithm 1 of Lu et al. 2021 as a whole, with the steps of its Section 5.4.

    A few samples say whether the proxy ranks as the target does. If it does, the proxy's front is
    taken; if not, its predictor is adapted, and searched. The front is measured on the target, and
    what is not Pareto-optimal there is removed (Section 5.5). Where the pool ends before it is
    clear on which side of the threshold the proxy lies, its estimate decides, as in line 5 there.

    Predictions rank and promise nothing: limits of the latency count from the measurements on.

    Args:
        problem: of the target's latency, as :func:`~esm_host.search.verify.verified_search` has it.
        measure: latencies on the target, ms, ``(n,)`` of ``(n, *code_shape)``; NaN of what failed.
            It is asked for each architecture once.
        pool: samples to measure, in that order; its length is the most that it may cost.
        proxy_front: what is Pareto-optimal on the proxy, where that is known; else the proxy's
            predictor is searched.
        threshold, first, step, model, seed: of
            :func:`~esm_host.research.transfer.one_proxy.one_proxy`.

    Raises:
        ValueError: as there.
        UsageError: the method does not suit the problem.
    """
    target = _Target(measure, pool[:0])
    decision, check, proposed, _ = _propose(
        problem, proxy, target, pool, method, proxy_front, threshold, first, step, model, seed
    )
    unpruned = problem([_Measured(target)]).evaluate(proposed.codes)
    return ByProxy(decision, check, proposed, unpruned, unpruned.front(), len(target))


@dataclass(frozen=True, eq=False)
class VerifiedByProxy:
    """Result of a search with a proxy on a site.

    Attributes:
        proxy: its name.
        decision, check: as of :class:`ByProxy`.
        fresh: samples among those of the check that the site had not measured before.
        verified: the front of all that the site has measured; stable if the whole proposed front
            is among it.
    """

    proxy: str
    decision: Decision
    check: OneProxy
    fresh: int
    verified: Verification

    def to_json(self) -> dict[str, Any]:
        """Entry of the proxy in ``front.json``."""
        correlation = self.check.proxy
        return {
            "name": self.proxy,
            "decision": self.decision.value,
            "correlation": correlation.value,
            "correlation_low": correlation.low,
            "correlation_high": correlation.high,
            "samples": self.check.samples,
            "fresh_samples": self.fresh,
        }

    def describe(self, count: int) -> str:
        """Return what became of the proxy, and of the ``count`` on the front, in words."""
        found = self.check.proxy
        ranks = (
            f"{self.proxy} ranks {self.check.samples} samples with a correlation of "
            f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}): its predictor was "
            f"{'used as it is' if self.decision is Decision.REUSE else 'adapted'}"
        )
        measured = f"{self.verified.measured} of its front and {self.fresh} more samples measured"
        rest = "all of it" if self.verified.stable else "--resume with a larger --measure goes on"
        return f"{ranks}\n{count} on the front; {measured}, {rest}"


def verified_by_proxy(
    problem: Callable[[Sequence[Measure]], Problem],
    site: Site,
    proxy: Source,
    own: Codes,
    more: Codes,
    method: SearchMethod,
    budget: int,
    probability: float = 0.9,
    slowest_ms: float = math.inf,
    past: Sequence[Round] = (),
    on_round: Callable[[Sequence[Round]], None] | None = None,
    seed: int = 0,
) -> VerifiedByProxy:
    """:func:`search_by_proxy` on a campaign's site, within a budget.

    The campaign's own architectures are its first samples. Of the front that the proxy proposes so
    many are measured as the budget allows, spread over what is expected to be fast enough.

    Args:
        own: what the site measured for its campaign, ``(n, *code_shape)``.
        more: samples to measure where these are too few to tell; at most half of the budget is
            spent on them.
        budget: architectures to measure at most, samples and front together.
        probability: of keeping a latency limit, for what is found.
        slowest_ms: that limit.
        past: rounds of the same search, as of :func:`~esm_host.search.verify.verified_search`.
        on_round: is told all rounds before what the last one chose is measured.

    Raises:
        UsageError: the method does not suit the problem, or there are too few samples.
    """
    pool = np.concatenate([own, more[: budget // 2]])
    if len(pool) < LEAST_SHARED:
        raise UsageError(
            f"{len(pool)} samples are too few to compare a proxy with: measure {LEAST_SHARED} or "
            "more"
        )

    def measure(codes: Codes) -> Floats:
        if not np.isin(keys(codes), keys(site.known())).all():
            site.measure(codes)
        return np.asarray(site.latency(probability)(codes)[LATENCY], dtype=np.float64)

    rounds = list(past)
    if rounds and len(rounds[-1].chosen):
        site.measure(rounds[-1].chosen.codes)  # it may have been broken off there
    first = min(30, len(pool))
    target = _Target(measure, pool[:0])
    decision, check, proposed, evaluations = _propose(
        problem, proxy, target, pool, method, None, THRESHOLD, first, 20, "linear", seed
    )
    fresh_samples = int((~np.isin(keys(pool[: check.samples]), keys(own))).sum())
    left = budget - fresh_samples - sum(len(each.chosen) for each in rounds)
    proposed = proposed[np.argsort(proposed.values[LATENCY], kind="stable")]
    fresh = proposed[np.flatnonzero(~np.isin(keys(proposed.codes), keys(site.known())))]
    if left > 0 and len(fresh):
        fast = int((fresh.values[LATENCY] <= slowest_ms).sum())
        fresh = fresh[np.arange(min(len(fresh), max(fast, left)))]
        chosen = fresh[spread(len(fresh), left, math.isfinite(slowest_ms))]
        rounds.append(Round(proposed, chosen, evaluations, 0.5))
        if on_round is not None:
            on_round(rounds)
        site.measure(chosen.codes)
    stable = bool(np.isin(keys(proposed.codes), keys(site.known())).all())
    found = verify_front(problem, [site], probability, stable, rounds)
    return VerifiedByProxy(proxy.name, decision, check, fresh_samples, found)


def _propose(
    problem: Callable[[Sequence[Measure]], Problem],
    proxy: Source,
    target: _Target,
    pool: Codes,
    method: SearchMethod,
    proxy_front: Codes | None,
    threshold: float,
    first: int,
    step: int,
    model: str,
    seed: int,
) -> tuple[Decision, OneProxy, Candidates, int]:
    """Return the decision, how it came about, the front to measure, and how many were scored."""
    check = one_proxy(
        [proxy],
        target,
        pool[distinct(pool)],
        threshold=threshold,
        first=first,
        step=step,
        model=model,
        seed=seed,
    )
    decision, predictor = check.decision, check.predictor
    if decision is Decision.MEASURE:  # there is no more to measure
        decision = decide(check.proxy, threshold, by_interval=False)
        if decision is Decision.ADAPT and not isinstance(predictor, AdaProxyPredictor):
            predictor = AdaProxyPredictor(model=model, seed=seed).learn([proxy])
            predictor.adapt(*target.samples())
    ranked = problem([_Ranks(predictor, *target.samples())])
    if decision is Decision.REUSE and proxy_front is not None:
        front = proxy_front[distinct(proxy_front)]
        return decision, check, ranked.evaluate(front), len(front)
    outcome = method.search(ranked)
    return decision, check, outcome.front, outcome.evaluations


class _Target:
    """Measures each architecture once, however often it is asked for."""

    def __init__(self, measure: Callable[[Codes], Floats], nothing: Codes) -> None:
        self._measure = measure
        self._codes = nothing
        self._latency_ms = np.zeros(0)

    def __len__(self) -> int:
        """How many it has measured."""
        return len(self._codes)

    def __call__(self, codes: Codes) -> Floats:
        fresh = codes[RowIndex(self._codes)(codes) < 0]
        if len(fresh):
            fresh = fresh[distinct(fresh)]
            latency_ms = np.asarray(self._measure(fresh), dtype=np.float64)
            self._codes = np.concatenate([self._codes, fresh])
            self._latency_ms = np.concatenate([self._latency_ms, latency_ms])
        return self._latency_ms[RowIndex(self._codes)(codes)]

    def samples(self) -> tuple[Codes, Floats]:
        """All that it could measure."""
        there = np.isfinite(self._latency_ms)
        return self._codes[there], self._latency_ms[there]


class _Ranks:
    """Latencies that rank as the target's should, roughly in its milliseconds: no limit holds
    them."""

    def __init__(self, predictor: FewShotPredictor, codes: Codes, latency_ms: Floats) -> None:
        self._predictor = predictor
        self._calibration = Calibration(predictor.predict(codes), latency_ms)

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        latency_ms = self._calibration(self._predictor.predict(codes))
        return {LATENCY: latency_ms, AT_MOST: np.zeros(len(codes))}


class _Measured:
    """The target's own."""

    def __init__(self, target: _Target) -> None:
        self._target = target

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        latency_ms = self._target(codes)
        return {LATENCY: latency_ms, AT_MOST: latency_ms}
