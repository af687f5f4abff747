"""Default few-shot method: a Gaussian process with the latencies of sources as features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.predictors.auto import AutoPredictor
from esm_host.predictors.candidates import WITH_SOURCES, WITHOUT_SOURCES
from esm_host.transfer.base import FewShotPredictor, Floats
from esm_host.transfer.choose import choose
from esm_host.transfer.source import Source
from esm_host.transfer.source_models import sources_encoder
from esm_models.space import Codes


class SourceGP(FewShotPredictor):
    """Few-shot method by :class:`~esm_host.predictors.auto.AutoPredictor` on ``sources``.

    Every source becomes a linear model of log latency. Their predictions for an architecture are a
    group of features, besides its operations, their totals and the network's costs
    (:class:`~esm_host.encoding.sources.SourcesEncoder`). The few samples determine the weight of
    each group. One of the Gaussian processes has no sources, so that useless sources lose their
    weight.

    Args:
        seed: Random seed of the folds.
    """

    absolute = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def choose(self, pool: Codes, count: int, seconds: ArrayLike = 1.0) -> NDArray[np.intp]:
        """Return rows of a pool to measure (:func:`esm_host.transfer.choose.choose`)."""
        return choose(self.encoder_, pool, count, seconds)

    def _learn(self, sources: Sequence[Source]) -> None:
        self.encoder_ = sources_encoder(self.space, sources)

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        self.predictor_ = AutoPredictor(self.encoder_.layout, self.seed)
        self.predictor_.fit(self.encoder_.encode_codes(codes), latency_ms)

    def _predict(self, codes: Codes) -> Floats:
        return self.predictor_.predict(self.encoder_.encode_codes(codes))

    @property
    def left_out_errors(self) -> tuple[float, float]:
        """Mean absolute errors of held-out log latencies, with sources and without."""
        errors = self.predictor_.errors_
        return errors[WITH_SOURCES], errors[WITHOUT_SOURCES]

    def predict_interval(self, codes: Codes, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Return the ends of prediction intervals, ms, ``(n,)`` each.

        Args:
            codes: Architectures, ``(n, *space.code_shape)``.
            coverage: Share of the latencies that the intervals hold.

        Raises:
            ValueError: as :meth:`predict`, or the coverage is not between 0 and 1.
        """
        return self.predictor_.predict_interval(self.encoder_.encode_codes(codes), coverage)
