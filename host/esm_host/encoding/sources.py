"""What other devices would take for an architecture, beside the views of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from esm_host.encoding.base import Encoder, Layout
from esm_host.encoding.views import ViewsEncoder
from esm_models.space import Codes, SearchSpace

GROUP = "sources"
_RIDGE = 10.0
_LEARNED_FROM = ("operations", "log-costs")


@dataclass(frozen=True, eq=False)
class SourceModels:
    """Log latencies on other devices as linear functions of the views' columns.

    Attributes:
        names: of the devices.
        intercept: ``(sources,)``.
        weights: ``(columns, sources)``.
    """

    names: tuple[str, ...]
    intercept: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def learn(
        cls, space: SearchSpace, sources: Mapping[str, tuple[Codes, NDArray[np.float64]]]
    ) -> SourceModels:
        """By ridge regression on operations and log costs, which takes a few milliseconds a
        device and smooths the noise of its measurements.

        Args:
            sources: name -> codes, ``(n, *space.code_shape)``, and latencies, ms, ``(n,)``.
        """
        views = ViewsEncoder(space)
        groups = views.layout.groups
        columns = np.concatenate([np.arange(*groups[name]) for name in _LEARNED_FROM])
        encoded: dict[int, NDArray[np.float64]] = {}
        intercept, weights = np.zeros(len(sources)), np.zeros((len(views), len(sources)))
        for number, (codes, latency_ms) in enumerate(sources.values()):
            if id(codes) not in encoded:  # devices of a table share their architectures
                encoded[id(codes)] = views.encode_codes(codes)[:, columns].astype(np.float64)
            x, y = encoded[id(codes)], np.log(latency_ms)
            centre, spread = x.mean(axis=0), x.std(axis=0)
            spread = np.where(spread > 1e-6 * np.maximum(np.abs(centre), 1e-6), spread, np.inf)
            standard = (x - centre) / spread
            gram = standard.T @ standard
            gram[np.diag_indices_from(gram)] += _RIDGE
            found = cho_solve(cho_factor(gram), standard.T @ (y - y.mean())) / spread
            weights[columns, number] = found
            intercept[number] = y.mean() - centre @ found
        return cls(tuple(sources), intercept, weights)

    def __len__(self) -> int:
        return len(self.names)


class SourcesEncoder(Encoder):
    """The views, and before them a group :data:`GROUP`: the log latency that each source expects.

    Args:
        models: of the same search space.
    """

    name = "sources"
    with_resolution = False

    def __init__(self, space: SearchSpace, models: SourceModels) -> None:
        self.models = models
        self._views = ViewsEncoder(space)
        if models.weights.shape[0] != len(self._views):
            raise ValueError(
                f"source models of {models.weights.shape[0]} columns, but {space.name} has "
                f"{len(self._views)}"
            )
        super().__init__(space)

    @property
    def layout(self) -> Layout:
        count = len(self.models)
        views = {n: (a + count, b + count) for n, (a, b) in self._views.layout.groups.items()}
        return Layout({GROUP: (0, count), **views})

    def _columns(self) -> list[str]:
        return [*(f"source.{name}" for name in self.models.names), *self._views.columns]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        views = self._views._encode(codes, resolution).astype(np.float64)
        expected = views @ self.models.weights + self.models.intercept
        return np.concatenate([expected, views], axis=1)
