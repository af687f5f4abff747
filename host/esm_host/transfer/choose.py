"""Which few architectures to measure on a new device."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.encoding.base import Layout

Floats = NDArray[np.float64]

NOISE = 0.05
"""Variance of a measurement, in units of the latencies' variance."""


def prior_features(encodings: ArrayLike, layout: Layout) -> Floats:
    """Features whose products are the covariance that log latencies have before anything is
    measured, ``(n, d) -> (n, k)``: every group of columns has the same say."""
    x = np.asarray(encodings, dtype=float)
    parts = []
    for first, end in layout.groups.values():
        columns = x[:, first:end]
        spread = columns.std(axis=0)
        varies = spread > 1e-6 * np.maximum(np.abs(columns.mean(axis=0)), 1e-6)
        if varies.any():
            columns = columns[:, varies]
            parts.append((columns - columns.mean(axis=0)) / spread[varies] / varies.sum() ** 0.5)
    if not parts:
        return np.zeros((len(x), 1))
    return np.asarray(np.concatenate(parts, axis=1) / len(parts) ** 0.5)


def most_informative(
    features: Floats,
    count: int,
    seconds: ArrayLike = 1.0,
    noise: float = NOISE,
) -> NDArray[np.intp]:
    """Rows of a pool, one after the other where a Gaussian process knows least, per second.

    Each time that row is taken of which the variance, given those before it, is greatest: the
    greedy choice of greatest entropy (Krause, Singh and Guestrin 2008, "Near-Optimal Sensor
    Placements in Gaussian Processes"). What measuring it tells is the logarithm of one plus
    variance over noise; that is divided by its device time.

    Args:
        features: ``(n, k)``; their products are the prior covariance.
        seconds: of device time that each takes, ``(n,)`` or the same for all.
        noise: variance of a measurement.

    Returns:
        ``(count,)``, in the order of choice; fewer where the pool ends.
    """
    n = len(features)
    count = min(count, n)
    seconds = np.broadcast_to(np.asarray(seconds, dtype=float), (n,))
    variance = (features**2).sum(axis=1)
    known = np.zeros((n, count))
    chosen: list[int] = []
    for step in range(count):
        worth = np.log1p(np.maximum(variance, 0) / noise) / seconds
        worth[chosen] = -np.inf
        best = int(np.argmax(worth))
        covariance = features @ features[best] - known[:, :step] @ known[best, :step]
        known[:, step] = covariance / np.sqrt(max(variance[best], 0) + noise)
        variance = variance - known[:, step] ** 2
        chosen.append(best)
    return np.array(chosen, dtype=np.intp)
