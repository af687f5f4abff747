"""Metrics of predictions: ranking, accuracy and coverage of intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.evaluation.ranking import rank_correlations
from esm_host.predictors.base import Predictor

Floats = NDArray[np.float64]


def ranking_and_accuracy(measured_ms: Floats, predicted_ms: Floats) -> dict[str, float]:
    """Return ``tau``, ``spearman`` and ESM's ``accuracy_percent`` of ``(n,)`` predictions.

    See :func:`~esm_host.evaluation.ranking.rank_correlations`.
    """
    ranking = rank_correlations(measured_ms, predicted_ms)
    return {**ranking._asdict(), "accuracy_percent": accuracy_percent(measured_ms, predicted_ms)}


def interval(
    predictor: Predictor, encodings: NDArray[np.float32], coverage: float
) -> tuple[Floats, Floats] | None:
    """Return the ends of prediction intervals, ms, ``(n,)`` each; None if there are none.

    They are the predictor's own, or normal by its standard deviation.

    Args:
        predictor: Fitted predictor.
        encodings: Encodings, ``(n, d)``.
        coverage: Share of the latencies that the intervals should hold.
    """
    own = getattr(predictor, "predict_interval", None)
    if own is not None:
        low, high = own(encodings, coverage)
        return np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    if not predictor.knows_std:
        return None
    middle_ms, std_ms = predictor.predict(encodings, return_std=True)
    half_ms = stats.norm.ppf(0.5 + coverage / 2) * std_ms
    return middle_ms - half_ms, middle_ms + half_ms


def coverage_and_width(measured_ms: Floats, low_ms: Floats, high_ms: Floats) -> dict[str, float]:
    """Return the coverage of intervals and their mean relative width, both in percent."""
    inside = (low_ms <= measured_ms) & (measured_ms <= high_ms)
    return {
        "coverage_percent": float(100 * inside.mean()),
        "width_percent": float(100 * np.mean((high_ms - low_ms) / measured_ms)),
    }
