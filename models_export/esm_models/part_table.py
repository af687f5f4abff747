"""Table of the parts of a space, which finds the parts of a million architectures at once.

A few architectures are traced, and the table records the parts at each place of their graphs
(:meth:`esm_models.space.SearchSpace.places`). All other architectures are looked up. Every traced
architecture is compared with the table, and some of those that are looked up are traced for that.
If they differ, the table learns on what the parts of each place depend
(:mod:`esm_models.dependencies`). A space whose blocks choose their own widths needs this. If they
still differ, every architecture is traced once.

The sizes of an architecture are its own resolution and its contexts. Architectures of different
sizes share no rows.
"""

from __future__ import annotations

import enum
import itertools
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm_models.dependencies import Dependencies, size_columns, without_sizes
from esm_models.errors import InvalidSpaceError
from esm_models.parts import Part, parts_of
from esm_models.space import Codes, SearchSpace

Content = Mapping[tuple[str, int], int]
"""Number of times that a place holds a part, by region and number of the part."""

_CHECKS = 4
_MOST_SIZES = 2**16


class Rule(enum.IntEnum):
    """Key that determines the parts of a place."""

    PLACE = 0
    """The place's own value (:meth:`esm_models.space.SearchSpace.places`)."""
    CHAIN = 1
    """The facts on which the place was found to depend, such as the block before."""
    WHOLE = 2
    """The whole architecture, which is a single row."""


class _Trace(NamedTuple):
    """Traced architecture with the parts of each place."""

    block: Codes
    sizes: Codes
    held: list[Counter[tuple[str, int]]]


class PartTable:
    """Parts of a space found so far; a lookup of new architectures extends the table.

    Attributes:
        parts: Distinct parts, in the order in which they were found.
        contents: Parts of each row.
        kinds: Pairs of a region and a kind of operator there. They come from the architectures
            traced first, which have every option in every block.
        rule: Key that determines the parts, as far as is known.
        version: Number of changes of that key. Each makes row numbers invalid.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.parts: list[Part] = []
        self.contents: list[Content] = []
        self.rule = Rule.PLACE
        self.version = 0
        self._dependencies = Dependencies(space)
        self._columns = size_columns(space)
        self._sizes: dict[bytes, int] = {}
        """Number of each combination of sizes."""
        self._seen_all = False
        self._compared = False
        self._looked_up = 0
        self._numbers: dict[str, int] = {}
        self._held: set[tuple[str, int]] = set()
        self._rows: dict[int, int] = {}
        self._examples: list[Codes] = []
        """Traced architecture of each row."""
        self._traces: dict[tuple[bytes, bytes], _Trace] = {}
        self._whole: dict[bytes, int] = {}
        (self._largest,) = self._sizes_of(space.encode(space.uniform()[:1]))
        for blocks in (*_uniform_blocks(space), *_random_blocks(space, _CHECKS)):
            self._trace(blocks, self._largest)
        # Units can share parts, which have the region of the first.
        self.kinds = frozenset(
            (region, o.kind) for region, n in self._held for o in self.parts[n].operators
        )

    @property
    def regions(self) -> frozenset[str]:
        """Regions of the parts found so far."""
        return frozenset(region for region, _ in self._held)

    @property
    def additive(self) -> bool:
        """Whether the value of a place determines its parts."""
        return self.rule is Rule.PLACE

    def rows(self, codes: Codes, pruned: bool = True) -> NDArray[np.int64]:
        """Return the rows whose contents add up to an architecture's parts, ``(n, places)``.

        Args:
            codes: Architectures, shape ``(n, *space.code_shape)``.
            pruned: As in :meth:`esm_models.space.SearchSpace.places`.
        """
        if not pruned:
            self.complete()
        return self._rows_of(without_sizes(self.space, codes), self._sizes_of(codes), pruned)

    def _sizes_of(self, codes: Codes) -> Codes:
        """Return the columns of the sizes, ``(n, columns)``."""
        return np.ascontiguousarray(codes[:, -1, self._columns], dtype=np.int16)

    def _rows_of(self, blocks: Codes, sizes: Codes, pruned: bool = True) -> NDArray[np.int64]:
        while True:
            keys = self._keys(blocks, sizes, pruned)
            rows = np.empty(keys.shape, dtype=np.int64)
            candidates = set()
            for place, column in enumerate(keys.T):
                different, first, inverse = np.unique(
                    column, return_index=True, return_inverse=True
                )
                known = np.array([self._rows.get(key, -1) for key in different.tolist()])
                rows[:, place] = known[inverse]
                candidates.update(first[known < 0].tolist())
            if candidates:
                self._trace_all(blocks, sizes, sorted(candidates))
            elif not pruned or not self._check(blocks, sizes):
                return rows

    def complete(self) -> None:
        """Find all parts of the space.

        Raises:
            InvalidSpaceError: this would need a trace of every architecture.
        """
        if self._seen_all and self.rule is not Rule.WHOLE:
            return
        version = -1
        while self.rule is not Rule.WHOLE and self.version != version:
            version = self.version
            blocks = self._dependencies.showcase()
            if self.additive:
                blocks = without_sizes(self.space, self.space.join(self.space.showcase()))
            if not len(blocks):
                break
            for sizes in self._every_size():
                self._rows_of(blocks, np.tile(sizes, (len(blocks), 1)))
        if self.rule is Rule.WHOLE or not len(blocks):
            raise InvalidSpaceError(
                f"the parts of {self.space.name} cannot be listed: a block depends on more than "
                "the block before it and the first block of a unit, or is outside "
                "net.scope('unit1.block1'); define the methods place, places and showcase"
            )
        self._seen_all = True

    def _every_size(self) -> Codes:
        """Return every combination of sizes that campaigns draw, ``(n, columns)``."""
        space = self.space
        codes = space.encode(space.uniform()[:1])
        contexts = np.array([*itertools.product(*space.contexts.values())], dtype=np.int64)
        codes = np.repeat(codes, len(contexts), axis=0)
        codes = space.join(space.blocks_of(codes), space.choices_of(codes), contexts)
        found = []
        for number in range(max(len(space.resolutions), 1)):
            if space.resolutions:
                codes[:, -1, 0] = number
            found.append(self._sizes_of(codes))
        return np.concatenate(found)

    def _check(self, blocks: Codes, sizes: Codes) -> bool:
        """Compare a few architectures with the table, each time that twice as many were looked up.

        Returns:
            Whether they differ.
        """
        before, self._looked_up = self._looked_up, self._looked_up + len(blocks)
        if self.rule is Rule.WHOLE or not len(blocks) or self._looked_up < 2 * before:
            return False
        version, rng = self.version, np.random.default_rng(self._looked_up)
        for row in rng.integers(len(blocks), size=_CHECKS).tolist():
            self._trace(blocks[row], sizes[row])
        return self.version != version

    def _keys(self, blocks: Codes, sizes: Codes, pruned: bool = True) -> NDArray[np.int64]:
        """Return the keys that determine the rows, ``(n, places)``."""
        places: NDArray[np.int64] | None = None
        if self.rule is Rule.PLACE:
            places = self.space.places(self.space.blocks_of(blocks), pruned)
        elif self.rule is Rule.CHAIN:
            places = self._dependencies.keys(blocks)
            if places is None:
                self._change(Rule.WHOLE)
        if places is None:
            texts = [block.tobytes() for block in np.ascontiguousarray(blocks, dtype=np.int16)]
            ids = [self._whole.setdefault(text, len(self._whole)) for text in texts]
            places = np.array(ids, dtype=np.int64)[:, None]
        return places * _MOST_SIZES + self._numbers_of(sizes)[:, None]

    def _numbers_of(self, sizes: Codes) -> NDArray[np.int64]:
        """Return a number for each combination of sizes, ``(n,)``."""
        found = np.zeros(len(sizes), dtype=np.int64)
        if not self._columns:
            return found
        for column in sizes.T.astype(np.int64):  # a structured sort of the rows is slow
            _, first, found = np.unique(
                found * 2**15 + column, return_index=True, return_inverse=True
            )
        names = [sizes[row].tobytes() for row in first]
        numbers = [self._sizes.setdefault(name, len(self._sizes)) for name in names]
        if len(self._sizes) > _MOST_SIZES:
            raise InvalidSpaceError(
                f"{self.space.name} was asked for in more than {_MOST_SIZES:,} contexts: give fewer"
            )
        return np.array(numbers, dtype=np.int64)[found]

    def _trace_all(self, blocks: Codes, sizes: Codes, candidates: list[int]) -> None:
        """Trace architectures until the table covers all candidates, uniform ones first."""
        whole = _uniform_blocks(self.space)
        if self.rule is Rule.CHAIN:
            whole = self._dependencies.showcase()
        if self.rule is not Rule.WHOLE and len(whole) < len(candidates):
            for each in np.unique(sizes[candidates], axis=0):
                self._trace_new(whole, np.tile(each, (len(whole), 1)))
        # Shuffled, because neighbours in an enumeration have few new parts.
        order = np.random.default_rng(0).permutation(candidates)
        self._trace_new(blocks[order], sizes[order])

    def _trace_new(self, blocks: Codes, sizes: Codes) -> None:
        """Trace architectures in their order, each if a place of it has no row."""
        version, keys = self.version, self._keys(blocks, sizes).tolist()
        for row, places in enumerate(keys):
            if not self._rows.keys() >= set(places):
                self._trace(blocks[row], sizes[row])
            if self.version != version:
                return

    def _trace(self, block: Codes, sizes: Codes) -> None:
        """Trace one architecture, record its parts, and compare them with the table."""
        trace = self._traced(block, sizes)
        if not self._record([trace]):
            self._relearn()

    def _traced(self, block: Codes, sizes: Codes) -> _Trace:
        space = self.space
        name = np.ascontiguousarray(block, dtype=np.int16).tobytes(), sizes.tobytes()
        if name in self._traces:
            return self._traces[name]
        codes = block[None].copy()
        if self._columns:
            codes[0, -1, self._columns] = sizes
        options = space.blocks_of(codes).flat
        labels = ["", *(space.options[code].label if code >= 0 else "" for code in options)]
        held: list[Counter[tuple[str, int]]] = []
        for part in parts_of(space, space.decode(codes)[0]):
            place = space.place(part.name)
            number = self._numbers.setdefault(part.key, len(self.parts))
            if number == len(self.parts):
                label = labels[place] if place < len(labels) else ""
                self.parts.append(replace(part, option=label))
            held += [Counter() for _ in range(len(held), place + 1)]
            held[place][part.region, number] += 1
            self._held.add((part.region, number))
        trace = _Trace(block, sizes, held)
        if self.rule is not Rule.WHOLE:
            self._traces[name] = trace
        return trace

    def _record(self, traces: Sequence[_Trace]) -> bool:
        """Add traced architectures to the table, until one disagrees with it.

        Returns:
            Whether all agree.
        """
        sizes = np.array([trace.sizes for trace in traces], dtype=np.int16)
        keys = self._keys(np.array([trace.block for trace in traces]), sizes).tolist()
        return all(map(self._agrees, traces, keys))

    def _agrees(self, trace: _Trace, keys: Sequence[int]) -> bool:
        held = trace.held
        if self.rule is Rule.WHOLE:
            held = [sum(held, Counter())]
        if len(held) > len(keys):
            raise InvalidSpaceError(
                f"{self.space.name} has operators in the scope of a block that no architecture "
                "has: number units and blocks from 1, as in net.scope('unit1.block1')"
            )
        held = held + [Counter()] * (len(keys) - len(held))
        for place, (key, content) in enumerate(zip(keys, held, strict=True)):
            row = self._rows.setdefault(key, len(self.contents))
            if row == len(self.contents):
                self.contents.append(content)
                self._examples.append(trace.block)
            elif self.contents[row] != content:
                if self.rule is Rule.PLACE:
                    self._change(_next_rule(self.space))
                else:
                    self._learn(place, self._examples[row], trace.block)
                return False
        return True

    def _change(self, rule: Rule) -> None:
        """Forget the rows, whose key has changed."""
        self.rule = rule
        self.version += 1
        self._rows.clear()
        self.contents.clear()
        self._examples.clear()
        if rule is Rule.WHOLE:
            self._traces.clear()

    def _learn(self, place: int, a: Codes, b: Codes) -> None:
        known = self._dependencies.learn(place, a, b)
        self._change(Rule.CHAIN if known else Rule.WHOLE)

    def _relearn(self) -> None:
        """Find a key that tells all traces apart, and record them by it."""
        if self.rule is Rule.CHAIN and not self._compared:
            self._compared = True
            blocks = self._dependencies.single_changes()
            base, *changed = (self._traced(block, self._largest) for block in blocks)
            for other in changed:
                for place in range(max(len(base.held), len(other.held))):
                    ends = (held[place : place + 1] for held in (base.held, other.held))
                    if operator.ne(*ends) and self.rule is Rule.CHAIN:
                        self._learn(place, base.block, other.block)
        while self.rule is Rule.CHAIN and not self._record([*self._traces.values()]):
            pass


@cache
def _tables() -> dict[tuple[object, ...], PartTable]:
    return {}


def part_table(space: SearchSpace) -> PartTable:
    """Return the table of a space; spaces of the same class and settings share one."""
    settings = {**space.settings(), "contexts": tuple(space.contexts.items())}
    key = (type(space), *settings.items())
    if key not in _tables():
        _tables()[key] = PartTable(space)
    return _tables()[key]


def _uniform_blocks(space: SearchSpace) -> Codes:
    """Return the deepest architectures of every option.

    They have all parts of blocks if a block depends only on its own option.
    """
    return without_sizes(space, space.encode(space.uniform()))


def _next_rule(space: SearchSpace) -> Rule:
    """Return the rule to try after :meth:`esm_models.space.SearchSpace.places` has failed."""
    own = type(space)
    plain = own.place is SearchSpace.place and own.places is SearchSpace.places
    return Rule.CHAIN if plain and all(min(depths) > 0 for depths in space.depths) else Rule.WHOLE


def _random_blocks(space: SearchSpace, n: int) -> Codes:
    rng = np.random.default_rng(0)
    blocks = np.full((n, space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
    for row in blocks:
        for unit, (depths, options) in enumerate(
            zip(space.depths, space.block_options, strict=True)
        ):
            depth = int(rng.choice(np.array(depths)))
            size = 1 if space.one_option_per_unit else depth
            row[unit, :depth] = options[rng.integers(len(options), size=size)]
    sizes = space.choice_sizes
    chosen = rng.integers(sizes, size=(n, len(sizes))) if sizes else None
    return without_sizes(space, space.join(blocks, chosen))
