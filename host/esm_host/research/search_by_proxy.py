"""Search by a proxy device: its front, or that of its adapted predictor, measured on the target."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.research.transfer.one_proxy import OneProxy, OneProxySettings, one_proxy
from esm_host.research.transfer.proxy import AdaProxyPredictor
from esm_host.search.front import Floats
from esm_host.search.genes import RowIndex, distinct, keys
from esm_host.search.latency import AT_MOST, LATENCY
from esm_host.search.method import SearchMethod
from esm_host.search.problem import Candidates, Measure, Problem
from esm_host.search.settings import SearchSettings
from esm_host.search.verify import Round, Site, Verification, spread, verify_front
from esm_host.transfer.adapted import Calibration
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.monotonicity import LEAST_SHARED, Decision, decide
from esm_host.transfer.source import Source
from esm_models.space import Codes
from esm_protos.text import counted


@dataclass(frozen=True, eq=False)
class ProxyFront:
    """Result of Algorithm 1 for a target.

    Attributes:
        decision: Whether the front is the proxy's (``REUSE``) or the adapted predictor's
            (``ADAPT``).
        check: Comparison that led to the decision, with the predictor of the search.
        proposed: Predicted front. Its latencies only rank; they are those of the samples at the
            same rank.
        unpruned: Same architectures as measured on the target; failed ones are outside every limit.
        front: Pareto front of these within the limits.
        measured: Number of architectures measured on the target, samples and front together.
    """

    decision: Decision
    check: OneProxy
    proposed: Candidates
    unpruned: Candidates
    front: Candidates
    measured: int

    @property
    def samples(self) -> int:
        """Number of architectures measured for the decision and the adaptation."""
        return self.check.samples


def search_by_proxy(
    problem: Callable[[Sequence[Measure]], Problem],
    proxy: Source,
    measure: Callable[[Codes], Floats],
    pool: Codes,
    method: SearchMethod,
    settings: OneProxySettings | None = None,
    proxy_front: Codes | None = None,
) -> ProxyFront:
    """Search with a proxy by Algorithm 1 of Lu et al. 2021 and the steps of its Section 5.4.

    A few samples show whether the proxy ranks as the target does. If so, the proxy's front is used.
    If not, its predictor is adapted and searched. The front is measured on the target, and
    dominated architectures are removed (Section 5.5). If the pool ends before the decision is
    clear, the estimate decides, as in line 5 of the algorithm. Latency limits apply to measurements
    only, as predictions only rank.

    Args:
        problem: Function from latencies to the problem
            (:func:`~esm_host.search.verify.verified_search`).
        proxy: Source of the proxy.
        measure: Function from codes to latencies on the target, ms, ``(n,)``; NaN if it failed. It
            is called once per architecture.
        pool: Samples to measure, in this order; its length limits their number.
        method: Search method.
        settings: Settings of :func:`~esm_host.research.transfer.one_proxy.one_proxy`; None for
            the defaults.
        proxy_front: Known Pareto front of the proxy; None to search its predictor.

    Raises:
        ValueError: as :func:`~esm_host.research.transfer.one_proxy.one_proxy`.
        UsageError: the method does not suit the problem.
    """
    target = _TargetCache(measure, pool[:0])
    decision, check, proposed, _ = _propose(
        problem,
        proxy,
        target,
        pool,
        method,
        settings or OneProxySettings(),
        proxy_front,
    )
    unpruned = problem([_MeasuredLatency(target)]).evaluate(proposed.codes)
    return ProxyFront(decision, check, proposed, unpruned, unpruned.front(), len(target))


@dataclass(frozen=True, eq=False)
class ProxyVerification:
    """Result of a search with a proxy on a site.

    Attributes:
        proxy: Name of the proxy.
        decision: Whether the proxy was used unchanged or adapted.
        check: Comparison that led to the decision.
        fresh: Number of samples of the comparison that the site had not measured before.
        verified: Front of all measurements of the site; stable if it includes the whole proposed
            front.
    """

    proxy: str
    decision: Decision
    check: OneProxy
    fresh: int
    verified: Verification

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the proxy in ``front.json``."""
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
        """Return the result for the proxy and the front of ``count`` architectures, in words.

        Names of arguments are marked (:mod:`esm_host.arguments`).
        """
        found = self.check.proxy
        ranks = (
            f"{self.proxy} ranks {counted(self.check.samples, 'sample')} with a correlation of "
            f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}): its predictor was "
            f"{'used unchanged' if self.decision is Decision.REUSE else 'adapted'}"
        )
        measured = f"{self.verified.measured} of its front and {self.fresh} more samples measured"
        more = f"continue with {argument('resume')} and a larger {argument('measure')}"
        rest = "the whole front" if self.verified.stable else more
        return f"{ranks}\n{count} on the front; {measured}: {rest}"


@dataclass(frozen=True, eq=False)
class CampaignSamples:
    """Samples to compare a proxy with a campaign's device.

    Attributes:
        own: Architectures measured for the campaign, ``(n, *code_shape)``.
        more: Architectures to measure if these are too few, ``(m, *code_shape)``.
    """

    own: Codes
    more: Codes


def verify_by_proxy(
    problem: Callable[[Sequence[Measure]], Problem],
    site: Site,
    proxy: Source,
    samples: CampaignSamples,
    method: SearchMethod,
    settings: SearchSettings,
    past: Sequence[Round],
    on_round: Callable[[Sequence[Round]], None],
) -> ProxyVerification:
    """Search with a proxy on a campaign's site, within a budget.

    The campaign's own architectures are the first samples of :func:`search_by_proxy`. The budget
    limits how many of the proposed front are measured. They are spread over those expected to be
    fast enough.

    Args:
        problem: Function from latencies to the problem.
        site: Site of the campaign.
        proxy: Source of the proxy.
        samples: Samples of the campaign, and further ones.
        method: Search method.
        settings: Settings of the search. ``measure`` limits samples and front together.
        past: Rounds of the same search (:func:`~esm_host.search.verify.verified_search`).
        on_round: Function called with all rounds before each measurement.

    Raises:
        UsageError: the method does not suit the problem, or there are too few samples.
    """
    own, budget = samples.own, settings.measure
    slowest_ms = settings.max_latency_ms[0] if settings.max_latency_ms else math.inf
    pool = np.concatenate([own, samples.more[: budget // 2]])
    if len(pool) < LEAST_SHARED:
        raise UsageError(
            f"too few samples to compare a proxy with ({len(pool)}): measure {LEAST_SHARED} or more"
        )

    def measure(codes: Codes) -> Floats:
        if not np.isin(keys(codes), keys(site.known())).all():
            site.measure(codes, 0)
        return np.asarray(site.latency(settings.probability)(codes)[LATENCY], dtype=np.float64)

    rounds = list(past)
    if rounds and len(rounds[-1].chosen):
        # The search may have been interrupted there.
        site.measure(rounds[-1].chosen.codes, len(rounds))
    first = min(30, len(pool))
    target = _TargetCache(measure, pool[:0])
    decision, check, proposed, evaluations = _propose(
        problem, proxy, target, pool, method, OneProxySettings(first=first, seed=settings.seed)
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
        on_round(rounds)
        site.measure(chosen.codes, len(rounds))
    stable = bool(np.isin(keys(proposed.codes), keys(site.known())).all())
    found = verify_front(problem, [site], settings.probability, stable, rounds)
    return ProxyVerification(proxy.name, decision, check, fresh_samples, found)


def _propose(
    problem: Callable[[Sequence[Measure]], Problem],
    proxy: Source,
    target: _TargetCache,
    pool: Codes,
    method: SearchMethod,
    settings: OneProxySettings,
    proxy_front: Codes | None = None,
) -> tuple[Decision, OneProxy, Candidates, int]:
    """Return the decision, the comparison, the proposed front and the number of evaluations."""
    check = one_proxy([proxy], target, pool[distinct(pool)], settings)
    decision, predictor = check.decision, check.predictor
    if decision is Decision.MEASURE:  # the pool has ended
        decision = decide(check.proxy, settings.threshold, by_interval=False)
        if decision is Decision.ADAPT and not predictor.corrects:
            predictor = AdaProxyPredictor(model=settings.model, seed=settings.seed)
            predictor.learn([proxy])
            predictor.adapt(*target.samples())
    ranked = problem([_RankedLatency(predictor, *target.samples())])
    if decision is Decision.REUSE and proxy_front is not None:
        front = proxy_front[distinct(proxy_front)]
        return decision, check, ranked.evaluate(front), len(front)
    outcome = method.search(ranked)
    return decision, check, outcome.front, outcome.evaluations


class _TargetCache:
    """Measurements of the target, made once per architecture."""

    def __init__(self, measure: Callable[[Codes], Floats], nothing: Codes) -> None:
        self._measure = measure
        self._codes = nothing
        self._latency_ms = np.zeros(0)

    def __len__(self) -> int:
        """Return the number of measured architectures."""
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
        """Return all architectures with a latency, and the latencies."""
        there = np.isfinite(self._latency_ms)
        return self._codes[there], self._latency_ms[there]


class _RankedLatency:
    """Measure of scores that rank as the target does, roughly in its milliseconds.

    The upper bound is 0, so that latency limits have no effect.
    """

    def __init__(self, predictor: FewShotPredictor, codes: Codes, latency_ms: Floats) -> None:
        self._predictor = predictor
        self._calibration = Calibration(predictor.predict(codes), latency_ms)

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        latency_ms = self._calibration(self._predictor.predict(codes))
        return {LATENCY: latency_ms, AT_MOST: np.zeros(len(codes))}


class _MeasuredLatency:
    """Measure of the target's measured latency."""

    def __init__(self, target: _TargetCache) -> None:
        self._target = target

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        latency_ms = self._target(codes)
        return {LATENCY: latency_ms, AT_MOST: latency_ms}
