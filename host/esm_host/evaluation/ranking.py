"""Rank correlations of predictions: Kendall's and Spearman's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


class RankCorrelations(NamedTuple):
    """Kendall's tau-b and Spearman's correlation, -1 to 1."""

    tau: float
    spearman: float


def rank_correlations(measured_ms: Floats, predicted_ms: Floats) -> RankCorrelations:
    """Return the rank correlations of predictions with measurements, both ``(n,)``.

    They are 0 if all predictions are equal. They are NaN if all measurements are equal or there are
    fewer than two.
    """
    if len(measured_ms) < 2 or np.ptp(measured_ms) == 0:
        return RankCorrelations(np.nan, np.nan)
    if np.ptp(predicted_ms) == 0:
        return RankCorrelations(0.0, 0.0)
    return RankCorrelations(
        float(stats.kendalltau(measured_ms, predicted_ms).statistic),
        float(stats.spearmanr(measured_ms, predicted_ms).statistic),
    )
