"""Comparison of devices by the rank correlation of their latencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.transfer.monotonicity import (
    LEAST_SHARED,
    RankCorrelation,
    best_proxy,
    block_order,
    correlation_matrix,
    rank_correlation,
)
from esm_host.transfer.source import Source, side_by_side


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rank correlations of sources, each pair by its common architectures.

    Attributes:
        names: Names of the sources.
        latency_ms: Latencies, ms, ``(architectures, sources)``; NaN where a source has none.
        matrix: Rank correlations, ``(sources, sources)``; NaN with fewer than four common
            architectures.
        shared: Number of common architectures, ``(sources, sources)``.
    """

    names: tuple[str, ...]
    latency_ms: NDArray[np.float64]
    matrix: NDArray[np.float64]
    shared: NDArray[np.int64]

    @property
    def order(self) -> list[int]:
        """Order in which similar sources are neighbours."""
        return block_order(self.matrix)

    def with_target(self, target: int) -> dict[int, RankCorrelation]:
        """Return the correlations of the others with a target, highest first.

        Sources with too few common architectures are left out.
        """
        found = {
            other: rank_correlation(self.latency_ms[:, other], self.latency_ms[:, target])
            for other in range(len(self.names))
            if other != target and self.shared[other, target] >= LEAST_SHARED
        }
        return dict(sorted(found.items(), key=lambda item: -item[1].value))

    def best_proxy(self, targets: Sequence[int], threshold: float) -> int:
        """Return the best proxy for the targets among the others; without targets, for all others.

        Raises:
            ValueError: there are no others.
        """
        everyone = range(len(self.names))
        candidates = [source for source in everyone if source not in targets]
        return best_proxy(self.matrix, candidates, targets or everyone, threshold)


def compare(sources: Sequence[Source]) -> Comparison:
    """Compare one or more sources of one space."""
    latency_ms = side_by_side(sources)
    there = np.isfinite(latency_ms).astype(np.int64)
    return Comparison(
        tuple(source.name for source in sources),
        latency_ms,
        correlation_matrix(latency_ms),
        there.T @ there,
    )
