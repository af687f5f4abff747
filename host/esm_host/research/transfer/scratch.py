"""Learning a new device from its own samples alone: what few-shot methods must beat."""

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
    """Any predictor, trained on the new device's samples; of the sources it takes the space only.

    ``auto`` is the strongest there is from scratch. ``gcn`` is BRP-NAS's way to a latency (Dudziak
    et al. 2020): a graph convolutional network on the measurements of one device, 900 of them
    where others compare themselves with it; its layers here are those of
    :class:`esm_host.predictors.baselines.graph_networks.GCNPredictor`.

    Args:
        predictor: its name (:data:`esm_host.predictors.PREDICTORS`).
        encoding: the name of another encoding than the one that it is used with.
        params: of its constructor, in place of its defaults.
        seed: of what it draws at random.

    Raises:
        UsageError: there is no such predictor. Learning raises it where there is no such encoding,
            or the predictor cannot learn from it.
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
        self._make()  # which refuses what does not fit, now rather than when samples are there

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        self.fitted_ = self._make().fit(self.encoder_.encode_codes(codes), latency_ms)

    def _predict(self, codes: Codes) -> Floats:
        return self.fitted_.predict(self.encoder_.encode_codes(codes))

    def _make(self) -> Predictor:
        return make_predictor(self.predictor, self.encoder_, self.seed, **(self.params or {}))
