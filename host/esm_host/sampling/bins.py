"""Bins along the number of blocks, the dimension by which ESM balances and judges (ESM, II-B)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.errors import UsageError

BINS = 5
"""By default, where there are as many depths."""


@dataclass(frozen=True)
class DepthBins:
    """Equally spaced bins over depths ``min_depth``..``max_depth``, both included.

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
                f"{argument('bins')} {self.count} is impossible: the space has {depths} depths "
                f"({self.min_depth} to {self.max_depth}); give 1 to {depths}"
            )

    @classmethod
    def by_default(cls, min_depth: int, max_depth: int) -> DepthBins:
        """:data:`BINS`, or as many as there are depths."""
        return cls(min_depth, max_depth, min(BINS, max_depth - min_depth + 1))

    def of(self, depths: NDArray[np.integer]) -> NDArray[np.int64]:
        """Bin index of each depth."""
        span = self.max_depth - self.min_depth + 1
        index: NDArray[np.int64] = (np.asarray(depths) - self.min_depth) * self.count // span
        return index

    def depths(self, index: int) -> range:
        """The depths of one bin; never empty."""
        span = self.max_depth - self.min_depth + 1
        # Smallest d with d * count // span == index is the ceiling of index * span / count.
        low = -(-index * span // self.count)
        high = -(-(index + 1) * span // self.count)
        return range(self.min_depth + low, self.min_depth + high)


def depth_range(low: int, high: int) -> str:
    """``6-9``, or ``6`` where both are."""
    return str(low) if low == high else f"{low}-{high}"
