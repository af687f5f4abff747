"""Accuracy of a predictor as ESM defines it, overall and per depth bin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.sampling.bins import DepthBins

Floats = NDArray[np.float64]

FASTEST_MS = 1e-3
"""Lower limit of predictions: far from the training set a predictor may give less."""


def accuracy_percent(measured_ms: Floats, predicted_ms: Floats) -> float:
    """Return 100 minus the mean absolute percentage error (MAPE).

    It may be negative; NaN without samples.
    """
    if not len(measured_ms):
        return float("nan")
    return float(100 - 100 * np.mean(np.abs(predicted_ms - measured_ms) / measured_ms))


@dataclass(frozen=True)
class BinAccuracy:
    """Accuracy over the architectures of a depth bin.

    Attributes:
        depth_min: Smallest depth.
        depth_max: Largest depth.
        accuracy_percent: Accuracy; NaN without samples.
        samples: Number of samples.
        lower_percent: Lower confidence bound of the accuracy; None where it is not estimated.
    """

    depth_min: int
    depth_max: int
    accuracy_percent: float
    samples: int
    lower_percent: float | None = None

    @property
    def surely_percent(self) -> float:
        """Lower bound of the accuracy, or the accuracy where no bound is estimated."""
        return self.accuracy_percent if self.lower_percent is None else self.lower_percent


def accuracy_by_bin(
    depth: NDArray[np.int64], measured_ms: Floats, predicted_ms: Floats, bins: DepthBins
) -> list[BinAccuracy]:
    """Return the accuracy of each bin, in order of depth."""
    index = bins.of(depth)
    result = []
    for number in range(bins.count):
        rows = index == number
        depths = bins.depths(number)
        result.append(
            BinAccuracy(
                depths[0],
                depths[-1],
                accuracy_percent(measured_ms[rows], predicted_ms[rows]),
                int(rows.sum()),
            )
        )
    return result


def assign_folds(strata: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each sample for a stratified cross-validation, ``(n,)``.

    Every fold gets its share of every stratum. So each depth bin is judged on all its samples, and
    no measurement is used for testing alone.

    Args:
        strata: Bin of each sample, ``(n,)``.
        folds: Number of folds; at most one per sample is used.
        seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(strata))
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    fold = np.empty(len(strata), dtype=np.int64)
    fold[order] = np.arange(len(strata)) % min(folds, len(strata))
    return fold
