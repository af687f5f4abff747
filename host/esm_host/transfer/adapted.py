"""A few-shot method as a campaign's predictor: learnt from its sources once, fitted many times."""

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
    """A few-shot method, adapted to what a campaign has measured.

    Encodings are those of :class:`~esm_host.encoding.codes.CodesEncoder`. A method whose
    predictions only rank is given milliseconds by :class:`Calibration`.

    Args:
        learnt: gives the method that has learnt its sources. It is asked for when the predictor is
            fitted, and the method itself is left as it is.
    """

    uses_weights = False

    def __init__(self, learnt: Callable[[], FewShotPredictor]) -> None:
        self.learnt = learnt

    def __getstate__(self) -> dict[str, Any]:
        """A fitted one needs its sources no more, which may be in a file of this machine."""
        return {name: value for name, value in vars(self).items() if name != "learnt"}

    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        # Adapting replaces attributes and changes none that learning made.
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
    """Milliseconds of scores that rank as latencies do: the same order, ties aside.

    Isotonic regression says what latencies to expect along the scores; between its levels it goes
    straight, beyond them with the slope of a least-squares line, towards 0 below the least.

    Args:
        scores: of what was measured, ``(n,)``.
        latency_ms: of these.
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
