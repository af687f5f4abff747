"""What errors that were seen say of the next one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]


class LeftOutErrors:
    """Errors of predictions by a predictor that had not seen the measurement, as logarithms.

    They say how far off the next prediction is, whatever the predictor: all are taken to be alike
    in proportion (split conformal prediction: Papadopoulos 2008).

    Args:
        latency_ms, predicted_ms: measured, and predicted, ``(n,)``; those without a prediction (NaN
            or not positive) are left out.

    Raises:
        ValueError: fewer than two are left.
    """

    def __init__(self, latency_ms: Floats, predicted_ms: Floats) -> None:
        there = np.isfinite(predicted_ms) & (predicted_ms > 0)
        if there.sum() < 2:
            raise ValueError("fewer than two predictions of what a predictor had not seen")
        self._above = np.sort(np.log(latency_ms[there] / predicted_ms[there]))
        self._either = np.sort(np.abs(self._above))

    def within(self, coverage: float) -> float:
        """Return the factor that so many latencies are within, of their predictions."""
        normal = float(norm.ppf((1 + coverage) / 2)) * float(self._above.std())
        return math.exp(quantile(self._either, coverage, normal))

    def at_most(self, probability: float) -> float:
        """Return the factor that latencies are at most, of their predictions, so probably."""
        normal = float(norm.ppf(probability)) * float(self._above.std())
        return math.exp(quantile(self._above, probability, normal))


def quantile(scores: NDArray[np.float64], share: float, otherwise: float) -> float:
    """What a new score is at most with probability ``share`` if it is like these (Papadopoulos
    2008): the quantile that covers one more sample.

    Args:
        scores: rising, ``(n,)``, one or more.
        otherwise: where they are too few to tell, unless the largest is larger.
    """
    place = math.ceil(share * (len(scores) + 1))
    if place > len(scores):
        return max(otherwise, float(scores[-1]))
    return float(scores[place - 1])
