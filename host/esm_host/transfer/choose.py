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
    """Rows of a pool, one after the other, that tell a Gaussian process most of all the others.

    Each time that row is taken which lowers the variance most in the mean over the pool (active
    learning by Cohn 1996, "Neural Network Exploration Using Optimal Experiment Design"), over its
    device time. Where the variance is greatest itself, the choice of greatest entropy, would do as
    well where all networks are of one depth; where they are not, it takes the deepest ones only.

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
    covariance = features @ features.T
    chosen: list[int] = []
    for _ in range(count):
        variance = np.maximum(np.diagonal(covariance), 0)
        gain = (covariance**2).sum(axis=0) / (variance + noise) / seconds
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        covariance -= np.outer(covariance[best], covariance[best]) / (variance[best] + noise)
        chosen.append(best)
    return np.array(chosen, dtype=np.intp)
