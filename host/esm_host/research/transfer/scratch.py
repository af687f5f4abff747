"""Baseline that learns a new device from its own samples alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esm_host.encoding import make_encoder
from esm_host.predictors import encoding_for, entry, make_predictor
from esm_host.predictors.base import Predictor
from esm_host.transfer.base import FewShotPredictor, Floats
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace


class ScratchPredictor(FewShotPredictor):
    """Any predictor, fitted to the new device's samples without sources.

    ``auto`` is the strongest one. ``gcn`` is the latency predictor of BRP-NAS (Dudziak et al.
    2020): a graph convolutional network on the measurements of one device, 900 in comparisons by
    others. Its layers here are those of
    :class:`esm_host.predictors.baselines.graph_networks.GCNPredictor`.

    Args:
        predictor: Name of the predictor (:data:`esm_host.predictors.PREDICTORS`).
        encoding: Name of the encoding; None for the predictor's usual one.
        params: Hyperparameters that differ from the defaults.
        seed: Random seed.

    Raises:
        UsageError: there is no such predictor. :meth:`learn` raises it if there is no such
            encoding, or it does not suit the predictor.
    """

    absolute = True

    def __init__(
        self,
        predictor: str = "auto",
        encoding: str | None = None,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        entry(predictor)
        self.predictor = predictor
        self.encoding = encoding
        self.params = params
        self.seed = seed

    def check(self, space: SearchSpace, sources: Sequence[str]) -> None:
        super().check(space, sources)
        self._prepare(space)

    def _learn(self, sources: Sequence[Source]) -> None:
        self._prepare(self.space)

    def _prepare(self, space: SearchSpace) -> None:
        name = self.encoding or encoding_for(self.predictor, space)
        self.encoder_ = make_encoder(name, space)
        self._make()  # raises early if the encoding does not suit the predictor

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        self.fitted_ = self._make().fit(self.encoder_.encode_codes(codes), latency_ms)

    def _predict(self, codes: Codes) -> Floats:
        return self.fitted_.predict(self.encoder_.encode_codes(codes))

    def _make(self) -> Predictor:
        return make_predictor(self.predictor, self.encoder_, self.seed, **(self.params or {}))
