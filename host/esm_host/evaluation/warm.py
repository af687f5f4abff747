"""From latencies after one or two uncounted runs to those of a warm model.

A visit of few runs starts with caches that other models have filled, so that its counted run takes
up to a quarter longer than it would in a row. A few long visits of each model tell by how much.
Alone they are too noisy, since memory is; but how fast a model warms up over the first runs, which
every visit shows, tells most of it, and the same for all models of a device.
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
"""Of a ratio that nothing tells of."""
_SLOW_NS = 200_000_000
"""Models that take so long are not warmed up: cold caches cost them less than a hundredth."""


@dataclass(frozen=True, eq=False)
class Warming:
    """How a model warmed up in its visits.

    Attributes:
        counted_ns: trimmed mean of its counted runs.
        uncounted_ns: trimmed means of the uncounted runs before them, by their place in a visit;
            empty where there were none.
        warm_ns: latency at the end of each long visit.
    """

    counted_ns: float
    uncounted_ns: tuple[float, ...]
    warm_ns: NDArray[np.int64]


def warming(measurements: Sequence[Measurement], trim: float) -> Warming:
    """Return how a model warmed up in the blocks that it was part of.

    Args:
        measurements: of the model, in one block or several.
        trim: share of the counted runs dropped at each end.
    """
    # Stores may hold latencies of 0 from before an agent's results were checked for them.
    told = [each.warming_ns for each in measurements if min(each.warming_ns, default=1) >= 1]
    places = min(map(len, told), default=0)
    uncounted = np.mean([each[:places] for each in told], axis=0) if told else np.zeros(0)
    warm_ns = np.concatenate([each.warm_ns for each in measurements])
    return Warming(
        float(np.mean([trimmed_mean(each.latency_ns, trim) for each in measurements])),
        tuple(uncounted.tolist()),
        warm_ns[warm_ns >= 1],
    )


def warm_ratios(models: Sequence[Warming]) -> tuple[Floats, Floats]:
    """Return how many times as long each model takes when it is warm.

    Fits ``log(warm / counted)`` of all long visits to how much the first two runs of a visit, and
    the last uncounted and the first counted one, differ (robust least squares, Huber 1964); what a
    model's own long visits say beyond that counts as far as it is known (empirical Bayes). Without
    uncounted runs the long visits alone tell.

    Returns:
        ratios, ``(n,)``, and their standard errors as shares, ``(n,)``. 1 where nothing is known,
        and for slow models, which need no warming up.
    """
    count = len(models)
    ratios, errors = np.ones(count), np.full(count, _UNKNOWN_ERROR)
    told = []
    for i, model in enumerate(models):
        if model.uncounted_ns or len(model.warm_ns):
            told.append(i)
        elif model.counted_ns >= _SLOW_NS:
            errors[i] = _LEAST_ERROR
    owner = np.array([i for i in told for _ in models[i].warm_ns], dtype=int)
    if len(owner) < _FEWEST_VISITS:
        return ratios, errors
    features = np.array([_features(models[i]) for i in range(count)])
    logs = np.log(np.concatenate([models[i].warm_ns / models[i].counted_ns for i in told]))
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
    believed = between / (between + noise) * (visits > 0)
    for i in told:
        by_features = float(features[i] @ covariance @ features[i])
        ratios[i] = np.exp(features[i] @ beta + believed[i] * own[i])
        errors[i] = np.sqrt(by_features + (1 - believed[i]) * between + _LEAST_ERROR**2)
    return ratios, errors


def _features(model: Warming) -> list[float]:
    runs = [*model.uncounted_ns, model.counted_ns]
    if len(runs) < 2:  # a relation of its own: nothing shows how fast it warms up
        return [0.0, 0.0, 0.0, 1.0]
    first, last = np.log(runs[0] / runs[1]), np.log(runs[-2] / runs[-1])
    return [1.0, float(first), float(last), 0.0]


def _least_squares(design: Floats, values: Floats, weights: Floats) -> Floats:
    scaled = design * weights[:, None]
    return np.asarray(np.linalg.pinv(scaled.T @ design) @ (scaled.T @ values))
