"""A campaign's predictor, and how far its latencies can be promised."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from esm_host.encoding.base import Encoder
from esm_host.evaluation.conformal import LeftOutErrors
from esm_host.extension.committee import FASTEST_MS
from esm_host.predictors.base import IntervalPredictor, Predictor
from esm_host.search.front import Floats
from esm_models.space import Codes

_AT_ONCE = 1_000


class Promise:
    """Latencies of codes, and what they are at most with a probability.

    A predictor may know how unsure it is of each architecture; of any other all are as far off as
    those that it was judged by.

    Args:
        predictor: fitted to encodings of ``encoder``.
        latency_ms, predicted_ms: what was measured, and predicted by a predictor that had not seen
            it, ``(n,)``; not needed of one that knows.
    """

    def __init__(
        self, predictor: Predictor, encoder: Encoder, latency_ms: Floats, predicted_ms: Floats
    ) -> None:
        self._predictor = predictor
        self._encoder = encoder
        self._errors = (
            None
            if isinstance(predictor, IntervalPredictor)
            else LeftOutErrors(latency_ms, predicted_ms)
        )

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
        if isinstance(self._predictor, IntervalPredictor):
            return self._predictor.predict_at_most(encodings, probability)
        assert self._errors is not None
        latency_ms = np.maximum(self._predictor.predict(encodings), FASTEST_MS)
        return latency_ms, latency_ms * self._errors.at_most(probability)
