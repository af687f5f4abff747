"""Conversion of latencies after one or two uncounted runs to those of a warm model.

A visit of few runs starts with caches that other models have filled. Its counted run takes up to a
quarter longer than in a row of runs. A few long visits of each model show the ratio, but noisily.
Most of it follows from how fast a model warms up over the first runs, which every visit shows. That
relation is the same for all models of a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_protos.messages import Measurement
from esm_protos.statistics import trimmed_mean

Floats = NDArray[np.float64]

_FEWEST_VISITS = 20
_HUBER = 0.7
_LEAST_ERROR = 0.005
_UNKNOWN_ERROR = 0.05
"""Standard error of a ratio without any data."""
_SLOW_NS = 200_000_000
"""Latency from which models need no warm-up: cold caches cost less than 1 %."""


@dataclass(frozen=True, eq=False)
class Warming:
    """Warm-up of a model in its visits.

    Attributes:
        counted_ns: Trimmed mean of the counted runs, ns.
        uncounted_ns: Trimmed means of the uncounted runs before them, ns, by their place in a
            visit; empty if there were none.
        warm_ns: Latency at the end of each long visit, ns.
    """

    counted_ns: float
    uncounted_ns: tuple[float, ...]
    warm_ns: NDArray[np.int64]


def warming(measurements: Sequence[Measurement], trim: float) -> Warming:
    """Return the warm-up of a model over its blocks.

    Args:
        measurements: Measurements of the model, one per block.
        trim: Share of the counted runs dropped at each end.
    """
    # Stores of older versions may hold latencies of 0.
    shown = [each.warming_ns for each in measurements if min(each.warming_ns, default=1) >= 1]
    places = min(map(len, shown), default=0)
    uncounted = np.mean([each[:places] for each in shown], axis=0) if shown else np.zeros(0)
    warm_ns = np.concatenate([each.warm_ns for each in measurements])
    return Warming(
        float(np.mean([trimmed_mean(each.latency_ns, trim) for each in measurements])),
        tuple(uncounted.tolist()),
        warm_ns[warm_ns >= 1],
    )


def warm_ratios(models: Sequence[Warming]) -> tuple[Floats, Floats]:
    """Return the ratio of each model's warm latency to its counted one.

    Fits ``log(warm / counted)`` of all long visits by robust least squares (Huber 1964). The
    features are the differences of the first two runs of a visit, and of its last uncounted and
    first counted run. A model's own long visits then correct the fit, weighted by their precision
    (empirical Bayes). Without uncounted runs only the long visits count.

    Returns:
        Ratios, ``(n,)``, and their standard errors as shares, ``(n,)``. The ratio is 1 without
        data, and for slow models, which need no warm-up.
    """
    count = len(models)
    ratios, errors = np.ones(count), np.full(count, _UNKNOWN_ERROR)
    shown = []
    for i, model in enumerate(models):
        if model.uncounted_ns or len(model.warm_ns):
            shown.append(i)
        elif model.counted_ns >= _SLOW_NS:
            errors[i] = _LEAST_ERROR
    owner = np.array([i for i in shown for _ in models[i].warm_ns], dtype=int)
    if len(owner) < _FEWEST_VISITS:
        return ratios, errors
    features = np.array([_features(models[i]) for i in range(count)])
    logs = np.log(np.concatenate([models[i].warm_ns / models[i].counted_ns for i in shown]))
    weights = np.ones(len(logs))
    for _ in range(10):
        beta = _least_squares(features[owner], logs, weights)
        off = logs - features[owner] @ beta
        scale = 1.4826 * float(np.median(np.abs(off))) or 1e-9
        weights = np.minimum(1, _HUBER * scale / np.maximum(np.abs(off), 1e-12))
    design = features[owner]
    covariance = scale**2 * np.linalg.pinv((design * weights[:, None]).T @ design)
    visits = np.bincount(owner, minlength=count)
    own = np.bincount(owner, weights * off, count) / np.maximum(
        np.bincount(owner, weights, count), 1
    )
    many = visits >= 2
    noise = scale**2 / np.maximum(visits, 1)
    between = max(float(np.mean(own[many] ** 2 - noise[many])), 0.0) if many.any() else 0.0
    credibility = between / (between + noise) * (visits > 0)
    for i in shown:
        by_features = float(features[i] @ covariance @ features[i])
        ratios[i] = np.exp(features[i] @ beta + credibility[i] * own[i])
        errors[i] = np.sqrt(by_features + (1 - credibility[i]) * between + _LEAST_ERROR**2)
    return ratios, errors


def _features(model: Warming) -> list[float]:
    runs = [*model.uncounted_ns, model.counted_ns]
    if len(runs) < 2:  # no uncounted runs: a relation of its own
        return [0.0, 0.0, 0.0, 1.0]
    first, last = np.log(runs[0] / runs[1]), np.log(runs[-2] / runs[-1])
    return [1.0, float(first), float(last), 0.0]


def _least_squares(design: Floats, values: Floats, weights: Floats) -> Floats:
    scaled = design * weights[:, None]
    return np.asarray(np.linalg.pinv(scaled.T @ design) @ (scaled.T @ values))
