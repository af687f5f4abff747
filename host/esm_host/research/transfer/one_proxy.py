"""Measurement on a new device until a proxy, unchanged or adapted, ranks as the device does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from esm_host.research.transfer.proxy import AdaProxyPredictor, ProxyPredictor
from esm_host.transfer.base import Floats
from esm_host.transfer.monotonicity import (
    LEAST_SHARED,
    THRESHOLD,
    Decision,
    RankCorrelation,
    decide,
    rank_correlation,
)
from esm_host.transfer.source import Source
from esm_models.space import Codes


@dataclass(frozen=True, eq=False)
class OneProxy:
    """Result of Algorithm 1.

    Attributes:
        decision: Whether the proxy is used unchanged or adapted; ``MEASURE`` if the samples ended
            before either sufficed.
        predictor: Predictor that ranks the new device's architectures.
        samples: Number of samples measured on the new device.
        proxy: Rank correlation of the proxy with these at the time of the decision.
        adapted: Rank correlation of each adaptation with samples measured after it.
    """

    decision: Decision
    predictor: ProxyPredictor
    samples: int
    proxy: RankCorrelation
    adapted: tuple[RankCorrelation, ...]


@dataclass(frozen=True)
class OneProxySettings:
    """Settings of Algorithm 1.

    Attributes:
        threshold: Rank correlation from which a predictor suffices.
        first: Number of first measurements.
        step: Number of measurements per further step.
        model: Model of :class:`~esm_host.research.transfer.proxy.ProxyPredictor`.
        seed: Random seed.
        by_interval: As of :func:`~esm_host.transfer.monotonicity.decide`; False is the paper's
            rule.
    """

    threshold: float = THRESHOLD
    first: int = 30
    step: int = 20
    model: str = "linear"
    seed: int = 0
    by_interval: bool = True


def one_proxy(
    sources: Sequence[Source],
    measure: Callable[[Codes], Floats],
    pool: Codes,
    settings: OneProxySettings | None = None,
) -> OneProxy:
    """Run Algorithm 1 of Lu et al. 2021 and the incremental adaptation of its section 5.4.

    It measures ``first`` architectures, and ``step`` more until the best proxy is known to rank as
    the new device does, or not. If not, the proxy is adapted. Then ``step`` held-out architectures
    are measured, and the proxy is adapted to all. This repeats until the correlation with the
    held-out ones is ``threshold``, or the pool ends.

    Args:
        sources: Source devices.
        measure: Function from codes to latencies on the new device, ms, ``(n,)``; NaN if one
            failed.
        pool: Architectures to measure, in this order; its length limits their number.
        settings: Settings of the algorithm; None for the defaults.

    Raises:
        ValueError: there are no sources, or ``pool``, ``first`` or ``step`` is smaller than four.
    """
    settings = settings or OneProxySettings()
    first, step, threshold = settings.first, settings.step, settings.threshold
    if min(first, step, len(pool)) < LEAST_SHARED:
        raise ValueError(
            f"a first of {first}, steps of {step} and a pool of {len(pool)}: a rank correlation "
            f"needs {LEAST_SHARED} or more"
        )
    predictor = ProxyPredictor(model=settings.model, seed=settings.seed).learn(sources)
    latency_ms = measure(pool[:first])

    def learn(predictor: ProxyPredictor) -> ProxyPredictor:
        """Adapt to all measurements so far."""
        there = np.flatnonzero(np.isfinite(latency_ms))
        return predictor.adapt(pool[there], latency_ms[there])

    def more() -> bool:
        """Measure a step; return False if the pool has ended."""
        nonlocal latency_ms
        done = len(latency_ms)
        if done + step > len(pool):
            return False
        latency_ms = np.concatenate([latency_ms, measure(pool[done : done + step])])
        return True

    while True:
        codes = pool[: len(latency_ms)]
        correlation = rank_correlation(learn(predictor).predict(codes), latency_ms)
        decision = decide(correlation, threshold, settings.by_interval)
        if decision is not Decision.MEASURE or not more():
            break
    if decision is not Decision.ADAPT:
        return OneProxy(decision, predictor, len(latency_ms), correlation, ())

    (source,) = (source for source in sources if source.name == predictor.proxy_)
    adapted = AdaProxyPredictor(model=settings.model, seed=settings.seed).learn([source])
    found: list[RankCorrelation] = []
    while True:
        done = len(latency_ms)
        learn(adapted)
        reached = bool(found) and found[-1].value >= threshold
        if reached or not more():
            break
        fresh = slice(done, len(latency_ms))
        found.append(rank_correlation(adapted.predict(pool[fresh]), latency_ms[fresh]))
    return OneProxy(
        Decision.ADAPT if reached else Decision.MEASURE,
        adapted,
        len(latency_ms),
        correlation,
        tuple(found),
    )
