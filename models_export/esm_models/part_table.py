"""Table of the parts of a space, which finds the parts of a million architectures at once.

A few architectures are traced, and the table records the parts at each place of their graphs
(:meth:`esm_models.space.SearchSpace.places`). All other architectures are looked up. Every traced
architecture is compared with the table. If they differ, the table uses pairs of a block's option
and that of the block before it. A space whose blocks choose their own widths needs this. If they
still differ, every architecture is traced once.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from esm_models.errors import InvalidSpaceError
from esm_models.parts import Part, parts_of
from esm_models.space import Codes, SearchSpace

Content = Mapping[tuple[str, int], int]
"""Number of times that a place holds a part, by region and number of the part."""

_CHECKS, _CHAIN_CHECKS = 4, 2
_MOST_PIXELS = 2**16


class Rule(enum.IntEnum):
    """Key that determines the parts of a place."""

    PLACE = 0
    """The place's own value (:meth:`esm_models.space.SearchSpace.places`)."""
    CHAIN = 1
    """The options of a block and of the block before it; for the rest, the last block's option."""
    WHOLE = 2
    """The whole architecture, which is a single row."""


class PartTable:
    """Parts of a space found so far; a lookup of new architectures extends the table.

    Attributes:
        parts: Distinct parts, in the order in which they were found.
        contents: Parts of each row.
        kinds: Pairs of a region and a kind of operator there. They come from the architectures
            traced first, which have every option in every block.
        rule: Key that determines the parts, as far as is known. Row numbers become invalid when
            it changes.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.parts: list[Part] = []
        self.contents: list[Content] = []
        self.rule = Rule.PLACE
        self._seen_all = False
        self._numbers: dict[str, int] = {}
        self._rows: dict[int, int] = {}
        self._whole: dict[bytes, int] = {}
        for blocks in (*_uniform_blocks(space), *_random_blocks(space, _CHECKS)):
            self._trace(blocks, space.resolution)
        self.kinds = frozenset((part.region, o.kind) for part in self.parts for o in part.operators)
        if self.rule is Rule.CHAIN:
            for blocks in _changed_blocks(space, _CHAIN_CHECKS):
                self._trace(blocks, space.resolution)

    @property
    def additive(self) -> bool:
        """Whether the value of a place determines its parts."""
        return self.rule is Rule.PLACE

    def rows(
        self, blocks: Codes, resolution: NDArray[np.int64], pruned: bool = True
    ) -> NDArray[np.int64]:
        """Return the rows whose contents add up to an architecture's parts, ``(n, places)``.

        Args:
            blocks: Option codes, shape ``(n, units, max_depth)``.
            resolution: Resolutions, pixels, shape ``(n,)``.
            pruned: As in :meth:`esm_models.space.SearchSpace.places`.
        """
        if not pruned:
            self.complete()
        while True:
            keys = self._keys(blocks, resolution, pruned)
            rows = np.empty(keys.shape, dtype=np.int64)
            candidates = set()
            for place, column in enumerate(keys.T):
                different, first, inverse = np.unique(
                    column, return_index=True, return_inverse=True
                )
                known = np.array([self._rows.get(key, -1) for key in different.tolist()])
                rows[:, place] = known[inverse]
                candidates.update(first[known < 0].tolist())
            if not candidates:
                return rows
            self._trace_all(blocks, resolution, sorted(candidates))

    def complete(self) -> None:
        """Find all parts of the space.

        Raises:
            InvalidSpaceError: this would need a trace of every architecture.
        """
        if self._seen_all and self.rule is not Rule.WHOLE:
            return
        for rule in (Rule.PLACE, Rule.CHAIN):
            if self.rule is rule:
                blocks = self.space.showcase() if self.additive else _chains(self.space)
                for side in self.space.resolutions or (self.space.resolution,):
                    self.rows(blocks, np.full(len(blocks), side))
        if self.rule is Rule.WHOLE:
            raise InvalidSpaceError(
                f"the parts of {self.space.name} cannot be listed: a block depends on more than "
                "the block before it, or is outside net.scope('unit1.block1'); define the methods "
                "place, places and showcase"
            )
        self._seen_all = True

    def _keys(
        self, blocks: Codes, resolution: NDArray[np.int64], pruned: bool = True
    ) -> NDArray[np.int64]:
        """Return the keys that determine the rows, ``(n, places)``."""
        if self.rule is Rule.PLACE:
            places = self.space.places(blocks, pruned)
        elif self.rule is Rule.CHAIN:
            places = _chained_places(self.space, blocks)
        else:
            texts = [block.tobytes() for block in np.ascontiguousarray(blocks, dtype=np.int16)]
            ids = [self._whole.setdefault(text, len(self._whole)) for text in texts]
            places = np.array(ids, dtype=np.int64)[:, None]
        return places * _MOST_PIXELS + resolution[:, None]

    def _trace_all(
        self, blocks: Codes, resolution: NDArray[np.int64], candidates: list[int]
    ) -> None:
        """Trace architectures until the table covers all candidates, uniform ones first."""
        uniform = _uniform_blocks(self.space)
        if self.additive and len(uniform) < len(candidates):
            for side in np.unique(resolution[candidates]).tolist():
                for block in uniform:
                    self._trace_new(block, side)
        # Shuffled, because neighbours in an enumeration have few new parts.
        for row in np.random.default_rng(0).permutation(candidates).tolist():
            self._trace_new(blocks[row], int(resolution[row]))

    def _trace_new(self, block: Codes, side: int) -> None:
        keys = self._keys(block[None], np.array([side]))
        if not self._rows.keys() >= set(keys[0].tolist()):
            self._trace(block, side)

    def _trace(self, block: Codes, side: int) -> None:
        """Trace one architecture, record its parts, and compare them with the table."""
        space = self.space
        codes = np.full((1, *space.code_shape), -1, dtype=np.int16)
        codes[0, : space.unit_count] = block
        if space.resolutions:
            codes[0, -1, 0] = space.resolutions.index(side)
        (keys,) = self._keys(block[None], np.array([side])).tolist()
        labels = ["", *(space.options[code].label if code >= 0 else "" for code in block.flat)]
        held: list[Counter[tuple[str, int]]] = [Counter() for _ in keys]
        for part in parts_of(space, space.decode(codes)[0]):
            place = space.place(part.name)
            number = self._numbers.setdefault(part.key, len(self.parts))
            if number == len(self.parts):
                label = labels[place] if place < len(labels) else ""
                self.parts.append(replace(part, option=label))
            held[0 if self.rule is Rule.WHOLE else place][part.region, number] += 1
        for key, content in zip(keys, held, strict=True):
            row = self._rows.setdefault(key, len(self.contents))
            if row == len(self.contents):
                self.contents.append(content)
            elif self.contents[row] != content:
                self.rule = _next_rule(self.rule, space)
                self._rows.clear()
                self.contents.clear()
                return


@cache
def _tables() -> dict[tuple[object, ...], PartTable]:
    return {}


def part_table(space: SearchSpace) -> PartTable:
    """Return the table of a space; spaces of the same class and settings share one."""
    key = (type(space), *space.settings().items())
    if key not in _tables():
        _tables()[key] = PartTable(space)
    return _tables()[key]


def _uniform_blocks(space: SearchSpace) -> Codes:
    """Return the deepest architecture of every option.

    They have all parts of blocks if a block depends only on its own option.
    """
    return SearchSpace.showcase(space)


def _next_rule(rule: Rule, space: SearchSpace) -> Rule:
    """Return the rule to try after one has failed."""
    own = type(space)
    plain = own.place is SearchSpace.place and own.places is SearchSpace.places
    chained = plain and all(min(depths) > 0 for depths in space.depths)
    return Rule.CHAIN if rule is Rule.PLACE and chained else Rule.WHOLE


def _chained_places(space: SearchSpace, blocks: Codes) -> NDArray[np.int64]:
    """Return :meth:`esm_models.space.SearchSpace.places` that also depend on the block before."""
    flat = blocks.reshape(len(blocks), -1).astype(np.int64)
    options = len(space.options)
    before = np.full(len(flat), -1)
    places = np.zeros((len(flat), 1 + flat.shape[1]), dtype=np.int64)
    for place, own in enumerate(flat.T, start=1):
        first = 2 + options + (place - 1) * options * (options + 1)
        places[:, place] = np.where(own < 0, 1, first + own + options * (before + 1))
        before = np.where(own < 0, before, own)
    places[:, 0] = 2 + before
    return places


def _chains(space: SearchSpace) -> Codes:
    """Return the blocks of the deepest architectures that alternate between two options.

    Together they have every option after every other option.
    """
    options = np.arange(len(space.options))
    pairs = np.stack(np.meshgrid(options, options), axis=-1).reshape(-1, 2)
    blocks = np.full((len(pairs), space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
    count = 0
    for unit, depths in enumerate(space.depths):
        for block in range(max(depths)):
            blocks[:, unit, block] = pairs[:, (unit if space.one_option_per_unit else count) % 2]
            count += 1
    return blocks


def _changed_blocks(space: SearchSpace, n: int) -> list[Codes]:
    """Return random architectures, each followed by those that differ from it in one block."""
    result = []
    for blocks in _random_blocks(space, n):
        result.append(blocks)
        for unit, block in np.argwhere(blocks >= 0):
            changed = blocks.copy()
            alike = blocks[unit] >= 0 if space.one_option_per_unit else block
            changed[unit, alike] = (blocks[unit, block] + 1) % len(space.options)
            result.append(changed)
    return result


def _random_blocks(space: SearchSpace, n: int) -> Codes:
    rng = np.random.default_rng(0)
    blocks = np.full((n, space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
    for row in blocks:
        for unit, depths in enumerate(space.depths):
            depth = int(rng.choice(np.array(depths)))
            size = 1 if space.one_option_per_unit else depth
            row[unit, :depth] = rng.integers(len(space.options), size=size)
    return blocks
