"""Whether devices rank architectures alike (Lu et al. 2021, "One Proxy Device Is Enough for
Hardware-Aware Neural Architecture Search", sections 3 to 5)."""

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

THRESHOLD = 0.9
"""Rank correlation from which on what is best on one device is best on the other (section 3.3)."""

LEAST_SHARED = 4
"""Architectures that two devices must have in common."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation of two devices' latencies.

    Attributes:
        low, high: ends of its confidence interval.
        samples: architectures that both have measured.
    """

    value: float
    low: float
    high: float
    samples: int


class Decision(enum.StrEnum):
    """What Algorithm 1 does with a proxy."""

    REUSE = "reuse"
    """It ranks as the target does: what is optimal there is optimal here."""
    ADAPT = "adapt"
    """It does not: its predictor is to be adapted."""
    MEASURE = "measure more"
    """Too few samples to tell."""


def rank_correlation(
    one_ms: ArrayLike, other_ms: ArrayLike, confidence: float = 0.95
) -> RankCorrelation:
    """From latencies of the same architectures on two devices, ``(n,)``; NaN where one is missing.

    The interval is Fisher's with the variance of Bonett and Wright (2000). Where a device takes
    the same for all architectures, nothing is known of the correlation: 0, from -1 to 1.

    Raises:
        ValueError: the latencies are not of the same architectures, or of fewer than four.
    """
    one, other = np.asarray(one_ms, dtype=float), np.asarray(other_ms, dtype=float)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(
            f"latencies of the same architectures are needed, not {one.shape} and {other.shape}"
        )
    both = np.isfinite(one) & np.isfinite(other)
    samples = int(both.sum())
    if samples < LEAST_SHARED:
        raise ValueError(f"{samples} architectures measured on both devices: 4 or more are needed")
    ranks = np.stack([rankdata(one[both]), rankdata(other[both])])
    if (ranks == ranks[:, :1]).all(axis=1).any():
        return RankCorrelation(0.0, -1.0, 1.0, samples)
    value = float(np.clip(np.corrcoef(ranks)[0, 1], -1, 1))
    # An estimate of exactly 1 has no interval of its own: the next smaller one's is taken.
    most = 1 - 6 / (samples * (samples**2 - 1))
    inner = float(np.clip(value, -most, most))
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((1 + inner**2 / 2) / (samples - 3))
    low, high = math.tanh(math.atanh(inner) - half), math.tanh(math.atanh(inner) + half)
    return RankCorrelation(value, min(low, value), max(high, value), samples)


def correlation_matrix(latency_ms: ArrayLike) -> NDArray[np.float64]:
    """Of every pair of devices, ``(n, devices) -> (devices, devices)``; each pair by the
    architectures that both have, NaN where these are fewer than four."""
    columns = np.asarray(latency_ms, dtype=float).T
    there = np.isfinite(columns)
    matrix = np.eye(len(columns))
    known: dict[tuple[int, bytes], NDArray[np.float64]] = {}

    def ranks(device: int, both: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Of mean 0 and length 1, or all 0; most devices of a table have the same architectures."""
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
    """The candidate that ranks as most of the targets do; of several, the one that correlates most
    with them in the mean (section 5.3.1). A target that is the candidate itself does not count.

    Args:
        matrix: rank correlations, ``(devices, devices)``; NaN counts as no correlation.

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
    """Return what Algorithm 1 does with a proxy of this correlation with the target (line 4).

    Args:
        by_interval: measure more until the samples are enough to say on which side of the threshold
            the correlation is; False takes the estimate as it is, as the paper does.
    """
    if not by_interval:
        return Decision.REUSE if correlation.value >= threshold else Decision.ADAPT
    if correlation.low >= threshold:
        return Decision.REUSE
    if correlation.high < threshold:
        return Decision.ADAPT
    return Decision.MEASURE


def block_order(matrix: NDArray[np.float64]) -> list[int]:
    """An order of the devices in which those that rank alike stand together: that of the leaves
    when they are clustered by average linkage, neighbours as alike as the tree allows.

    Args:
        matrix: rank correlations, ``(devices, devices)``; NaN counts as no correlation.
    """
    if len(matrix) < 3:
        return list(range(len(matrix)))
    distance = np.clip(1 - np.nan_to_num(matrix), 0, 2)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
