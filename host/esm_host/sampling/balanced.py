"""ESM's balanced sampling: equal numbers per depth bin (ESM, II-C2)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from esm_host.sampling.base import Sampler, draw_options
from esm_models.space import Codes


class BalancedSampler(Sampler):
    """Sampler with equally likely depths in a bin, and equally likely architectures of a depth.

    Depths are drawn unit by unit with the exact number of ways to complete them (dynamic
    programming). Nothing is rejected, so rare depths cost no more than common ones.
    """

    @cached_property
    def _ways(self) -> list[dict[int, int]]:
        """Number of ways in which each unit and those after it sum to each depth."""
        ways: list[dict[int, int]] = [{0: 1}]
        for unit, depths in reversed(list(enumerate(self.space.depths))):
            table: dict[int, int] = {}
            for rest, count in ways[0].items():
                for depth in depths:
                    more = count * self.space.unit_variants(unit, depth)
                    table[rest + depth] = table.get(rest + depth, 0) + more
            ways.insert(0, table)
        return ways

    def _codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> Codes:
        wanted = (
            range(self.bins.min_depth, self.bins.max_depth + 1)
            if bin_index is None
            else self.bins.depths(bin_index)
        )
        possible = [depth for depth in wanted if depth in self._ways[0]]
        if not possible:
            return np.empty((0, *self.space.code_shape), np.int16)
        remaining = rng.choice(possible, size=n)
        return draw_options(self.space, self._unit_depths(remaining, rng), rng)

    def _unit_depths(
        self, remaining: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return block counts per unit, shape ``(n, units)``, that sum to each of ``remaining``."""
        remaining = remaining.copy()
        columns = np.empty((len(remaining), self.space.unit_count), np.int64)
        for unit, depths in enumerate(self.space.depths):
            after = self._ways[unit + 1]
            for total in np.unique(remaining):
                rows = np.flatnonzero(remaining == total)
                ways = [self.space.unit_variants(unit, d) * after.get(total - d, 0) for d in depths]
                # Exact integers until this division: the numbers exceed any float's precision.
                chances = [way / self._ways[unit][total] for way in ways]
                columns[rows, unit] = rng.choice(depths, size=len(rows), p=chances)
            remaining -= columns[:, unit]
        return columns
