"""Dependencies of the operators at each place of a graph, learned from traced architectures.

The candidates are facts of an architecture: the features of the place's own block, of the block
before it and of the first block of each unit, the depth of each unit, and the choices of the
network and of units. For the parts outside of blocks, the block before is the last one. Two traced
architectures that agree in the facts known to matter, and differ in their operators, name further
facts.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from esm_models.space import Codes, SearchSpace

_MOST_LISTED = 50_000
"""Most architectures that together show all combinations of the facts that matter."""
_MOST_KEYS = 2**38
"""Most combinations of facts at a place; ids and numbers of sizes fit 63 bits."""

_OWN, _BEFORE, _CHOICE, _FIRST, _DEPTH = range(5)
"""Groups of facts, the nearest first."""

Ints = NDArray[np.int64]


class Dependencies:
    """Facts that matter at each place of a graph.

    Attributes:
        relevant: Whether a fact matters, ``(places, facts)``.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._features = _feature_codes(space)
        count, units = self._features.shape[1], space.unit_count
        self._choices = _choice_codes(space)
        """Place among the choices, and codes of the features of its options."""
        chosen = [codes.shape[1] for _, codes in self._choices]
        groups = (count, count, units * count, units, sum(chosen))
        self._group = np.repeat([_OWN, _BEFORE, _FIRST, _DEPTH, _CHOICE], groups)
        """Group of each fact; those of a lower number are nearer."""
        self.relevant = np.zeros(
            (1 + units * space.max_unit_depth, len(self._group)), dtype=np.bool_
        )
        self._shown: Codes | None = None

    def facts(self, blocks: Codes) -> Ints:
        """Return the facts of architectures at each place, ``(n, places, facts)``.

        Args:
            blocks: Codes without sizes (:func:`without_sizes`).
        """
        chosen = self.space.choices_of(blocks)
        choices = [codes[chosen[:, place]] for place, codes in self._choices]
        blocks = self.space.blocks_of(blocks)
        n, units, slots = blocks.shape
        # The last row of features is for code -1.
        own = self._features[blocks.reshape(n, units * slots)]
        before = np.full_like(own, -1)
        last = np.full_like(own[:, 0], -1)
        for place in range(own.shape[1]):
            before[:, place] = last
            present = (own[:, place] >= 0).any(axis=1, keepdims=True)
            last = np.where(present, own[:, place], last)
        own = np.concatenate([np.zeros_like(own[:, :1]), own], axis=1)
        before = np.concatenate([last[:, None], before], axis=1)
        first = self._features[blocks[:, :, 0]].reshape(n, 1, units * self._features.shape[1])
        depth = (blocks >= 0).sum(axis=2).reshape(n, 1, units)
        shared = np.concatenate([first, depth, *(each[:, None] for each in choices)], axis=2)
        shared = np.broadcast_to(shared, (*own.shape[:2], shared.shape[2]))
        return np.concatenate([own, before, shared], axis=2)

    def keys(self, blocks: Codes) -> Ints | None:
        """Return an id per place for the facts that matter, ``(n, places)``.

        Equal ids mean equal facts. None if there are too many combinations.
        """
        most = np.maximum(self._features.max(axis=0) + 2, 2)
        units = self.space.unit_count
        depths = np.full(units, self.space.max_unit_depth + 2)
        chosen = [codes.max(axis=0) + 2 for _, codes in self._choices]
        sizes = np.concatenate([most, most, np.tile(most, units), depths, *chosen])
        # Digits of a number: whether there is a block, and each fact that matters.
        digits = np.where(self.relevant, sizes, 1)
        if max(math.prod(row) for row in digits.tolist()) > _MOST_KEYS:
            return None
        weights = np.where(self.relevant, 2 * np.cumprod(digits, axis=1) // digits, 0)
        facts = self.facts(blocks) + 1
        present = facts[:, :, 0] > 0
        codes = np.einsum("npf,pf->np", facts, weights) + present
        places = len(self.relevant)
        return np.asarray(codes * places + np.arange(places))

    def learn(self, place: int, a: Codes, b: Codes) -> bool:
        """Mark facts that tell apart two architectures with different operators at a place.

        Facts that matter elsewhere come first, then the nearest ones.

        Returns:
            Whether there are any.
        """
        facts = self.facts(np.stack([a, b]))[:, place]
        new = facts[0] != facts[1]
        if (new & self.relevant[place]).any() or (facts[:, 0] < 0).sum() == 1:
            return True  # what matters already tells them apart
        if not new.any():
            return False
        known = new & self.relevant.any(axis=0)
        marked = known if known.any() else new & (self._group == self._group[new].min())
        self.relevant[place] |= marked
        self._shown = None
        return True

    def single_changes(self) -> list[Codes]:
        """Return a deep architecture, followed by those that differ from it in one choice."""
        space, rng = self.space, np.random.default_rng(0)
        blocks = np.full((1, space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
        for unit, (depths, options) in enumerate(
            zip(space.depths, space.block_options, strict=True)
        ):
            size = 1 if space.one_option_per_unit else max(depths)
            drawn = rng.integers(len(options), size=size)
            blocks[0, unit, : max(depths)] = options[drawn]
        (base,) = without_sizes(space, space.join(blocks))
        result = [base]
        for unit, block in np.argwhere(blocks[0] >= 0).tolist():
            if space.one_option_per_unit and block:
                continue
            own = self._features[base[unit, block]]
            for feature in range(len(own)):
                values = np.unique(self._features[space.block_options[unit], feature])
                other = own.copy()
                other[feature] = values[(np.searchsorted(values, own[feature]) + 1) % len(values)]
                changed = base.copy()
                places = slice(block, block + 1)
                if space.one_option_per_unit:
                    places = slice(max(space.depths[unit]))
                changed[unit, places] = self._option(other, unit)
                result.append(changed)
        for unit, depths in enumerate(space.depths):
            for depth in sorted(depths)[:-1][-1:]:
                changed = base.copy()
                changed[unit, depth:] = -1
                result.append(changed)
        for place, codes in self._choices:
            for feature in range(codes.shape[1]):
                other = codes[0].copy()
                other[feature] = min(1, codes[:, feature].max())
                changed = base.copy()
                changed[-1, place] = _row(codes, other)
                result.append(changed)
        return result

    def showcase(self) -> Codes:
        """Return option codes that together show all combinations of the facts that matter.

        Blocks alternate between two options, which differ in what matters of a block before. None
        are returned if there are too many.
        """
        if self._shown is None:
            self._shown = self._showcase()
        return self._shown

    def _showcase(self) -> Codes:
        space, features = self.space, self._features[:-1]
        count = features.shape[1]
        used = np.asarray(self.relevant.any(axis=0))
        before = np.flatnonzero(used[count : 2 * count])
        firsts = np.flatnonzero(used[self._group == _FIRST])
        depths = np.flatnonzero(used[self._group == _DEPTH])
        further = np.flatnonzero(used[self._group == _CHOICE])
        columns = [column for _, codes in self._choices for column in codes.T]
        values = [np.unique(column) for column in features.T]
        choices = [values[fact % count] for fact in firsts]
        choices += [np.array(space.depths[unit]) for unit in depths]
        choices += [np.unique(columns[fact]) for fact in further]
        pairs = len(features) * math.prod(len(values[fact]) for fact in before)
        if pairs * math.prod(map(len, choices)) > _MOST_LISTED:
            return np.empty((0, *space.code_shape), dtype=np.int16)
        result = []
        for own, other in itertools.product(
            features, itertools.product(*(values[fact] for fact in before))
        ):
            turned = own.copy()
            turned[before] = other
            pair = (own, turned)
            for chosen in itertools.product(*choices):
                most = len(firsts) + len(depths)
                blocks = self._alternating(pair, firsts, depths, chosen[:most])
                result.append(self._with_choices(blocks, further, chosen[most:]))
        return np.array(result, dtype=np.int16)

    def _with_choices(self, blocks: Codes, facts: Ints, values: tuple[np.int64, ...]) -> Codes:
        """Return codes with these features of the choices, and the first of all others."""
        codes = without_sizes(self.space, self.space.join(blocks[None]))[0]
        known = dict(zip(facts.tolist(), values, strict=True))
        fact = 0
        for place, options in self._choices:
            features = options[0].copy()
            for feature in range(len(features)):
                features[feature] = known.get(fact, features[feature])
                fact += 1
            codes[-1, place] = _row(options, features)
        return np.asarray(codes)

    def _alternating(
        self, pair: tuple[Ints, Ints], firsts: Ints, depths: Ints, chosen: tuple[np.int64, ...]
    ) -> Codes:
        """Return one architecture with these features of first blocks, and depths of units."""
        space = self.space
        count = len(pair[0])
        deep = dict(zip(depths.tolist(), chosen[len(firsts) :], strict=True))
        blocks = np.full((space.unit_count, space.max_unit_depth), -1, dtype=np.int16)
        number = 0
        for unit, possible in enumerate(space.depths):
            for block in range(deep.get(unit, max(possible))):
                own = pair[(unit if space.one_option_per_unit else number) % 2].copy()
                if block == 0 or space.one_option_per_unit:
                    for fact, value in zip(firsts.tolist(), chosen, strict=False):
                        if fact // count == unit:
                            own[fact % count] = value
                blocks[unit, block] = self._option(own, unit)
                number += 1
        return blocks

    def _option(self, features: Ints, unit: int) -> int:
        """Return the option of a unit with these features, or with the nearest."""
        options = self.space.block_options[unit]
        alike = (self._features[options] == features).sum(axis=1)
        return int(options[np.argmax(alike)])


def size_columns(space: SearchSpace) -> list[int]:
    """Return the columns of an architecture's sizes in the last row of the codes.

    Sizes are the resolution, if architectures have their own, and the contexts.
    """
    contexts = space.code_columns[len(space.choice_sizes) :]
    return [*[0] * bool(space.resolutions), *contexts]


def without_sizes(space: SearchSpace, codes: Codes) -> Codes:
    """Return a copy of codes with zeros in the columns of the sizes."""
    found = np.array(codes, dtype=np.int16)
    if columns := size_columns(space):
        found[:, -1, columns] = 0
    return found


def _row(options: Ints, features: Ints) -> int:
    """Return the option with these features."""
    return int(np.argmax((options == features).all(axis=1)))


def _choice_codes(space: SearchSpace) -> list[tuple[int, Ints]]:
    """Return, for each choice of the network and of units, its place and its options' features.

    The features of an option are numbers from 0, ``(options, features)``.
    """
    found = []
    for level in space.levels:
        rows = [[f.values.index(each[f.name]) for f in level.features] for each in level.options]
        codes = np.array(rows, dtype=np.int64).reshape(len(level.options), len(level.features))
        found.append((level.place, codes))
    return found


def _feature_codes(space: SearchSpace) -> Ints:
    """Return the choices of every option as numbers from 0, ``(options + 1, features)``.

    The last row, for code -1, is -1. Options that are no grid are one feature.
    """
    columns = [
        [feature.values.index(option[feature.name]) for option in space.options]
        for feature in space.features
        if all(feature.name in option.values for option in space.options)
    ]
    grid = len(columns) == len(space.features)  # else units have features of their own
    grid = grid and len(set(zip(*columns, strict=True))) == len(space.options)
    grid = grid and len(space.options) == math.prod(len(set(column)) for column in columns)
    codes = np.array(columns if grid else [range(len(space.options))], dtype=np.int64).T
    return np.concatenate([codes, np.full((1, codes.shape[1]), -1)])
