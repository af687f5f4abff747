"""Base class of the classical predictors."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from esm_host.predictors.base import Floats, Predictor


class StandardPredictor(Predictor):
    """Predictor on standardised columns and latencies, as in the predictor study (III).

    There is no other transformation of latencies. Samples of weight 0 are left out, as some
    libraries count samples or start from their mean.

    The study does not report its hyperparameters. Ours have the best Kendall's tau on four devices
    for which we quote no figures. These are the GTX 1080 Ti and the Xeon Silver 4114, on
    NAS-Bench-201 (GPU at batch 1) and on FBNet (GPU at batch 32). Training sets had 25 to 2,000
    samples, encoded one-hot by operation, with one seed. XGBoost and the sparse Gaussian process
    were tuned on some of these. NGBoost has the hyperparameters of XGBoost.
    """

    @abstractmethod
    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        """Fit to standardised columns and latencies; weights are positive, with mean 1."""

    @abstractmethod
    def _recall(self, x: Floats) -> Floats:
        """Return standardised latencies."""

    def _recall_with_std(self, x: Floats) -> tuple[Floats, Floats]:
        """Return standardised latencies and standard deviations, if :attr:`knows_std`."""
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
        # Without variation the mean is the only scale.
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
