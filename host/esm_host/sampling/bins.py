"""Bins of the depth, the number of blocks, by which ESM balances and evaluates (ESM, II-B)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_protos.text import counted

BINS = 5
"""Default number of bins, if there are as many depths."""


@dataclass(frozen=True)
class DepthBins:
    """Equally spaced bins of the depths ``min_depth`` to ``max_depth``, both included.

    Raises:
        UsageError: there are fewer depths than bins.
    """

    min_depth: int
    max_depth: int
    count: int

    def __post_init__(self) -> None:
        depths = self.max_depth - self.min_depth + 1
        if not 1 <= self.count <= depths:
            raise UsageError(
                f"{argument('bins')} {self.count} is impossible: the space has "
                f"{counted(depths, 'depth')} "
                f"({self.min_depth} to {self.max_depth}); give 1 to {depths}"
            )

    @classmethod
    def by_default(cls, min_depth: int, max_depth: int) -> DepthBins:
        """Return :data:`BINS` bins, or one per depth if there are fewer depths."""
        return cls(min_depth, max_depth, min(BINS, max_depth - min_depth + 1))

    def of(self, depths: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the bin index of each depth."""
        span = self.max_depth - self.min_depth + 1
        index: NDArray[np.int64] = (np.asarray(depths) - self.min_depth) * self.count // span
        return index

    def depths(self, index: int) -> range:
        """Return the depths of one bin; never empty."""
        span = self.max_depth - self.min_depth + 1
        # Smallest d with d * count // span == index is the ceiling of index * span / count.
        low = -(-index * span // self.count)
        high = -(-(index + 1) * span // self.count)
        return range(self.min_depth + low, self.min_depth + high)


def depth_range(low: int, high: int) -> str:
    """Return ``6-9``, or ``6`` if both ends are equal."""
    return str(low) if low == high else f"{low}-{high}"
