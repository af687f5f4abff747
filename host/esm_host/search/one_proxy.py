"""One proxy from end to end: its front, or an adapted one's, measured and pruned on the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from esm_host.search.front import Floats
from esm_host.search.genes import Rows, distinct
from esm_host.search.latency import AT_MOST, LATENCY
from esm_host.search.method import SearchMethod
from esm_host.search.problem import Found, Measure, Problem
from esm_host.sources.source import Source
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.devices.monotonicity import THRESHOLD, Decision, decide
from esm_host.transfer.methods.one_proxy import OneProxy, one_proxy
from esm_host.transfer.methods.proxy import AdaProxyPredictor
from esm_models.space import Codes


@dataclass(frozen=True, eq=False)
class ByProxy:
    """What Algorithm 1 found for a target.

    Attributes:
        decision: whose front was taken: the proxy's (``REUSE``) or the adapted one's (``ADAPT``).
        check: how that was decided, and by which predictor the front was searched.
        proposed: the front by predictions, which rank only; of a proxy's front that was given,
            their latencies on the proxy as predicted.
        unpruned: the same architectures as the target measured them; those that failed are out of
            every limit.
        front: of these, what no other beats and what keeps the limits.
        measured: architectures that the target measured, samples and front together.
    """

    decision: Decision
    check: OneProxy
    proposed: Found
    unpruned: Found
    front: Found
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
            :func:`~esm_host.transfer.methods.one_proxy.one_proxy`.

    Raises:
        ValueError: as there.
        UsageError: the method does not suit the problem.
    """
    target = _Target(measure, pool[:0])
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
    ranked = problem([_Ranks(predictor)])
    if decision is Decision.REUSE and proxy_front is not None:
        proposed = ranked.evaluate(proxy_front[distinct(proxy_front)])
    else:
        proposed = method.search(ranked).front
    unpruned = problem([_Measured(target)]).evaluate(proposed.codes)
    return ByProxy(decision, check, proposed, unpruned, unpruned.front(), len(target))


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
        fresh = codes[Rows(self._codes)(codes) < 0]
        if len(fresh):
            fresh = fresh[distinct(fresh)]
            latency_ms = np.asarray(self._measure(fresh), dtype=np.float64)
            self._codes = np.concatenate([self._codes, fresh])
            self._latency_ms = np.concatenate([self._latency_ms, latency_ms])
        return self._latency_ms[Rows(self._codes)(codes)]

    def samples(self) -> tuple[Codes, Floats]:
        """All that it could measure."""
        there = np.isfinite(self._latency_ms)
        return self._codes[there], self._latency_ms[there]


class _Ranks:
    """Latencies that rank as the target's should, in nobody's milliseconds: no limit holds them."""

    def __init__(self, predictor: FewShotPredictor) -> None:
        self._predictor = predictor

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        return {LATENCY: self._predictor.predict(codes), AT_MOST: np.zeros(len(codes))}


class _Measured:
    """The target's own."""

    def __init__(self, target: _Target) -> None:
        self._target = target

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        latency_ms = self._target(codes)
        return {LATENCY: latency_ms, AT_MOST: latency_ms}
