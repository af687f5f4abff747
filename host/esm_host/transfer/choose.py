"""Choice of the architectures to measure on a new device."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.encoding.base import Encoder, Layout
from esm_models.space import Codes

Floats = NDArray[np.float64]

NOISE = 0.05
"""Variance of a measurement, in units of the latencies' variance."""


def choose(
    encoder: Encoder, codes: Codes, count: int, seconds: ArrayLike = 1.0
) -> NDArray[np.intp]:
    """Return rows of a pool to measure on a new device, most informative first, ``(count,)``.

    Args:
        encoder: Encoder whose groups of columns count the same.
        codes: Pool, ``(n, *code_shape)``.
        count: Number of rows.
        seconds: Device time of each row, s, ``(n,)``, or one for all.
    """
    features = prior_features(encoder.encode_codes(codes), encoder.layout)
    return most_informative(features, count, seconds)


def prior_features(encodings: ArrayLike, layout: Layout) -> Floats:
    """Return features whose products are the prior covariance of log latencies, ``(n, k)``.

    Every group of columns has the same variance.

    Args:
        encodings: Encodings, ``(n, d)``.
        layout: Groups of columns.
    """
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
    """Return rows of a pool that tell a Gaussian process most about the rest, ``(count,)``.

    Each step takes the row that lowers the mean variance over the pool most per second of device
    time (active learning by Cohn 1996, "Neural Network Exploration Using Optimal Experiment
    Design"). Taking the row of the largest variance, the choice of greatest entropy, is as good if
    all networks have one depth. Otherwise it takes only the deepest.

    Args:
        features: Features whose products are the prior covariance, ``(n, k)``.
        count: Number of rows; fewer if the pool is smaller.
        seconds: Device time of each row, s, ``(n,)`` or a number.
        noise: Variance of a measurement.

    Returns:
        Rows in the order of choice.
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
