"""Measures on a new device until a proxy, as it is or adapted, ranks as the device does."""

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
    """What Algorithm 1 came to.

    Attributes:
        decision: whether the proxy is used as it is, or adapted; ``MEASURE`` where neither was
            enough before there were no more samples.
        predictor: ranks the new device's architectures.
        samples: measured on the new device.
        proxy: how the proxy itself ranks these, at the time when that was decided.
        adapted: how each adaptation ranked samples that were measured after it.
    """

    decision: Decision
    predictor: ProxyPredictor
    samples: int
    proxy: RankCorrelation
    adapted: tuple[RankCorrelation, ...]


def one_proxy(
    sources: Sequence[Source],
    measure: Callable[[Codes], Floats],
    pool: Codes,
    *,
    threshold: float = THRESHOLD,
    first: int = 30,
    step: int = 20,
    model: str = "linear",
    seed: int = 0,
    by_interval: bool = True,
) -> OneProxy:
    """Algorithm 1 of Lu et al. 2021 and the incremental adaptation of its section 5.4.

    Measures ``first`` architectures, and ``step`` more as long as it cannot be told whether the
    best proxy ranks as the new device does. If it does not, it is adapted; ``step`` more are
    measured, which the adapted one has not seen, and it is adapted anew to all, until it ranks
    those with a correlation of ``threshold`` or the pool ends.

    Args:
        measure: latencies on the new device, ms, ``(n,)`` of ``(n, *code_shape)``; NaN of what
            failed.
        pool: architectures to measure, in that order; its length is the most that it may cost.
        model: as of :class:`~esm_host.research.transfer.proxy.ProxyPredictor`.
        by_interval: as of :func:`~esm_host.transfer.monotonicity.decide`; False is the
            paper's rule.

    Raises:
        ValueError: there are no sources, or ``pool``, ``first`` or ``step`` have fewer than four.
    """
    if min(first, step, len(pool)) < LEAST_SHARED:
        raise ValueError(
            f"a first of {first}, steps of {step} and a pool of {len(pool)}: a rank correlation "
            f"needs {LEAST_SHARED} or more"
        )
    predictor = ProxyPredictor(model=model, seed=seed).learn(sources)
    latency_ms = measure(pool[:first])

    def learn(predictor: ProxyPredictor) -> ProxyPredictor:
        """From all that could be measured so far."""
        there = np.flatnonzero(np.isfinite(latency_ms))
        return predictor.adapt(pool[there], latency_ms[there])

    def more() -> bool:
        """Measures a step; whether there was one left."""
        nonlocal latency_ms
        done = len(latency_ms)
        if done + step > len(pool):
            return False
        latency_ms = np.concatenate([latency_ms, measure(pool[done : done + step])])
        return True

    while True:
        codes = pool[: len(latency_ms)]
        correlation = rank_correlation(learn(predictor).predict(codes), latency_ms)
        decision = decide(correlation, threshold, by_interval)
        if decision is not Decision.MEASURE or not more():
            break
    if decision is not Decision.ADAPT:
        return OneProxy(decision, predictor, len(latency_ms), correlation, ())

    (source,) = (source for source in sources if source.name == predictor.proxy_)
    adapted = AdaProxyPredictor(model=model, seed=seed).learn([source])
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
