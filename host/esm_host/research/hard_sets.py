"""Sets of devices between which transfer is hard (Akhauri and Abdelfattah 2024, "On Latency
Predictors for Neural Architecture Search", Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DeviceSets:
    """Devices to learn from and devices to transfer to, by number, rising."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def hard_sets(
    matrix: NDArray[np.float64], train: int, test: int, seed: int = 0, hardest: bool = False
) -> DeviceSets:
    """Bisects the complete graph of the devices by Kernighan and Lin's method, then takes from each
    half, one by one, the device that correlates most with the other half, until ``train`` and
    ``test`` are left.

    Edges weigh the negative of the correlation, as in the paper. Bisection cuts what weighs least:
    so it leaves devices that rank differently within a half, and like ones on both sides, which
    the trimming then takes away. That gives other sets for other seeds.

    Args:
        matrix: rank correlations, ``(devices, devices)``.
        hardest: weigh by the correlation itself: halves that rank unlike each other, nearly the
            same for every seed. No part of the paper.

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
    """Of all pairs of different devices, one from each set; NaN where there are none."""
    values = [matrix[a, b] for a in one for b in other if a != b]
    return float(np.mean(values)) if values else float("nan")


def _trim(half: list[int], other: list[int], matrix: NDArray[np.float64]) -> None:
    """Takes away the device that correlates most with the other half."""
    half.remove(max(half, key=lambda device: float(matrix[device, other].sum())))
