"""Few-shot method as the predictor of a campaign."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

from esm_host.predictors.base import Floats, Predictor
from esm_host.transfer.base import FewShotPredictor


class AdaptedPredictor(Predictor):
    """Few-shot method, adapted to the measurements of a campaign.

    It learns its sources once and is fitted many times. Encodings are those of
    :class:`~esm_host.encoding.codes.CodesEncoder`. :class:`Calibration` converts predictions that
    only rank to milliseconds.

    Args:
        learnt: Function that returns the method with its sources learnt. It is called by each fit,
            which leaves the method unchanged.
    """

    uses_weights = False

    def __init__(self, learnt: Callable[[], FewShotPredictor]) -> None:
        self.learnt = learnt

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the sources, which a fitted predictor does not need."""
        return {name: value for name, value in vars(self).items() if name != "learnt"}

    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        # A shallow copy suffices: adapting replaces attributes and mutates none.
        self.method_ = copy.copy(self.learnt())
        codes = self._codes(encodings)
        self.method_.adapt(codes, latency_ms)
        self.calibration_ = None
        if not self.method_.absolute:
            self.calibration_ = Calibration(self.method_.predict(codes), latency_ms)

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        predicted = self.method_.predict(self._codes(encodings))
        return predicted if self.calibration_ is None else self.calibration_(predicted)

    def _codes(self, encodings: NDArray[np.float32]) -> NDArray[np.int16]:
        return encodings.astype(np.int16).reshape(-1, *self.method_.space.code_shape)


class Calibration:
    """Monotone conversion of scores to milliseconds.

    Between the levels of an isotonic regression it is linear. Beyond them it has the slope of a
    least-squares line, and approaches 0 below the lowest level.

    Args:
        scores: Scores of measured architectures, ``(n,)``.
        latency_ms: Their latencies, ms, ``(n,)``.
    """

    def __init__(self, scores: Floats, latency_ms: Floats) -> None:
        levels = IsotonicRegression().fit_transform(scores, latency_ms)
        self._ms = np.unique(levels)
        self._at = np.array([scores[levels == level].mean() for level in self._ms])
        spread = scores - scores.mean()
        size = float(spread @ spread)
        self._slope = max(float(spread @ latency_ms) / size, 0.0) if size else 0.0

    def __call__(self, scores: Floats) -> Floats:
        """Return latencies, ms, ``(n,)``."""
        first, last = self._at[0], self._at[-1]
        least, most = self._ms[0], self._ms[-1]
        below, above = np.minimum(scores - first, 0), np.maximum(scores - last, 0)
        inner = np.interp(scores, self._at, self._ms)
        falling = least * np.exp(self._slope * below / least)
        rising = most + self._slope * above
        return np.asarray(np.where(below < 0, falling, np.where(above > 0, rising, inner)))
