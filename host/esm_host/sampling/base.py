"""What a sampler is: it draws architectures that nobody has drawn yet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.sampling.bins import DepthBins
from esm_models.architecture import Architecture
from esm_models.space import Codes, SearchSpace


class Sampler(ABC):
    """Draws from a search space; the same generator state gives the same architectures."""

    by_bin: ClassVar[bool] = True
    """Whether it can draw from one depth bin; if not, all is left to chance."""

    def __init__(self, space: SearchSpace, bins: DepthBins) -> None:
        self.space = space
        self.bins = bins

    def quotas(self, total: int) -> list[int] | None:
        """Return how many of ``total`` first samples each bin gets: equally many, or None of a
        sampler that knows no bins."""
        if not self.by_bin:
            return None
        share, rest = divmod(total, self.bins.count)
        return [share + (index < rest) for index in range(self.bins.count)]

    @abstractmethod
    def _codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> Codes:
        """Return ``n`` architectures as codes, ``(n, *space.code_shape)``; repetitions are
        allowed.

        Args:
            bin_index: draw from this depth bin; None draws from the whole space. Always None of a
                sampler that is not :attr:`by_bin`.
        """

    def sample(
        self,
        n: int,
        rng: np.random.Generator,
        bin_index: int | None = None,
        exclude: Collection[str] = (),
    ) -> list[Architecture]:
        """``n`` different architectures whose keys are not in ``exclude``.

        Fewer where the bin (or the space) does not seem to hold that many.

        Raises:
            UsageError: ``n`` is negative.
        """
        if n < 0:
            raise UsageError(f"cannot draw {n} architectures: give 0 or more")
        if bin_index is not None and not self.by_bin:
            raise UsageError(
                f"{type(self).__name__} knows no bins: choose {argument('sampling')} balanced"
            )
        seen = set(exclude)
        drawn: list[Architecture] = []
        barren = 0
        while len(drawn) < n and barren < 20:
            fresh = 0
            batch = self._codes(max(2 * (n - len(drawn)), 16), bin_index, rng)
            for architecture in self.space.decode(batch):
                if architecture.key not in seen and len(drawn) < n:
                    seen.add(architecture.key)
                    drawn.append(architecture)
                    fresh += 1
            barren = 0 if fresh else barren + 1
        return drawn


def draw_options(space: SearchSpace, unit_depths: np.ndarray, rng: np.random.Generator) -> Codes:
    """Codes with given numbers of blocks, ``(n, units)``; options and resolutions uniform."""
    shape = (*unit_depths.shape, space.max_unit_depth)
    if space.one_option_per_unit:
        options = rng.integers(len(space.options), size=(*unit_depths.shape, 1), dtype=np.int16)
        options = np.broadcast_to(options, shape)
    else:
        options = rng.integers(len(space.options), size=shape, dtype=np.int16)
    present = np.arange(space.max_unit_depth) < unit_depths[..., None]
    codes = np.full((len(unit_depths), *space.code_shape), -1, dtype=np.int16)
    space.blocks_of(codes)[:] = np.where(present, options, -1)
    if space.resolutions:
        codes[:, -1, 0] = rng.integers(len(space.resolutions), size=len(codes))
    return codes
