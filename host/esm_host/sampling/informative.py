"""Choice of the architectures from which a predictor learns most.

Active learning by the mean variance (Cohn 1996, "Neural Network Exploration Using Optimal
Experiment Design"): log latency is a Gaussian process, and each step takes the architecture whose
measurement lowers the variance, averaged over the candidates, most. The choice depends on the
architectures that are known, not on their latencies, so that a block can be chosen while the one
before is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, solve_triangular

from esm_host.sampling.balanced import BalancedSampler

Floats = NDArray[np.float64]

NOISE = 0.05
"""Variance of a measurement, in units of the latencies' variance."""


class InformativeSampler(BalancedSampler):
    """Sampler that draws candidates by bin, of which the most informative are measured."""

    chooses: ClassVar[bool] = True


def prior_features(encodings: ArrayLike, groups: Mapping[str, tuple[int, int]]) -> Floats:
    """Return features whose products are the prior covariance of log latencies, ``(n, k)``.

    Every group of columns has the same variance.

    Args:
        encodings: Encodings, ``(n, d)``.
        groups: First column and end (exclusive) by group name.
    """
    x = np.asarray(encodings, dtype=float)
    parts = []
    for first, end in groups.values():
        columns = x[:, first:end]
        spread = columns.std(axis=0)
        varies = spread > 1e-6 * np.maximum(np.abs(columns.mean(axis=0)), 1e-6)
        if varies.any():
            columns = columns[:, varies]
            parts.append((columns - columns.mean(axis=0)) / spread[varies] / varies.sum() ** 0.5)
    if not parts:
        return np.zeros((len(x), 1))
    return np.asarray(np.concatenate(parts, axis=1) / len(parts) ** 0.5)


def posterior_features(features: Floats, known: Floats, noise: ArrayLike = NOISE) -> Floats:
    """Return features whose products are the covariance once others are known, ``(n, k)``.

    Args:
        features: Features of the candidates, ``(n, k)``.
        known: Features of the known architectures, ``(m, k)``.
        noise: Variance of each known latency, ``(m,)`` or a number.
    """
    precision = (known / np.broadcast_to(noise, len(known))[:, None]).T @ known
    precision[np.diag_indices(len(precision))] += 1
    root = cholesky(precision, lower=True)
    return np.asarray(solve_triangular(root, features.T, lower=True).T)


def most_informative(
    features: Floats,
    count: int,
    seconds: ArrayLike = 1.0,
    noise: float = NOISE,
    strata: NDArray[np.integer] | None = None,
    shares: Sequence[int] = (),
) -> NDArray[np.intp]:
    """Return rows of a pool that tell a Gaussian process most about the rest, ``(count,)``.

    Each step takes the row that lowers the mean variance over the pool most per second of device
    time. Taking the row of the largest variance, the choice of greatest entropy, is as good if
    all networks have one depth. Otherwise it takes only the deepest.

    Args:
        features: Features whose products are the covariance, ``(n, k)``.
        count: Number of rows; fewer if the pool is smaller.
        seconds: Device time of each row, s, ``(n,)`` or a number.
        noise: Variance of a measurement.
        strata: Stratum of each row, ``(n,)``; None for one stratum.
        shares: Number of rows to choose of each stratum; empty for equal numbers. A stratum that is
            too small leaves its share to the others.

    Returns:
        Rows in the order of choice.
    """
    n = len(features)
    count = min(count, n)
    seconds = np.broadcast_to(np.asarray(seconds, dtype=float), (n,))
    strata = np.zeros(n, dtype=np.int64) if strata is None else strata
    left = _shares(count, np.bincount(strata, minlength=len(shares)), shares)
    covariance = features @ features.T
    chosen: list[int] = []
    for _ in range(count):
        variance = np.maximum(np.diagonal(covariance), 0)
        gain = (covariance**2).sum(axis=0) / (variance + noise) / seconds
        gain[left[strata] == 0] = -np.inf
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        covariance -= np.outer(covariance[best], covariance[best]) / (variance[best] + noise)
        left[strata[best]] -= 1
        chosen.append(best)
    return np.array(chosen, dtype=np.intp)


def _shares(count: int, sizes: NDArray[np.integer], wanted: Sequence[int]) -> NDArray[np.int64]:
    """Divide ``count`` among strata of these sizes as wanted, otherwise equally."""
    shares = np.minimum(wanted or np.zeros(len(sizes), dtype=np.int64), sizes)
    for _ in range(count - int(shares.sum())):
        shares[np.argmin(np.where(shares < sizes, shares, count))] += 1
    return np.asarray(shares, dtype=np.int64)
