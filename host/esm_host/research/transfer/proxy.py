"""Predictor of one proxy device, unchanged or adapted (Lu et al. 2021)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from scipy.linalg import lstsq

from esm_host.encoding.vectors import OperationOneHotEncoder
from esm_host.errors import UsageError
from esm_host.predictors import predictor_class
from esm_host.research.transfer.adaproxy import NORMS, VALIDATION, AdaProxy
from esm_host.transfer.base import FewShotPredictor, Floats
from esm_host.transfer.monotonicity import rank_correlation
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace
from esm_protos.nearest import unknown

_LEAST = 4  # smallest number of samples of a rank correlation
_CUTOFF = 1e-8
"""Smallest singular value that counts, relative to the largest."""


class _Model(ABC):
    """Predictor of a device, linear in its features: ``latency_ms = features @ weights``."""

    weights: Floats

    @abstractmethod
    def features(self, codes: Codes) -> Floats: ...


class _Linear(_Model):
    """One-hot operations and a constant, by least squares.

    The columns of a block add up to the constant, so many weights fit equally well. These are the
    smallest.
    """

    def __init__(self, source: Source) -> None:
        self._encoder = OperationOneHotEncoder(source.space)
        # SciPy's default cutoff keeps directions that are rounding errors.
        found = lstsq(self.features(source.codes), source.latency_ms, cond=_CUTOFF)
        self.weights = np.asarray(found[0])

    def features(self, codes: Codes) -> Floats:
        encoded = self._encoder.encode_codes(codes).astype(np.float64)
        return np.concatenate([encoded, np.ones((len(codes), 1))], axis=1)


class _Network(_Model):
    """Inputs of the last layer of a perceptron; the layers before it are fixed."""

    def __init__(self, source: Source, seed: int) -> None:
        from esm_host.predictors.mlp import MLPPredictor

        self._encoder = OperationOneHotEncoder(source.space)
        self._network = MLPPredictor(seed=seed)
        self._network.fit(self._encoder.encode_codes(source.codes), source.latency_ms)
        self.weights = self._network.last_weights()

    def features(self, codes: Codes) -> Floats:
        return self._network.last_inputs(self._encoder.encode_codes(codes))


class ProxyPredictor(FewShotPredictor):
    """Predictor of the source that ranks the new device's samples best.

    There is a predictor per source (Lu et al. 2021, section 5.3).

    Args:
        proxy: Name of the source to use; None to choose by the samples.
        model: ``"linear"`` in one-hot operations, or ``"network"``, a perceptron on them.
        seed: Random seed of the networks.
    """

    least_samples = _LEAST
    corrects: ClassVar[bool] = False
    """Whether it learns from the samples what the proxy has wrong, not only which one to take."""

    def __init__(self, proxy: str | None = None, model: str = "linear", seed: int = 0) -> None:
        if model not in (known := ("linear", "network")):
            raise UsageError(unknown("proxy model", model, known))
        self.proxy = proxy
        self.model = model
        self.seed = seed

    def check(self, space: SearchSpace, sources: Sequence[str]) -> None:
        super().check(space, sources)
        if self.model == "network":
            predictor_class("mlp")  # raises if torch is missing
        if self.proxy is not None and self.proxy not in sources:
            raise UsageError(unknown("source", self.proxy, sources, where="to be the proxy"))

    def _learn(self, sources: Sequence[Source]) -> None:
        self.check(self.space, [source.name for source in sources])
        chosen = [source for source in sources if self.proxy in (None, source.name)]
        self.models_: dict[str, _Model] = {
            source.name: _Linear(source) if self.model == "linear" else _Network(source, self.seed)
            for source in chosen
        }

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        merit = {
            name: rank_correlation(model.features(codes) @ model.weights, latency_ms).value
            for name, model in self.models_.items()
        }
        self.proxy_ = max(merit, key=merit.__getitem__)

    def _predict(self, codes: Codes) -> Floats:
        model = self.models_[self.proxy_]
        return np.asarray(model.features(codes) @ model.weights)


class AdaProxyPredictor(ProxyPredictor):
    """Predictor of the proxy, adapted by :class:`~esm_host.research.transfer.adaproxy.AdaProxy`.

    Args:
        proxy: Name of the source to use; None to choose by the samples.
        model: Model of :class:`ProxyPredictor`.
        validation: Number of samples to choose the penalty on.
        seed: Random seed of the split, and of the networks.
        norm: Norm of the corrections: ``"l1"``, the paper's, or ``"l2"``, that of the authors'
            program.
    """

    corrects = True

    def __init__(
        self,
        proxy: str | None = None,
        model: str = "linear",
        validation: int = VALIDATION,
        seed: int = 0,
        norm: str = "l1",
    ) -> None:
        super().__init__(proxy, model, seed)
        if norm not in NORMS:
            raise UsageError(unknown("norm", norm, NORMS))
        self.validation = validation
        self.norm = norm

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        super()._adapt(codes, latency_ms)
        model = self.models_[self.proxy_]
        self.adapted_proxy_ = AdaProxy(model.weights, self.validation, self.seed, self.norm)
        self.adapted_proxy_.fit(model.features(codes), latency_ms)

    def _predict(self, codes: Codes) -> Floats:
        return self.adapted_proxy_.predict(self.models_[self.proxy_].features(codes))
