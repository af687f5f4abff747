"""Latencies or energies of a source device, and of several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_models.space import Codes, SearchSpace

LATENCY, ENERGY = "latency", "energy"
"""Metrics of sources: latencies, ms, and energies per inference, mJ."""


@dataclass(frozen=True, eq=False)
class Source:
    """Latencies, or energies, measured on one device.

    Attributes:
        name: ``TABLE/DEVICE``, ``TABLE/DEVICE:energy``, or the folder of a campaign.
        space: Search space.
        codes: Architectures, ``(n, *space.code_shape)``.
        latency_ms: Latencies, ms, ``(n,)``, positive and finite; energies, mJ, if the metric is
            :data:`ENERGY`.
        metric: :data:`LATENCY` or :data:`ENERGY`.
    """

    name: str
    space: SearchSpace
    codes: Codes
    latency_ms: NDArray[np.float64]
    metric: str = LATENCY

    def __len__(self) -> int:
        return len(self.codes)

    def fits(self, space: SearchSpace) -> bool:
        """Return whether its architectures are those of the space.

        Resolution, widths, batch, dtype and the values of contexts may differ.
        """
        return (
            self.space.name == space.name
            and self.codes.shape[1:] == space.code_shape
            and [*self.space.contexts] == [*space.contexts]
        )


def side_by_side(sources: Sequence[Source]) -> NDArray[np.float64]:
    """Return the latencies of all architectures of the sources, ms, ``(n, sources)``.

    It is NaN where a source lacks one, and the mean if a source has an architecture several times.

    Args:
        sources: One or more sources of one space.
    """
    flat = np.concatenate([source.codes.reshape(len(source), -1) for source in sources])
    keys = np.ascontiguousarray(flat).view(np.dtype((np.void, flat.itemsize * flat.shape[1])))
    distinct, rows = np.unique(keys.ravel(), return_inverse=True)
    latency_ms = np.full((len(distinct), len(sources)), np.nan)
    ends = np.cumsum([len(source) for source in sources])
    for number, (source, end) in enumerate(zip(sources, ends.tolist(), strict=True)):
        mine = rows[end - len(source) : end]
        count = np.bincount(mine, minlength=len(distinct))
        total = np.bincount(mine, source.latency_ms, minlength=len(distinct))
        there = count > 0
        latency_ms[there, number] = total[there] / count[there]
    return latency_ms
