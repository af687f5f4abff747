"""Similarity of the rankings of devices, and the choice of a proxy.

The method is that of Lu et al. 2021, "One Proxy Device Is Enough for Hardware-Aware Neural
Architecture Search", sections 3 to 5.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from scipy.stats import norm, rankdata

from esm_protos.text import counted

THRESHOLD = 0.9
"""Rank correlation from which the front of one device is that of another (section 3.3)."""

LEAST_SHARED = 4
"""Smallest number of common architectures of two devices."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of two devices' latencies.

    Attributes:
        value: The correlation.
        low: Lower end of its confidence interval.
        high: Upper end of its confidence interval.
        samples: Number of architectures that both have measured.
    """

    value: float
    low: float
    high: float
    samples: int


class Decision(enum.StrEnum):
    """Decision of Algorithm 1 on a proxy."""

    REUSE = "reuse"
    """The proxy ranks as the target does: its front is that of the target."""
    ADAPT = "adapt"
    """The proxy ranks differently: its predictor must be adapted."""
    MEASURE = "measure more"
    """There are too few samples for a decision."""


def rank_correlation(
    one_ms: ArrayLike, other_ms: ArrayLike, confidence: float = 0.95
) -> RankCorrelation:
    """Return the rank correlation of latencies of the same architectures on two devices.

    The confidence interval is Fisher's with the variance of Bonett and Wright (2000). If all
    latencies of a device are equal, the correlation is unknown: 0, from -1 to 1.

    Args:
        one_ms: Latencies on one device, ``(n,)``; NaN where one is missing.
        other_ms: Latencies on the other device, ``(n,)``; NaN where one is missing.
        confidence: Confidence level of the interval.

    Raises:
        ValueError: the shapes differ, or there are fewer than four common architectures.
    """
    one, other = np.asarray(one_ms, dtype=float), np.asarray(other_ms, dtype=float)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(
            f"latencies must be of the same architectures: got {one.shape} and {other.shape}"
        )
    both = np.isfinite(one) & np.isfinite(other)
    samples = int(both.sum())
    if samples < LEAST_SHARED:
        raise ValueError(
            f"{counted(samples, 'architecture')} measured on both devices: 4 or more are needed"
        )
    ranks = np.stack([rankdata(one[both]), rankdata(other[both])])
    if (ranks == ranks[:, :1]).all(axis=1).any():
        return RankCorrelation(0.0, -1.0, 1.0, samples)
    value = float(np.clip(np.corrcoef(ranks)[0, 1], -1, 1))
    # An estimate of exactly 1 gets the interval of the next smaller one.
    most = 1 - 6 / (samples * (samples**2 - 1))
    inner = float(np.clip(value, -most, most))
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((1 + inner**2 / 2) / (samples - 3))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return RankCorrelation(value, min(low, value), max(high, value), samples)


def correlation_matrix(latency_ms: ArrayLike) -> NDArray[np.float64]:
    """Return the rank correlations of all pairs of devices, ``(devices, devices)``.

    A pair is compared by its common architectures; NaN if these are fewer than four.

    Args:
        latency_ms: Latencies, ``(n, devices)``; NaN where one is missing.
    """
    columns = np.asarray(latency_ms, dtype=float).T
    there = np.isfinite(columns)
    matrix = np.eye(len(columns))
    known: dict[tuple[int, bytes], NDArray[np.float64]] = {}

    def ranks(device: int, both: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return ranks of mean 0 and length 1, cached as most devices share architectures."""
        key = device, both.tobytes()
        if key not in known:
            centred = rankdata(columns[device, both]) - (both.sum() + 1) / 2
            known[key] = centred / (np.linalg.norm(centred) or 1)
        return known[key]

    for row in range(len(columns)):
        for column in range(row):
            both = there[row] & there[column]
            enough = both.sum() >= LEAST_SHARED
            value = np.clip(ranks(row, both) @ ranks(column, both), -1, 1) if enough else np.nan
            matrix[row, column] = matrix[column, row] = value
    return matrix


def best_proxy(
    matrix: NDArray[np.float64],
    candidates: Sequence[int],
    targets: Sequence[int],
    threshold: float = THRESHOLD,
) -> int:
    """Return the candidate that ranks as most of the targets do (section 5.3.1).

    Among several it is the one of the highest mean correlation. A target that is the candidate
    itself does not count.

    Args:
        matrix: Rank correlations, ``(devices, devices)``; NaN counts as 0.
        candidates: Numbers of the candidates.
        targets: Numbers of the targets.
        threshold: Correlation from which a device ranks as another.

    Raises:
        ValueError: there are no candidates.
    """
    if not len(candidates):
        raise ValueError("no device to choose a proxy from")

    def merit(candidate: int) -> tuple[int, float]:
        others = [target for target in targets if target != candidate]
        values = np.nan_to_num(matrix[candidate, others])
        return int((values >= threshold).sum()), float(values.mean()) if len(others) else 0.0

    return max(candidates, key=merit)


def decide(
    correlation: RankCorrelation, threshold: float = THRESHOLD, by_interval: bool = True
) -> Decision:
    """Return the decision of Algorithm 1 on a proxy of this correlation (line 4).

    Args:
        correlation: Correlation of the proxy with the target.
        threshold: Correlation from which a device ranks as another.
        by_interval: Whether the confidence interval must lie on one side of the threshold. False
            takes the estimate, as the paper does.
    """
    if not by_interval:
        return Decision.REUSE if correlation.value >= threshold else Decision.ADAPT
    if correlation.low >= threshold:
        return Decision.REUSE
    if correlation.high < threshold:
        return Decision.ADAPT
    return Decision.MEASURE


def block_order(matrix: NDArray[np.float64]) -> list[int]:
    """Return an order of the devices in which similar ones are neighbours.

    It is the order of the leaves of a clustering by average linkage, with neighbours as similar as
    possible.

    Args:
        matrix: Rank correlations, ``(devices, devices)``; NaN counts as 0.
    """
    if len(matrix) < 3:
        return list(range(len(matrix)))
    distance = np.clip(1 - np.nan_to_num(matrix), 0, 2)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
