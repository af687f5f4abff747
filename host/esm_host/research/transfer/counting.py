"""Few-shot baselines without a learned predictor: counts, and layer-wise tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from scipy.optimize import nnls

from esm_host.encoding import make_encoder
from esm_host.encoding.cost import CostEncoder
from esm_host.encoding.vectors import OperationOneHotEncoder
from esm_host.transfer.base import FewShotPredictor, Floats
from esm_host.transfer.source import Source
from esm_models.space import Codes

_FOLDS = 5
_PENALTIES = np.logspace(-2, 3, 6)


class _CountPredictor(FewShotPredictor):
    """Ranking by one column of the cost encoding."""

    column: ClassVar[str]

    def _learn(self, sources: Sequence[Source]) -> None:
        self.encoder_ = CostEncoder(self.space)
        written = f"written.{self.column}"
        self.place_ = self.encoder_.columns.index(written if self.space.prunes else self.column)

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        pass  # counts do not depend on the device

    def _predict(self, codes: Codes) -> Floats:
        return self.encoder_.encode_codes(codes)[:, self.place_].astype(np.float64)


class FlopsPredictor(_CountPredictor):
    """Ranking by FLOPs, in millions, on every device.

    Networks are counted as written, as the benchmarks do: with blocks without effect.
    """

    column = "all.mflops"


class ParametersPredictor(_CountPredictor):
    """Ranking by parameters, in millions, as :class:`FlopsPredictor`."""

    column = "all.mparameters"


class LayerWisePredictor(FewShotPredictor):
    """Sum of a latency per layer and operation, and a constant.

    In papers a layer-wise predictor is a lookup table: every operation is timed alone at every
    place, and a network takes the sum (Cai et al. 2019, ProxylessNAS). Here a new device has whole
    networks measured and no layers, so the same model is fitted to networks. No latency is
    negative. A ridge penalty draws each to a shared one, which is that of operations without a
    sample. The shared latency and, by cross-validation, the penalty come from the samples; no
    source is used. If architectures have a resolution, the latency of a layer grows with the
    pixels.

    Args:
        seed: Random seed of the folds.
    """

    absolute = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _learn(self, sources: Sequence[Source]) -> None:
        self.encoder_ = make_encoder(OperationOneHotEncoder.name, self.space)

    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        layers = self._layers(codes)
        folds = np.random.default_rng(self.seed).permutation(len(layers)) % _FOLDS
        errors = []
        for fold in range(min(_FOLDS, len(layers))):
            left_out = folds == fold
            if left_out.all():
                break
            tables = _tables(layers[~left_out], latency_ms[~left_out], _PENALTIES)
            errors.append((layers[left_out] @ tables.T - latency_ms[left_out, None]) ** 2)
        best = _PENALTIES[-1]
        if errors:
            best = _PENALTIES[np.argmin(np.concatenate(errors).mean(axis=0))]
        (self.table_ms_,) = _tables(layers, latency_ms, np.array([best]))

    def _predict(self, codes: Codes) -> Floats:
        return np.asarray(self._layers(codes) @ self.table_ms_)

    def _layers(self, codes: Codes) -> Floats:
        """Return ``(n, operations + 1)``; the last column is the constant."""
        hot = self.encoder_.encode_codes(codes).astype(np.float64)
        if self.space.resolutions:
            pixels = (hot[:, -1:] / max(self.space.resolutions)) ** 2
            hot = hot[:, :-1] * pixels
        return np.pad(hot, ((0, 0), (0, 1)), constant_values=1)


def _tables(layers: Floats, latency_ms: Floats, penalties: Floats) -> Floats:
    """Return latencies of every operation and the constant, ms, ``(penalties, operations + 1)``."""
    columns = layers.shape[1] - 1
    shared = float(latency_ms.sum() / layers.sum())
    least_ms = 0.01 * float(latency_ms.min())  # smallest constant: no network takes no time
    latency_ms = latency_ms - least_ms
    tables = []
    for penalty in penalties:
        pull = np.sqrt(penalty) * np.eye(columns, columns + 1)
        target = np.full(columns, np.sqrt(penalty) * shared)
        table, _ = nnls(np.concatenate([layers, pull]), np.concatenate([latency_ms, target]))
        table[-1] += least_ms
        tables.append(table)
    return np.stack(tables)
