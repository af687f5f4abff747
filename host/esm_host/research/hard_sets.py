"""Sets of devices between which transfer is hard.

The method is Algorithm 1 of Akhauri and Abdelfattah 2024, "On Latency Predictors for Neural
Architecture Search".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DeviceSets:
    """Source devices and target devices, by rising number."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def hard_sets(
    matrix: NDArray[np.float64], train: int, test: int, seed: int = 0, hardest: bool = False
) -> DeviceSets:
    """Return sets of devices with low correlation between them.

    The complete graph of the devices is bisected by Kernighan and Lin's method. From each half the
    device that correlates most with the other half is removed, one by one, until ``train`` and
    ``test`` are left.

    Edges have the negative correlation as weight, as in the paper. Bisection cuts the least weight.
    So devices within a half rank differently, and similar ones are on both sides, from which the
    trimming removes them. The sets depend on the seed.

    Args:
        matrix: Rank correlations, ``(devices, devices)``.
        train: Number of source devices.
        test: Number of target devices.
        seed: Random seed.
        hardest: Whether edges have the correlation itself as weight. The halves then rank unlike
            each other and hardly depend on the seed. This is not in the paper.

    Raises:
        ValueError: a correlation is missing, or a set would be empty or larger than its half.
    """
    import networkx  # slow to load
    from networkx.algorithms.community import kernighan_lin_bisection

    devices = len(matrix)
    if np.isnan(matrix).any():
        raise ValueError("the correlation of every pair of devices is needed")
    most = devices - devices // 2, devices // 2
    if min(train, test) < 1 or max(train, test) > most[0] or min(train, test) > most[1]:
        raise ValueError(
            f"{train} and {test} of {devices} devices: give 1 to {most[0]} and 1 to {most[1]}"
        )
    weights = (1 if hardest else -1) * (matrix - np.diag(np.diag(matrix)))
    graph = networkx.from_numpy_array(weights)
    halves = [sorted(half) for half in kernighan_lin_bisection(graph, seed=seed)]
    larger, smaller = sorted(halves, key=len, reverse=True)
    left, right = (larger, smaller) if train >= test else (smaller, larger)
    while len(left) > train or len(right) > test:
        if len(left) > train:
            _trim(left, right, matrix)
        if len(right) > test:
            _trim(right, left, matrix)
    return DeviceSets(tuple(left), tuple(right))


def mean_correlation(
    matrix: NDArray[np.float64], one: tuple[int, ...], other: tuple[int, ...]
) -> float:
    """Return the mean correlation of pairs with one device of each set; NaN without pairs."""
    values = [matrix[a, b] for a in one for b in other if a != b]
    return float(np.mean(values)) if values else float("nan")


def _trim(half: list[int], other: list[int], matrix: NDArray[np.float64]) -> None:
    """Remove the device that correlates most with the other half."""
    half.remove(max(half, key=lambda device: float(matrix[device, other].sum())))
