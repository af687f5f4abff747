"""A campaign's predictor, and how far its latencies can be promised."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

from esm_host.encoding.base import Encoder
from esm_host.evaluation.conformal import quantile
from esm_host.extension.committee import FASTEST_MS
from esm_host.predictors.auto import AutoPredictor
from esm_host.predictors.base import Predictor
from esm_host.search.front import Floats
from esm_models.space import Codes

_AT_ONCE = 20_000


class Promise:
    """Latencies of codes, and what they are at most with a probability.

    ``auto`` knows how unsure it is of each architecture; of any other predictor all are as far off
    as those that it was judged by.

    Args:
        predictor: fitted to encodings of ``encoder``.
        latency_ms, predicted_ms: what was measured, and predicted by a predictor that had not seen
            it, ``(n,)``; of ``auto`` not needed.
    """

    def __init__(
        self, predictor: Predictor, encoder: Encoder, latency_ms: Floats, predicted_ms: Floats
    ) -> None:
        self._predictor = predictor
        self._encoder = encoder
        there = np.isfinite(predicted_ms) & (predicted_ms > 0)
        self._off = np.sort(np.log(latency_ms[there] / predicted_ms[there]))

    def __call__(self, codes: Codes, probability: float) -> tuple[Floats, Floats]:
        parts = [
            self._some(codes[first : first + _AT_ONCE], probability)
            for first in range(0, max(len(codes), 1), _AT_ONCE)
        ]
        latency_ms, at_most_ms = (np.concatenate(each) for each in zip(*parts, strict=True))
        return latency_ms, at_most_ms

    def _some(self, codes: Codes, probability: float) -> tuple[Floats, Floats]:
        encodings = self._encoder.encode_codes(codes)
        if isinstance(self._predictor, AutoPredictor):
            return self._predictor.predict_at_most(encodings, probability)
        latency_ms = np.maximum(self._predictor.predict(encodings), FASTEST_MS)
        normal = float(norm.ppf(probability)) * float(self._off.std())
        return latency_ms, latency_ms * np.exp(quantile(self._off, probability, normal))
