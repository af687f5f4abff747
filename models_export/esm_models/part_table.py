"""Which parts every architecture of a space has, a million at a time.

A few architectures are traced for what each place of a graph may hold
(:meth:`esm_models.space.SearchSpace.places`); all others are looked up. Every traced architecture
is checked against what the table says; where they differ, as in a user's space whose blocks depend
on each other, every architecture is traced on its own, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from esm_models.errors import InvalidSpaceError
from esm_models.parts import Part, parts_of
from esm_models.space import Codes, SearchSpace

Content = Mapping[tuple[str, int], int]
"""How often a place holds a part: by the region and the part's number."""

_CHECKS = 4


class PartTable:
    """What has been seen of a space; it grows with what is asked.

    Attributes:
        parts: different ones, in the order in which they were met.
        contents: of each row.
        additive: whether places alone decide the parts; if not, an architecture is a row.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.parts: list[Part] = []
        self.contents: list[Content] = []
        self.additive = True
        self._numbers: dict[str, int] = {}
        self._rows: dict[tuple[int, ...], int] = {}
        self._whole: dict[bytes, int] = {}
        for blocks in (*_uniform_blocks(space), *_random_blocks(space, _CHECKS)):
            self._trace(blocks, space.resolution)

    def rows(self, blocks: Codes, resolution: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of each architecture, the rows whose contents add up to its parts: ``(n, places)``.

        Args:
            blocks: ``(n, units, max_depth)``.
            resolution: pixels, ``(n,)``.
        """
        while True:
            additive = self.additive
            keys = self._keys(blocks, resolution)
            found = np.empty(keys.shape[:2], dtype=np.int64)
            missing = np.zeros(len(blocks), dtype=bool)
            for place in range(keys.shape[1]):
                column, inverse = _unique(keys[:, place])
                known = [self._rows.get((place, *key), -1) for key in column.tolist()]
                found[:, place] = np.array(known, dtype=np.int64)[inverse]
                # One architecture for each that is missing.
                first = np.zeros(len(column), dtype=np.int64)
                first[inverse[::-1]] = np.arange(len(blocks))[::-1]
                missing[first[np.array(known) < 0]] = True
            if not missing.any():
                return found
            self._trace_all(blocks, resolution, keys, np.flatnonzero(missing))
            if self.additive != additive:
                continue

    def complete(self) -> None:
        """Sees everything that the space may hold.

        Raises:
            InvalidSpaceError: that would be every architecture.
        """
        blocks = self.space.showcase()
        for side in self.space.resolutions or (self.space.resolution,):
            self.rows(blocks, np.full(len(blocks), side))
        if not self.additive:
            raise InvalidSpaceError(
                f"the parts of {self.space.name} cannot be listed, for its blocks depend on each "
                "other or stand outside net.scope('unit1.block1'): give it the methods place, "
                "places and showcase"
            )

    def _keys(self, blocks: Codes, resolution: NDArray[np.int64]) -> NDArray[np.int64]:
        """What decides a row besides its place, ``(n, places, 2)``."""
        if self.additive:
            places = self.space.places(blocks)
        else:
            texts = [block.tobytes() for block in np.ascontiguousarray(blocks, dtype=np.int16)]
            places = np.array(
                [[self._whole.setdefault(text, len(self._whole))] for text in texts]
            ).reshape(-1, 1)
        sides = np.broadcast_to(resolution[:, None], places.shape)
        return np.stack([places, sides], axis=2)

    def _trace_all(
        self,
        blocks: Codes,
        resolution: NDArray[np.int64],
        keys: NDArray[np.int64],
        candidates: NDArray[np.int64],
    ) -> None:
        """Traces candidates until all that they have is known, uniform architectures first."""
        uniform = _uniform_blocks(self.space)
        if self.additive and len(uniform) < len(candidates):
            sides = np.unique(resolution[candidates])
            blocks = np.concatenate([blocks[candidates], np.tile(uniform, (len(sides), 1, 1))])
            resolution = np.concatenate([resolution[candidates], np.repeat(sides, len(uniform))])
            keys = self._keys(blocks, resolution)
            candidates = np.arange(len(blocks))[::-1]
        additive = self.additive
        for row in candidates.tolist():
            places = keys[row].tolist()
            if any((place, *key) not in self._rows for place, key in enumerate(places)):
                self._trace(blocks[row], int(resolution[row]))
            if self.additive != additive:
                return

    def _trace(self, block: Codes, side: int) -> None:
        """Traces one architecture, takes down what it has where, and checks what was known."""
        space = self.space
        codes = np.full((1, *space.code_shape), -1, dtype=np.int16)
        codes[0, : space.unit_count] = block
        if space.resolutions:
            codes[0, -1, 0] = space.resolutions.index(side)
        keys = self._keys(block[None], np.array([side]))[0].tolist()
        held: list[Counter[tuple[str, int]]] = [Counter() for _ in keys]
        for part in parts_of(space, space.decode(codes)[0]):
            number = self._numbers.setdefault(part.key, len(self.parts))
            if number == len(self.parts):
                self.parts.append(part)
            held[space.place(part.name) if self.additive else 0][part.region, number] += 1
        for place, (key, content) in enumerate(zip(keys, held, strict=True)):
            row = self._rows.setdefault((place, *key), len(self.contents))
            if row == len(self.contents):
                self.contents.append(content)
            elif self.contents[row] != content:
                self.additive = False
                self._rows.clear()
                self.contents.clear()
                return


@cache
def _tables() -> dict[tuple[object, ...], PartTable]:
    return {}


def part_table(space: SearchSpace) -> PartTable:
    """The table of a space; spaces of one class and settings share theirs."""
    key = (type(space), *space.settings().items())
    if key not in _tables():
        _tables()[key] = PartTable(space)
    return _tables()[key]


def _unique(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Different pairs of ``(n, 2)``, and which of them each is."""
    sides, side = np.unique(keys[:, 1], return_inverse=True)
    numbers, number = np.unique(keys[:, 0], return_inverse=True)
    both, inverse = np.unique(number * len(sides) + side, return_inverse=True)
    pairs = np.stack([numbers[both // len(sides)], sides[both % len(sides)]], axis=1)
    return pairs, inverse


def _uniform_blocks(space: SearchSpace) -> Codes:
    """Of every option the deepest architecture: all that blocks may be, where they are what their
    options say."""
    return SearchSpace.showcase(space)


def _random_blocks(space: SearchSpace, n: int) -> Codes:
    rng = np.random.default_rng(0)
    blocks = np.full((n, space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
    for row in blocks:
        for unit, depths in enumerate(space.depths):
            depth = int(rng.choice(np.array(depths)))
            size = 1 if space.one_option_per_unit else depth
            row[unit, :depth] = rng.integers(len(space.options), size=size)
    return blocks
