"""The search space: units of blocks, every block one option of a feature grid.

This is the macro-architecture that ESM assumes (ESM, Fig. 7a): a fixed number of units, each a
number of blocks, each block a choice of features such as kernel size and expansion ratio.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError, InvalidSpaceError
from esm_models.graph import DTYPES, FLOAT32, Network, WeightSource

Codes = NDArray[np.int16]
"""Architectures as integers, ``(n, units, max_depth)``: the index of every block's option, -1
where the unit ends before that block. Where architectures have a resolution, one more row begins
with its index in ``SearchSpace.resolutions``: ``(n, units + 1, max_depth)``."""

Value = int | Fraction | str

_BLOCK_SCOPE = re.compile(r"unit(\d+)\.block(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Feature:
    """One thing that a block may vary.

    Attributes:
        name: for people and column names, such as ``"kernel"``.
        symbol: for option labels, such as ``"k"``.
        values: the choices: ints or fractions, or words, which have no order.
    """

    name: str
    symbol: str
    values: tuple[Value, ...]

    @property
    def has_words(self) -> bool:
        """Whether its values have no order."""
        return any(isinstance(value, str) for value in self.values)

    def number(self, value: Value) -> float:
        """A value as a number; of words, their place among the choices."""
        return float(self.values.index(value) if isinstance(value, str) else value)


@dataclass(frozen=True)
class Option:
    """One combination of feature values, such as kernel 3 with expansion 1/2."""

    label: str
    values: Mapping[str, Value]

    def __getitem__(self, feature: str) -> Value:
        return self.values[feature]


class SearchSpace(ABC):
    """A family of networks that differ in the depth of their units and the options of their blocks.

    A subclass sets the class attributes and writes :meth:`network`; everything else follows.
    Where the options are no grid of features, it gives its own :attr:`options` as well, from the
    cheapest to the dearest.

    Args:
        resolution: input height and width, pixels; by default :attr:`default_resolution`, or free
            where the space has :attr:`resolutions`.
        width_mult: multiplier of every channel count.
        batch: batch size of the exported graphs.
        dtype: of their arithmetic, ``"float32"`` or ``"int8"`` (:mod:`esm_models.quantization`).

    Raises:
        InvalidSpaceError: a setting is out of range for this space.
    """

    name: ClassVar[str]
    depths: ClassVar[tuple[tuple[int, ...], ...]]
    """Per unit, the numbers of blocks that it may have."""
    features: ClassVar[tuple[Feature, ...]]
    one_option_per_unit: ClassVar[bool] = False
    """True where all blocks of a unit share one option."""
    wiring: ClassVar[tuple[tuple[int, int], ...]] = ()
    """Which block feeds which, of spaces whose blocks do not simply follow each other: blocks by
    number from 0, -1 for the input, their count for the output."""
    prunes: ClassVar[bool] = False
    """Whether graphs lack blocks that change nothing, which frameworks without a compiler run."""
    min_resolution: ClassVar[int] = 32
    default_resolution: ClassVar[int] = 224
    resolutions: tuple[int, ...] = ()
    """From which every architecture has one of its own; none where all have the space's."""

    def __init__(
        self,
        resolution: int | None = None,
        width_mult: float = 1.0,
        batch: int = 1,
        dtype: str = FLOAT32,
    ) -> None:
        if resolution is not None:
            self.resolutions = ()
        elif self.resolutions:
            resolution = max(self.resolutions)
        else:
            resolution = self.default_resolution
        if resolution < self.min_resolution:
            raise InvalidSpaceError(
                f"{resolution} is too small for {self.name}: give {self.min_resolution} or more",
                "resolution",
            )
        if not 0.05 <= width_mult <= 8:
            raise InvalidSpaceError(f"{width_mult:g} is outside 0.05 to 8", "width_mult")
        if not 1 <= batch <= 4096:
            raise InvalidSpaceError(f"{batch} is outside 1 to 4096", "batch")
        if dtype not in DTYPES:
            raise InvalidSpaceError(f"'{dtype}': choose {' or '.join(DTYPES)}", "dtype")
        self.resolution = resolution
        """Of the input; the largest where architectures have their own."""
        self.width_mult = float(width_mult)
        self.batch = batch
        self.dtype = dtype

    @abstractmethod
    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        """Adds the operators of one subnet to ``net`` and returns the name of its output."""

    # What the class attributes say, in the forms that others need

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Every combination of feature values, in the order of the codes."""
        names = [feature.name for feature in self.features]
        return tuple(
            Option(
                "".join(f"{f.symbol}{v}" for f, v in zip(self.features, values, strict=True)),
                dict(zip(names, values, strict=True)),
            )
            for values in itertools.product(*(feature.values for feature in self.features))
        )

    @cached_property
    def _index(self) -> dict[str, int]:
        return {option.label: index for index, option in enumerate(self.options)}

    @cached_property
    def feature_values(self) -> NDArray[np.float32]:
        """Of every option, the number of each feature's value, ``(options + 1, features)``; the
        last row is for code -1: zeros."""
        rows = [[f.number(option[f.name]) for f in self.features] for option in self.options]
        return np.array([*rows, [0.0] * len(self.features)], dtype=np.float32)

    @property
    def unit_count(self) -> int:
        return len(self.depths)

    @property
    def max_unit_depth(self) -> int:
        return max(max(depths) for depths in self.depths)

    @property
    def min_depth(self) -> int:
        return sum(min(depths) for depths in self.depths)

    @property
    def max_depth(self) -> int:
        return sum(max(depths) for depths in self.depths)

    @cached_property
    def possible_depths(self) -> frozenset[int]:
        """The numbers of blocks that an architecture may have."""
        sums = {0}
        for depths in self.depths:
            sums = {total + depth for total in sums for depth in depths}
        return frozenset(sums)

    def extremes(self) -> tuple[Architecture, Architecture]:
        """The shallowest architecture of first options and the deepest of last options."""
        first, last = self.options[0].label, self.options[-1].label
        return (
            Architecture(
                self.name,
                tuple((first,) * min(depths) for depths in self.depths),
                min(self.resolutions, default=None),
            ),
            Architecture(
                self.name,
                tuple((last,) * max(depths) for depths in self.depths),
                max(self.resolutions, default=None),
            ),
        )

    def uniform(self) -> list[Architecture]:
        """Return of every option the deepest architecture, of the largest resolution."""
        side = max(self.resolutions, default=None)
        return [
            Architecture(self.name, tuple((o.label,) * max(d) for d in self.depths), side)
            for o in self.options
        ]

    def unit_variants(self, unit_depth: int) -> int:
        """Number of different units of that many blocks."""
        options = len(self.options)
        return options if self.one_option_per_unit else math.prod([options] * unit_depth)

    def count(self) -> int:
        """Number of architectures in the space."""
        units = math.prod(sum(self.unit_variants(d) for d in depths) for depths in self.depths)
        return units * max(len(self.resolutions), 1)

    def settings(self) -> dict[str, str | int | float]:
        """What tells this space from others; the dtype where it is not float32."""
        settings: dict[str, str | int | float] = {
            "name": self.name,
            "resolution": "free" if self.resolutions else self.resolution,
            "width_mult": self.width_mult,
            "batch": self.batch,
        }
        return settings if self.dtype == FLOAT32 else {**settings, "dtype": self.dtype}

    # Architectures and codes

    def read(self, given: Architecture | Mapping[str, Any] | str) -> Architecture:
        """Return an architecture given as a value, as its JSON or in its short form.

        Whether it is in the space is for :meth:`validate`.

        Raises:
            InvalidArchitectureError: it has another shape.
        """
        if isinstance(given, Architecture):
            return given
        if isinstance(given, str):
            return Architecture.from_text(self.name, given)
        return Architecture.from_json(given)

    def validate(self, architecture: Architecture) -> None:
        """Raises InvalidArchitectureError, saying what is wrong, unless it is in the space."""
        if architecture.space != self.name:
            raise InvalidArchitectureError(
                f"the architecture is of space '{architecture.space}', not '{self.name}'"
            )
        if len(architecture.units) != self.unit_count:
            raise InvalidArchitectureError(
                f"{self.name} has {self.unit_count} units; the architecture has "
                f"{len(architecture.units)}"
            )
        for number, (unit, depths) in enumerate(
            zip(architecture.units, self.depths, strict=True), start=1
        ):
            if len(unit) not in depths:
                raise InvalidArchitectureError(
                    f"unit {number} has {len(unit)} blocks; {self.name} allows "
                    f"{', '.join(map(str, depths))}"
                )
            for label in unit:
                if label not in self._index:
                    raise InvalidArchitectureError(
                        f"unit {number} has a block '{label}'; {self.name} allows "
                        f"{', '.join(self._index)}"
                    )
            if self.one_option_per_unit and len(set(unit)) > 1:
                raise InvalidArchitectureError(
                    f"unit {number} mixes {', '.join(sorted(set(unit)))}; {self.name} takes one "
                    "option for all blocks of a unit"
                )
        if self.resolutions and architecture.resolution not in self.resolutions:
            raise InvalidArchitectureError(
                f"the architecture's resolution is {architecture.resolution}; {self.name} allows "
                f"{', '.join(map(str, self.resolutions))}"
            )
        if not self.resolutions and architecture.resolution is not None:
            raise InvalidArchitectureError(
                f"the architecture has a resolution of its own, {architecture.resolution}: leave "
                f"it out, all have {self.resolution}"
            )

    @property
    def code_shape(self) -> tuple[int, int]:
        """Of one architecture's codes."""
        return self.unit_count + bool(self.resolutions), self.max_unit_depth

    def blocks_of(self, codes: Codes) -> Codes:
        """The options alone, ``(n, units, max_depth)``."""
        return codes[:, : self.unit_count]

    def resolution_of(self, codes: Codes) -> NDArray[np.int64]:
        """Input side of each architecture, pixels, ``(n,)``."""
        if not self.resolutions:
            return np.full(len(codes), self.resolution, dtype=np.int64)
        return np.array(self.resolutions)[codes[:, self.unit_count, 0]]

    def encode(self, architectures: Sequence[Architecture]) -> Codes:
        """Codes of valid architectures, ``(n, *code_shape)``."""
        codes = np.full((len(architectures), *self.code_shape), -1, dtype=np.int16)
        for row, architecture in enumerate(architectures):
            self.validate(architecture)
            for number, unit in enumerate(architecture.units):
                codes[row, number, : len(unit)] = [self._index[label] for label in unit]
            if architecture.resolution is not None:
                codes[row, -1, 0] = self.resolutions.index(architecture.resolution)
        return codes

    def decode(self, codes: Codes) -> list[Architecture]:
        """Inverse of :meth:`encode`."""
        labels = [option.label for option in self.options]
        blocks, resolutions = self.blocks_of(codes).tolist(), self.resolution_of(codes).tolist()
        return [
            Architecture(
                self.name,
                tuple(tuple(labels[code] for code in unit if code >= 0) for unit in row),
                resolution if self.resolutions else None,
            )
            for row, resolution in zip(blocks, resolutions, strict=True)
        ]

    # Graphs

    def build(self, architecture: Architecture, weights: WeightSource | None = None) -> bytes:
        """The subnet as a serialized ONNX model; the same arguments give the same bytes.

        Args:
            architecture: a point of this space.
            weights: draws an array for each ``(initializer name, shape)``. None declares the
                initializers as external data with no file: whoever runs the graph brings them.

        Raises:
            InvalidArchitectureError: the architecture is not in this space.
        """
        net, output = self.trace(architecture, weights)
        return net.serialize(f"{self.name}-{architecture.key}", output)

    def trace(
        self, architecture: Architecture, weights: WeightSource | None = None
    ) -> tuple[Network, str]:
        """The subnet as a graph under construction, and the name of its output; as :meth:`build`
        otherwise. Its operators are those of float32, which int8 graphs are made of."""
        self.validate(architecture)
        side = architecture.resolution or self.resolution
        net = Network((self.batch, 3, side, side), weights, self.dtype)
        units = [[self.options[self._index[label]] for label in u] for u in architecture.units]
        return net, self.network(net, units)

    # What decides which operators a graph holds where (esm_models.part_table)

    def place(self, scope: str) -> int:
        """The column of :meth:`places` that decides what a scope of a graph holds: 0 for what is
        always there, then the blocks, unit by unit."""
        found = _BLOCK_SCOPE.match(scope)
        if found is None:
            return 0
        unit, block = map(int, found.groups())
        return 1 + (unit - 1) * self.max_unit_depth + block - 1

    def places(self, blocks: Codes, pruned: bool = True) -> NDArray[np.int64]:
        """What the places of a graph hold, as numbers, ``(n, places)``: where these are equal, in
        one architecture or in two of the same resolution, the operators and their shapes are.

        By default a block is what its option says, whatever the others are, and all else is the
        same in every architecture. A space where that is not so overrides both methods.

        Args:
            blocks: of codes, without resolutions.
            pruned: as graphs are; else as if they had what they lack where the space
                :attr:`prunes`.
        """
        flat = blocks.reshape(len(blocks), math.prod(blocks.shape[1:])).astype(np.int64)
        first = 2 + len(self.options) * np.arange(flat.shape[1])
        return np.pad(np.where(flat < 0, 1, first + flat), ((0, 0), (1, 0)))

    def showcase(self) -> Codes:
        """Blocks of architectures that together show everything that places may hold."""
        return self.blocks_of(self.encode(self.uniform()))

    def channels(self, base: float) -> int:
        """``base`` channels times the width multiplier, rounded by :func:`round_channels`."""
        return round_channels(base * self.width_mult)


def round_channels(channels: float) -> int:
    """The usual rounding of mobile networks, to a multiple of 8.

    The nearest multiple, at least 8, and one step up where rounding down would lose more than a
    tenth.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
