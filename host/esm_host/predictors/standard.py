"""What the classical predictors share: columns and latencies in standard units."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from esm_host.predictors.base import Floats, Predictor


class StandardPredictor(Predictor):
    """Standardises columns and latencies, as the predictor study does (III, "Study setup").

    Latencies are not transformed otherwise. Samples of weight 0 are left out, so that libraries
    that count samples, or start from their mean, do not see them.

    The study searches hyperparameters briefly and does not say what came out. Those of these
    predictors were chosen by Kendall's tau on latencies of four devices that no figure we quote is
    from: of NAS-Bench-201 the GTX 1080 Ti (batch 1) and the Xeon Silver 4114, of FBNet the same
    (batch 32), with 25 to 2,000 samples, one-hot by operation, one seed; of XGBoost and the sparse
    Gaussian process on some of these only, and NGBoost's are XGBoost's.
    """

    @abstractmethod
    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        """From standardised columns and latencies; weights are positive, with mean 1."""

    @abstractmethod
    def _recall(self, x: Floats) -> Floats:
        """Standardised latencies."""

    def _recall_with_std(self, x: Floats) -> tuple[Floats, Floats]:
        """Of those that know their uncertainty."""
        raise NotImplementedError

    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        counts = weights > 0
        x, y, weights = encodings[counts].astype(np.float64), latency_ms[counts], weights[counts]
        weights = weights / weights.mean()
        self.mean_ = x.mean(axis=0)
        sd = x.std(axis=0)
        self.scale_ = np.where(sd > 1e-6 * np.abs(self.mean_), sd, 1)
        self.mean_ms_ = float(np.average(y, weights=weights))
        sd_ms = float(np.sqrt(np.average((y - self.mean_ms_) ** 2, weights=weights)))
        # Where nothing varies, all that is known of the unit is the mean.
        self.unit_ms_ = sd_ms if sd_ms > 1e-6 * self.mean_ms_ else self.mean_ms_
        self._learn(self._standard(x), (y - self.mean_ms_) / self.unit_ms_, weights)

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        return self.mean_ms_ + self.unit_ms_ * self._recall(self._standard(encodings))

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self._recall_with_std(self._standard(encodings))
        return self.mean_ms_ + self.unit_ms_ * mean, self.unit_ms_ * std

    def _standard(self, encodings: NDArray[np.floating]) -> Floats:
        result: Floats = (encodings - self.mean_) / self.scale_
        return result
