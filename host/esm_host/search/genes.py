"""Architectures as integer vectors of one length, for crossover and mutation."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from esm_models.space import Codes, SearchSpace

Genes = NDArray[np.int16]
"""Choices by number, from 0, ``(n, len(encoding))``."""


class GeneEncoding:
    """Encoding with one gene per choice that has more than one option.

    Genes are the depth of each unit, the option of each block, and then the resolution and the
    choices of the network and of units. Every vector within :attr:`choices` is an architecture. It
    is in the largest contexts of the space, which has one of each in a search.
    Genes of blocks beyond their unit's depth have no effect. They are kept for a later generation
    in which the unit may be deeper. Vectors that differ only in such genes have equal codes.

    Attributes:
        choices: Number of options of each gene, ``(genes,)``.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._free = [unit for unit, depths in enumerate(space.depths) if len(depths) > 1]
        slots = 1 if space.one_option_per_unit else space.max_unit_depth
        self._slots = [
            (unit, slot)
            for unit, depths in enumerate(space.depths)
            for slot in range(min(max(depths), slots))
        ]
        self.choices: NDArray[np.int64] = np.array(
            [
                *(len(space.depths[unit]) for unit in self._free),
                *(len(space.block_options[unit]) for unit, _ in self._slots),
                *space.choice_sizes,
            ]
        )
        self._choices = slice(len(self.choices) - len(space.choice_sizes), None)

    def __len__(self) -> int:
        return len(self.choices)

    def random(self, n: int, rng: np.random.Generator) -> Genes:
        """Return ``n`` vectors whose genes are drawn uniformly."""
        return rng.integers(self.choices, size=(n, len(self)), dtype=np.int16)

    def initial(self, n: int, known: Codes, rng: np.random.Generator) -> Genes:
        """Return ``n`` vectors of a first generation: known architectures, then random ones."""
        genes = self.random(n, rng)
        first = self.of_codes(known)[:n]
        genes[: len(first)] = first
        return genes

    def to_codes(self, genes: NDArray[np.integer]) -> Codes:
        """Convert genes ``(n, genes)`` to codes ``(n, *space.code_shape)``."""
        space = self.space
        depths = np.empty((len(genes), space.unit_count), dtype=np.int64)
        depths[:] = [unit[0] for unit in space.depths]
        for gene, unit in enumerate(self._free):
            depths[:, unit] = np.array(space.depths[unit])[genes[:, gene]]
        shape = (len(genes), space.unit_count, space.max_unit_depth)
        blocks = np.full(shape, -1, dtype=np.int16)
        for gene, (unit, slot) in enumerate(self._slots, start=len(self._free)):
            place = slice(None) if space.one_option_per_unit else slice(slot, slot + 1)
            blocks[:, unit, place] = space.block_options[unit][genes[:, gene, None]]
        blocks[np.arange(space.max_unit_depth) >= depths[..., None]] = -1
        return space.join(blocks, genes[:, self._choices])

    def of_codes(self, codes: Codes) -> Genes:
        """Return the genes of codes; genes without effect are 0."""
        space = self.space
        blocks = space.blocks_of(codes)
        depths = (blocks >= 0).sum(axis=2)
        genes = np.zeros((len(codes), len(self)), dtype=np.int16)
        for gene, unit in enumerate(self._free):
            known = np.array(space.depths[unit])
            genes[:, gene] = np.argmax(known == depths[:, unit, None], axis=1)
        for gene, (unit, slot) in enumerate(self._slots, start=len(self._free)):
            own = space.block_options[unit]
            genes[:, gene] = np.argmax(blocks[:, unit, slot, None] == own, axis=1)
        genes[:, self._choices] = space.choices_of(codes)
        return genes

    def everything(self, at_once: int = 20_000) -> Iterator[Codes]:
        """Yield all architectures of a small space, each once, in parts."""
        total = math.prod(self.choices.tolist())
        for first in range(0, total, at_once):
            numbers = np.arange(first, min(first + at_once, total))
            genes = np.stack(np.unravel_index(numbers, self.choices.tolist()), axis=1)
            codes = self.to_codes(genes)
            # Vectors that differ in genes without effect are one architecture: keep the first.
            yield codes[(self.of_codes(codes) == genes).all(axis=1)]


def keys(codes: Codes) -> NDArray[np.void]:
    """Return a value per architecture, ``(n,)``, equal where the codes are equal."""
    flat = np.ascontiguousarray(codes).reshape(len(codes), math.prod(codes.shape[1:]))
    width = flat.itemsize * flat.shape[1]
    return flat.view(np.dtype((np.void, width))).reshape(len(codes))


def distinct(codes: Codes) -> NDArray[np.intp]:
    """Return the rows of architectures without their repetitions, in order."""
    return np.sort(np.unique(keys(codes), return_index=True)[1])


class RowIndex:
    """Index from an architecture to its row.

    Args:
        codes: Architectures, ``(m, *code_shape)``. The last of equal ones counts.
    """

    def __init__(self, codes: Codes) -> None:
        named = keys(codes)
        order = np.argsort(named, kind="stable")
        self._keys, self._rows = named[order], order

    def __call__(self, codes: Codes) -> NDArray[np.intp]:
        """Return the rows of architectures, ``(n,)``; -1 where one is missing."""
        if not len(self._keys):
            return np.full(len(codes), -1)
        asked = keys(codes)
        place = np.searchsorted(self._keys, asked, side="right") - 1
        return np.where(self._keys[place] == asked, self._rows[place], -1)
