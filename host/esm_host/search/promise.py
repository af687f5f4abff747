"""A campaign's predictor, and how far its latencies can be promised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from esm_host.encoding.base import Encoder
from esm_host.evaluation.conformal import quantile
from esm_host.extension.committee import FASTEST_MS
from esm_host.predictors.auto import AutoPredictor
from esm_host.predictors.base import Predictor
from esm_host.search.front import Floats
from esm_models.space import Codes

_AT_ONCE = 1_000


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
        starts = range(0, max(len(codes), 1), _AT_ONCE)
        # Small matrices gain nothing from threads of their own, and lose much where others compute
        # as well: each thread takes a part of the rows instead.
        with threadpool_limits(1), ThreadPoolExecutor(joblib.cpu_count()) as pool:
            parts = list(
                pool.map(lambda at: self._some(codes[at : at + _AT_ONCE], probability), starts)
            )
        latency_ms, at_most_ms = (np.concatenate(each) for each in zip(*parts, strict=True))
        return latency_ms, at_most_ms

    def _some(self, codes: Codes, probability: float) -> tuple[Floats, Floats]:
        encodings = self._encoder.encode_codes(codes)
        if isinstance(self._predictor, AutoPredictor):
            return self._predictor.predict_at_most(encodings, probability)
        latency_ms = np.maximum(self._predictor.predict(encodings), FASTEST_MS)
        normal = float(norm.ppf(probability)) * float(self._off.std())
        return latency_ms, latency_ms * np.exp(quantile(self._off, probability, normal))
