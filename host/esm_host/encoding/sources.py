"""Encoding with the latencies predicted for other devices."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder, Layout
from esm_host.encoding.views import ViewsEncoder
from esm_host.errors import DatasetError
from esm_models.space import Codes, SearchSpace
from esm_protos.text import counted

GROUP = "sources"


@dataclass(frozen=True, eq=False)
class SourceModels:
    """Log latencies on other devices as linear functions of the columns of ``views``.

    Attributes:
        names: Names of the devices.
        intercept: Constants, ``(sources,)``.
        weights: Weights, ``(columns, sources)``.
    """

    names: tuple[str, ...]
    intercept: NDArray[np.float64]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file without pickled objects."""
        with path.open("wb") as file:
            np.savez(
                file,
                names=np.array(self.names, dtype=np.str_),
                intercept=self.intercept,
                weights=self.weights,
            )

    @classmethod
    def load(cls, path: Path) -> SourceModels:
        """Read the file that :meth:`save` writes.

        Raises:
            DatasetError: there is no such file, or it is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = tuple(file["names"].tolist())
                intercept, weights = file["intercept"], file["weights"]
            if intercept.shape != (len(names),) or weights.shape[1:] != (len(names),):
                raise ValueError("the shapes of its arrays disagree")
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
            raise DatasetError(f"{path} is damaged ({error}): restore it from a copy") from error
        return cls(names, intercept, weights)


class SourcesEncoder(Encoder):
    """Latencies predicted for the sources, and the columns of ``views``.

    The group :data:`GROUP` comes first and has the log latency of each source.

    Args:
        space: Search space.
        models: Source models of the same space.
    """

    name = "sources"
    with_resolution = False
    with_choices = False

    def __init__(self, space: SearchSpace, models: SourceModels) -> None:
        self.models = models
        self._views = ViewsEncoder(space)
        if models.weights.shape[0] != len(self._views):
            raise ValueError(
                f"source models of {counted(models.weights.shape[0], 'column')}, but {space.name} "
                f"has {len(self._views)}"
            )
        super().__init__(space)

    @property
    def layout(self) -> Layout:
        count = len(self.models)
        views = {n: (a + count, b + count) for n, (a, b) in self._views.layout.groups.items()}
        return Layout({GROUP: (0, count), **views})

    def _columns(self) -> list[str]:
        return [*(f"source.{name}" for name in self.models.names), *self._views.columns]

    def _encode_all(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        views = self._views._encode_all(codes, resolution).astype(np.float64)
        expected = views @ self.models.weights + self.models.intercept
        return np.concatenate([expected, views], axis=1)
