"""Predicted latencies with an upper bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

from esm_host.encoding.base import Encoder
from esm_host.evaluation.accuracy import FASTEST_MS
from esm_host.evaluation.conformal import LeftOutErrors
from esm_host.plugins import own_failures
from esm_host.predictors.base import IntervalPredictor, Predictor
from esm_host.search.front import Floats
from esm_models.space import Codes

_AT_ONCE = 1_000


class LatencyBounds:
    """Predicted latencies and their upper bounds at a probability.

    An :class:`~esm_host.predictors.base.IntervalPredictor` estimates its own uncertainty. The
    bounds of other predictors follow from their errors on held-out samples.

    Args:
        predictor: Predictor, fitted to encodings of ``encoder``.
        encoder: Encoder of architectures.
        latency_ms: Measured latencies, ms, ``(n,)``.
        predicted_ms: Held-out predictions of these, ms, ``(n,)``.
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
        # Threads within small matrix products do not pay, and slow other processes down. Threads
        # take parts of the rows instead.
        with threadpool_limits(1), ThreadPoolExecutor(joblib.cpu_count()) as pool:
            parts = list(
                pool.map(lambda at: self._some(codes[at : at + _AT_ONCE], probability), starts)
            )
        latency_ms, at_most_ms = (np.concatenate(each) for each in zip(*parts, strict=True))
        return latency_ms, at_most_ms

    def _some(self, codes: Codes, probability: float) -> tuple[Floats, Floats]:
        encodings = self._encoder.encode_codes(codes)
        if isinstance(self._predictor, IntervalPredictor):
            with own_failures(self._predictor):
                return self._predictor.predict_at_most(encodings, probability)
        assert self._errors is not None
        latency_ms = np.maximum(self._predictor.predict(encodings), FASTEST_MS)
        return latency_ms, latency_ms * self._errors.at_most(probability)
