"""Interface of samplers, which draw new architectures of a search space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar

import numpy as np

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.plugins import own_failures
from esm_host.sampling.bins import DepthBins, depth_range
from esm_models.architecture import Architecture
from esm_models.space import Codes, SearchSpace
from esm_protos.plugins import own_name


class Sampler(ABC):
    """Sampler of a search space; equal generator states give equal architectures."""

    by_bin: ClassVar[bool] = True
    """Whether the sampler can draw from one depth bin; otherwise it draws from the whole space."""

    chooses: ClassVar[bool] = False
    """Whether draws are candidates, of which the loop measures the most informative ones."""

    def __init__(self, space: SearchSpace, bins: DepthBins) -> None:
        self.space = space
        self.bins = bins

    def quotas(self, total: int) -> list[int] | None:
        """Return the number of first samples per bin, equal shares of ``total``.

        None for a sampler without bins.
        """
        if not self.by_bin:
            return None
        share, rest = divmod(total, self.bins.count)
        return [share + (index < rest) for index in range(self.bins.count)]

    @abstractmethod
    def _codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> Codes:
        """Draw ``n`` architectures as codes, shape ``(n, *space.code_shape)``, possibly repeated.

        Args:
            n: Number of architectures.
            bin_index: Depth bin to draw from; None for the whole space. Always None unless
                :attr:`by_bin`.
            rng: Random generator.
        """

    def _checked_codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> Codes:
        """Draw codes, as :meth:`_codes`.

        Raises:
            UsageError: there are more than ``n``, or one is outside of the space or the bin.
        """
        shape = self.space.code_shape
        with own_failures(self):
            codes = np.asarray(self._codes(n, bin_index, rng))
        if codes.shape[1:] != shape or codes.dtype.kind not in "iu" or len(codes) > n:
            raise UsageError(
                f"{own_name(self)}: _codes returned an array {codes.shape} of {codes.dtype}: "
                f"return at most {n} architectures as integers, ({n}, {shape[0]}, {shape[1]})"
            )
        if (bad := self.space.outside(codes)).any():
            raise UsageError(
                f"{own_name(self)}: _codes returned {codes[bad.argmax()].tolist()}, which is "
                f"outside of {self.space.name}: give options from 0 to "
                f"{len(self.space.options) - 1}, and -1 after the last block of a unit"
            )
        if bin_index is not None and len(codes):
            depths = (self.space.blocks_of(codes) >= 0).sum(axis=(1, 2))
            wrong = self.bins.of(depths) != bin_index
            if wrong.any():
                bin_depths = self.bins.depths(bin_index)
                raise UsageError(
                    f"{own_name(self)}: _codes returned {depths[wrong.argmax()]} blocks for the "
                    f"bin of {depth_range(bin_depths[0], bin_depths[-1])}: keep to the bin, or set "
                    "by_bin = False"
                )
        return codes.astype(np.int16, copy=False)

    def sample(
        self,
        n: int,
        rng: np.random.Generator,
        bin_index: int | None = None,
        exclude: Collection[str] = (),
    ) -> list[Architecture]:
        """Draw ``n`` different architectures; fewer if the bin or the space seems exhausted.

        Args:
            n: Number of architectures.
            rng: Random generator.
            bin_index: Depth bin to draw from; None for the whole space.
            exclude: Keys of architectures that must not be drawn.

        Raises:
            UsageError: ``n`` is negative, the sampler has no bins, or what it draws is not in the
                space.
            EsmError: a class from a user's file fails.
        """
        if n < 0:
            raise UsageError(f"cannot draw {n} architectures: give 0 or more")
        if bin_index is not None and not self.by_bin:
            raise UsageError(
                f"{type(self).__name__} has no bins: choose {argument('sampling')} balanced"
            )
        seen = set(exclude)
        drawn: list[Architecture] = []
        barren = 0
        while len(drawn) < n and barren < 20:
            fresh = 0
            batch = self._checked_codes(max(2 * (n - len(drawn)), 16), bin_index, rng)
            for architecture in self.space.decode(batch):
                if architecture.key not in seen and len(drawn) < n:
                    seen.add(architecture.key)
                    drawn.append(architecture)
                    fresh += 1
            barren = 0 if fresh else barren + 1
        return drawn


def draw_options(space: SearchSpace, unit_depths: np.ndarray, rng: np.random.Generator) -> Codes:
    """Draw codes with given block counts, shape ``(n, units)``.

    All other choices, and contexts, are uniform.
    """
    n, shape = len(unit_depths), (*unit_depths.shape, space.max_unit_depth)
    drawn = (*shape[:2], 1) if space.one_option_per_unit else shape
    if len({len(codes) for codes in space.block_options}) == 1:
        numbers = rng.integers(len(space.block_options[0]), size=drawn, dtype=np.int16)
    else:
        sizes = np.array([len(codes) for codes in space.block_options])
        numbers = rng.integers(sizes[:, None], size=drawn, dtype=np.int16)
    numbers = np.broadcast_to(numbers, shape)
    options = np.empty(shape, dtype=np.int16)
    for unit, codes in enumerate(space.block_options):
        options[:, unit] = codes[numbers[:, unit]]
    present = np.arange(space.max_unit_depth) < unit_depths[..., None]
    chosen = np.empty((n, len(space.choice_sizes)), dtype=np.int64)
    for choice, size in enumerate(space.choice_sizes):
        chosen[:, choice] = rng.integers(size, size=n)
    contexts = np.empty((n, len(space.contexts)), dtype=np.int64)
    for context, values in enumerate(space.contexts.values()):
        contexts[:, context] = rng.choice(np.array(values), size=n)
    return space.join(np.where(present, options, -1), chosen, contexts)
