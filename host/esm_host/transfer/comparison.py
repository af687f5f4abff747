"""Devices side by side: which rank architectures alike, and which may stand for which."""

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
    """Rank correlations of sources, each pair by the architectures that both have.

    Attributes:
        names: of the sources.
        latency_ms: ``(architectures, sources)``, NaN where a source has none.
        matrix: ``(sources, sources)``, NaN where fewer than four architectures are shared.
        shared: how many they are, ``(sources, sources)``.
    """

    names: tuple[str, ...]
    latency_ms: NDArray[np.float64]
    matrix: NDArray[np.float64]
    shared: NDArray[np.int64]

    @property
    def order(self) -> list[int]:
        """In which those that rank alike stand together."""
        return block_order(self.matrix)

    def with_target(self, target: int) -> dict[int, RankCorrelation]:
        """Of all others with a target, from the most alike on; without those that share too few
        architectures with it."""
        found = {
            other: rank_correlation(self.latency_ms[:, other], self.latency_ms[:, target])
            for other in range(len(self.names))
            if other != target and self.shared[other, target] >= LEAST_SHARED
        }
        return dict(sorted(found.items(), key=lambda item: -item[1].value))

    def best_proxy(self, targets: Sequence[int], threshold: float) -> int:
        """The source that stands for the targets best, none of them itself; of no targets, for all
        others.

        Raises:
            ValueError: there are no others.
        """
        everyone = range(len(self.names))
        candidates = [source for source in everyone if source not in targets]
        return best_proxy(self.matrix, candidates, targets or everyone, threshold)


def compare(sources: Sequence[Source]) -> Comparison:
    """Of sources of one space, one or more."""
    latency_ms = side_by_side(sources)
    there = np.isfinite(latency_ms).astype(np.int64)
    return Comparison(
        tuple(source.name for source in sources),
        latency_ms,
        correlation_matrix(latency_ms),
        there.T @ there,
    )
