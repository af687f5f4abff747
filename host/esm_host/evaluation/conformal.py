"""Prediction intervals from held-out errors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]


class LeftOutErrors:
    """Errors of held-out predictions, as logarithms.

    They give intervals for any predictor, if errors are proportional to the latency (split
    conformal prediction: Papadopoulos 2008).

    Args:
        latency_ms: Measured latencies, ms, ``(n,)``.
        predicted_ms: Held-out predictions, ms, ``(n,)``; those that are NaN or not positive are
            left out.

    Raises:
        ValueError: fewer than two predictions are left.
    """

    def __init__(self, latency_ms: Floats, predicted_ms: Floats) -> None:
        there = np.isfinite(predicted_ms) & (predicted_ms > 0)
        if there.sum() < 2:
            raise ValueError("fewer than two held-out predictions")
        self._above = np.sort(np.log(latency_ms[there] / predicted_ms[there]))
        self._either = np.sort(np.abs(self._above))

    def within(self, coverage: float) -> float:
        """Return the factor within which latencies are of their predictions, with this coverage."""
        normal = float(norm.ppf((1 + coverage) / 2)) * float(self._above.std())
        return math.exp(quantile(self._either, coverage, normal))

    def at_most(self, probability: float) -> float:
        """Return the factor of the upper bound of latencies at this probability."""
        normal = float(norm.ppf(probability)) * float(self._above.std())
        return math.exp(quantile(self._above, probability, normal))


def quantile(scores: NDArray[np.float64], share: float, otherwise: float) -> float:
    """Return the upper bound of a new score at a probability (Papadopoulos 2008).

    It is the quantile that covers one more sample.

    Args:
        scores: Rising scores, ``(n,)``, n at least 1.
        share: Probability that the new score is at most the bound.
        otherwise: Bound if there are too few scores, unless the largest score is larger.
    """
    place = math.ceil(share * (len(scores) + 1))
    if place > len(scores):
        return max(otherwise, float(scores[-1]))
    return float(scores[place - 1])
