"""Search spaces: units of blocks, with choices of the network, of every unit and of every block.

This is the macro-architecture of ESM (ESM, Fig. 7a). It has a fixed number of units, each with a
variable number of blocks. Each block has features such as kernel size and expansion ratio. Further
choices may hold for a whole unit, such as its width, or for the whole network.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import repeat
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from esm_models.architecture import Architecture, is_plain
from esm_models.errors import InvalidArchitectureError, InvalidSpaceError, ModelsError
from esm_models.graph import DTYPES, FLOAT32, NEWEST_OPSET, OPSET, Network, WeightSource
from esm_protos.nearest import unknown
from esm_protos.plugins import own_failure, own_line, own_name
from esm_protos.text import counted

Codes = NDArray[np.int16]
"""Architectures as integers, ``(n, units, max_depth)``: the index of each block's option, or -1 for
a block that the unit lacks. If there are further choices or contexts, a further row begins with
the indices of the resolution, of the network's option and of every unit's option, as far as the
space has them. The values of the contexts follow, in two columns each:
``(n, units + 1, max(max_depth, choices + 2 * contexts))``."""

Value = int | Fraction | str

_T = TypeVar("_T")

_SIZES = ("batch", "resolution")
"""Settings of every space that can be contexts, too."""
_MOST = 2**30 - 1
"""Largest value of a context."""
_DIGIT = 2**15
"""Base of the two columns of a context, as codes have 16 bits."""

_BLOCK_SCOPE = re.compile(r"unit(\d+)\.block(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Feature:
    """Feature of a block that a search space varies.

    Attributes:
        name: Name in reports and columns, such as ``"kernel"``.
        symbol: Prefix in option labels, such as ``"k"``.
        values: Choices: numbers, or words, which have no order.

    Raises:
        InvalidSpaceError: there are no values, or two are equal.
    """

    name: str
    symbol: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.values, Sequence) or isinstance(self.values, str) or not self.values:
            raise InvalidSpaceError(
                f"Feature '{self.name}' has values={self.values!r}: give a tuple of one or more"
            )
        if len(set(self.values)) < len(self.values):
            raise InvalidSpaceError(
                f"Feature '{self.name}' has values={self.values!r}: give each value once"
            )

    @property
    def has_words(self) -> bool:
        """Whether the values are words, which have no order."""
        return any(isinstance(value, str) for value in self.values)

    def number(self, value: Value) -> float:
        """Return a value as a number; for a word, its index among the choices."""
        return float(self.values.index(value) if isinstance(value, str) else value)


class UnknownFeatureError(KeyError):
    """Unknown name of a feature or of a choice; the message lists those there are."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Option:
    """Combination of feature values, such as kernel 3 with expansion 1/2."""

    label: str
    values: Mapping[str, Value]

    def __getitem__(self, feature: str) -> Value:
        try:
            return self.values[feature]
        except KeyError:
            raise UnknownFeatureError(unknown("feature", feature, self.values)) from None


NO_CHOICE = Option("", {})


@dataclass(frozen=True)
class Unit:
    """Choices of one unit.

    Attributes:
        depths: Allowed numbers of blocks.
        features: Features of each block.
        choices: Features of the whole unit, such as its width.
    """

    depths: tuple[int, ...]
    features: tuple[Feature, ...]
    choices: tuple[Feature, ...] = ()

    def __post_init__(self) -> None:
        for name in ("features", "choices"):
            if not _all_are(Feature, given := getattr(self, name)):
                raise InvalidSpaceError(
                    f"Unit has {name}={given!r}: give a tuple of Feature, such as "
                    '(Feature("kernel", "k", (3, 5)),)'
                )


@dataclass(frozen=True, eq=False)
class Level:
    """Options of the whole network or of one unit, a column in the last row of the codes.

    Attributes:
        unit: Number of the unit, from 0; None for the network.
        place: Column in the last row of the codes.
        features: Features that make the options.
        options: Options in the order of the codes.
    """

    unit: int | None
    place: int
    features: tuple[Feature, ...]
    options: tuple[Option, ...]

    @cached_property
    def codes(self) -> Mapping[str, int]:
        """Code of each option by its label."""
        return {option.label: code for code, option in enumerate(self.options)}


class Chosen(tuple[_T, ...]):
    """Blocks of a unit, or units of a network, with the values of its own choice by name.

    ``unit["width"]`` is the value of the unit's choice, ``unit[0]`` its first block.
    """

    option: Option

    @classmethod
    def of(cls, parts: Iterable[_T], option: Option) -> Self:
        chosen = cls(parts)
        chosen.option = option
        return chosen

    def __getitem__(self, key: Any) -> Any:
        return self.option[key] if isinstance(key, str) else super().__getitem__(key)


class SearchSpace(ABC):
    """Family of networks that differ in the depth of their units and the options of their blocks.

    A subclass sets the class attributes and defines :meth:`network`. If its options are not a grid
    of features, it also defines :attr:`options`, in order from the cheapest to the most expensive.

    Args:
        resolution: Input height and width, pixels. The default is :attr:`default_resolution`, or
            any of :attr:`resolutions` if the space has them.
        width_mult: Multiplier of every channel count.
        batch: Batch size of the graphs.
        dtype: Type of their arithmetic, ``"float32"`` or ``"int8"``
            (:mod:`esm_models.quantization`).

    Raises:
        InvalidSpaceError: a setting is out of range for this space.
    """

    name: ClassVar[str]
    depths: ClassVar[tuple[tuple[int, ...], ...]]
    """Allowed numbers of blocks, one tuple per unit."""
    features: ClassVar[tuple[Feature, ...]]
    """Features of each block."""
    units: ClassVar[tuple[Unit, ...]] = ()
    """Units that have features or choices of their own; ``depths`` and ``features`` follow."""
    choices: ClassVar[tuple[Feature, ...]] = ()
    """Features of the whole network, such as the width of its embedding."""
    one_option_per_unit: ClassVar[bool] = False
    """Whether all blocks of a unit share one option."""
    wiring: ClassVar[tuple[tuple[int, int], ...]] = ()
    """Edges (source, target) between block numbers; empty if the blocks follow each other. Source
    -1 is the input, and target ``n``, for ``n`` blocks, is the output."""
    prunes: ClassVar[bool] = False
    """Whether exported graphs omit blocks that do not affect the output. A training framework would
    still run them."""
    min_resolution: ClassVar[int] = 32
    default_resolution: ClassVar[int] = 224
    resolutions: tuple[int, ...] = ()
    """Resolutions that an architecture can have; empty if all have the resolution of the space."""
    contexts: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Quantities that a network is measured in and that are no part of it, such as the length of a
    sequence, by name: the whole numbers that campaigns draw. Others can be predicted and measured
    (:meth:`at`)."""
    _fixed: Mapping[str, int] = MappingProxyType({})
    """Contexts in which :meth:`read` places every architecture."""
    opset: ClassVar[int] = NEWEST_OPSET
    """Newest ONNX opset that graphs may use; 17 for older runtimes."""

    def __init__(
        self,
        resolution: int | None = None,
        width_mult: float = 1.0,
        batch: int = 1,
        dtype: str = FLOAT32,
    ) -> None:
        self._check_class()
        for name, number, kind, words in (
            ("resolution", resolution, int | np.integer | None, "a whole number"),
            ("width_mult", width_mult, int | float | np.number, "a number"),
            ("batch", batch, int | np.integer, "a whole number"),
        ):
            if not isinstance(number, kind):
                raise TypeError(f"{name} {number!r}: give {words}")
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
            raise InvalidSpaceError(unknown("dtype", dtype, DTYPES))
        self.resolution = resolution
        """Input height and width, pixels; the largest if architectures have their own."""
        self.width_mult = float(width_mult)
        self.batch = batch
        self.dtype = dtype

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        own = cls.__dict__.get("units", ())
        if isinstance(own, tuple) and own and all(isinstance(unit, Unit) for unit in own):
            cls.depths = tuple(unit.depths for unit in own)
            cls.features = _joined([feature for unit in own for feature in unit.features])

    def _check_class(self) -> None:
        """Check the class attributes.

        Raises:
            InvalidSpaceError: a class attribute is invalid; the message says which.
        """
        for name, kind, example in (
            ("features", Feature, 'Feature("kernel", "k", (3, 5))'),
            ("units", Unit, 'Unit((1, 2), (Feature("kernel", "k", (3, 5)),))'),
            ("choices", Feature, 'Feature("width", "w", (64, 96))'),
        ):
            if not _all_are(kind, given := getattr(self, name)):
                raise self._invalid(
                    name,
                    f"{name}={given!r}: give a tuple of {kind.__name__}, such as ({example},)",
                )
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) < len(names):
            raise self._invalid(
                "features",
                f"features of the names {', '.join(names) or 'none'}: give one feature or more, "
                "each with a name of its own",
            )
        if not isinstance(self.opset, int) or not OPSET <= self.opset <= NEWEST_OPSET:
            raise self._invalid("opset", f"opset={self.opset!r}: give {OPSET} to {NEWEST_OPSET}")
        self._check_contexts()
        units = self.depths if isinstance(self.depths, Sequence) else ()
        if not units or not all(
            isinstance(depths, Sequence)
            and depths
            and all(isinstance(depth, int | np.integer) and depth >= 0 for depth in depths)
            and len(set(depths)) == len(depths)
            for depths in units
        ):
            raise self._invalid(
                "depths",
                f"depths={self.depths!r}: give each unit a tuple of its different numbers of "
                "blocks, such as ((1, 2), (1, 2))",
            )

    def _invalid(self, attribute: str, text: str) -> InvalidSpaceError:
        """Return the error of a class attribute, with its line in a user's file."""
        where = own_line(type(self), attribute)
        return InvalidSpaceError(f"{own_name(self)} has {text}{where}")

    def _check_contexts(self) -> None:
        contexts = self.contexts
        if not isinstance(contexts, Mapping) or not all(
            isinstance(values, tuple) and values and all(_is_whole(each) for each in values)
            for values in contexts.values()
        ):
            raise self._invalid(
                "contexts",
                f"contexts={contexts!r}: give each name a tuple of whole numbers of 1 or more, "
                'such as {"past": (128, 512)}',
            )
        taken = {"px", *(feature.name for feature in self.choices)}
        for name in contexts:
            if not name.isidentifier() or not name.isascii() or name in taken:
                raise self._invalid(
                    "contexts", f"a context {name!r}: give it a name of letters that no choice has"
                )

    def check_options(self) -> None:
        """Check that each option has a label of its own.

        Raises:
            InvalidSpaceError: there are no options, or two have one label.
        """
        grids = [self.options, self.network_options, *self.unit_options]
        for number, options in enumerate(grids):
            labels = [option.label for option in options]
            if not labels or len(set(labels)) < len(labels):
                raise InvalidSpaceError(
                    f"{own_name(self)} has the options {', '.join(labels) or 'none'}: give one or "
                    "more, each with a label of its own; the symbols of features set them apart"
                )
            if number and any(label and not is_plain(label) for label in labels):
                raise InvalidSpaceError(
                    f"{own_name(self)} has the options {', '.join(labels)}: give choices symbols "
                    'and words without spaces and without | " : * ;'
                )

    @abstractmethod
    def network(self, net: Network, units: Chosen[Chosen[Option]]) -> str:
        """Add the operators of one subnet to ``net``, and return the name of its output.

        The input is the image ``net.input``, unless the method adds others with ``net.add_input``.

        Args:
            net: Graph under construction.
            units: Options of every block by unit. ``units["width"]`` is the value of a choice of
                the network or of a context, ``units[0]["width"]`` that of a choice of its first
                unit (:class:`Chosen`).
        """

    # Values derived from the class attributes

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """Options of blocks, in the order of the codes: combinations of feature values."""
        if not self.units:
            return _grid(self.features)
        grids = [_grid(unit.features) for unit in self.units]
        return tuple({option.label: option for grid in grids for option in grid}.values())

    @cached_property
    def block_options(self) -> tuple[NDArray[np.int16], ...]:
        """Codes of the options that the blocks of each unit may have."""
        if not self.units:
            return (np.arange(len(self.options), dtype=np.int16),) * self.unit_count
        grids = [_grid(unit.features) for unit in self.units]
        codes = [[self._index[option.label] for option in grid] for grid in grids]
        return tuple(np.array(each, dtype=np.int16) for each in codes)

    @cached_property
    def _allowed(self) -> tuple[Mapping[str, int], ...]:
        """Codes of the options that the blocks of each unit may have, by label."""
        if not self.units:
            return (self._index,) * self.unit_count
        return tuple({self.options[c].label: c for c in codes} for codes in self.block_options)

    @property
    def unit_features(self) -> tuple[tuple[Feature, ...], ...]:
        """Features of the blocks of each unit."""
        if not self.units:
            return (self.features,) * self.unit_count
        return tuple(unit.features for unit in self.units)

    @cached_property
    def network_options(self) -> tuple[Option, ...]:
        """Options of the whole network; one without values if it has no choice."""
        return _grid(self.choices)

    @cached_property
    def unit_options(self) -> tuple[tuple[Option, ...], ...]:
        """Options of each whole unit; one without values if a unit has no choice."""
        if not self.units:
            return ((NO_CHOICE,),) * self.unit_count
        return tuple(_grid(unit.choices) for unit in self.units)

    @property
    def units_choose(self) -> bool:
        """Whether a whole unit has a choice."""
        return any(unit.choices for unit in self.units)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Choices of the network and of units in the last row of the codes, after the resolution.

        If one unit has a choice, all units have a level.
        """
        first = int(bool(self.resolutions))
        found = [Level(None, first, self.choices, self.network_options)] if self.choices else []
        if self.units_choose:
            first += len(found)
            found += [
                Level(number, first + number, unit.choices, options)
                for number, (unit, options) in enumerate(
                    zip(self.units, self.unit_options, strict=True)
                )
            ]
        return tuple(found)

    @cached_property
    def choice_sizes(self) -> tuple[int, ...]:
        """Numbers of options of the choices in the last row of the codes."""
        sizes = [len(self.resolutions)] if self.resolutions else []
        return (*sizes, *(len(level.options) for level in self.levels))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {option.label: index for index, option in enumerate(self.options)}

    @cached_property
    def feature_values(self) -> NDArray[np.float32]:
        """Feature values of every option as numbers, ``(options + 1, features)``.

        The last row, for code -1, is zeros.
        """
        rows = [
            [f.number(option[f.name]) if f.name in option.values else 0.0 for f in self.features]
            for option in self.options
        ]
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
        """Numbers of blocks that an architecture can have."""
        sums = {0}
        for depths in self.depths:
            sums = {total + depth for total in sums for depth in depths}
        return frozenset(sums)

    def extremes(self) -> tuple[Architecture, Architecture]:
        """Return the shallowest architecture of first options and the deepest of last options.

        The first is in the smallest resolution and contexts, the second in the largest.
        """
        return self._alike(0, min, min), self._alike(-1, max, max)

    def uniform(self) -> list[Architecture]:
        """Return the deepest architectures of every option, in the largest resolution and contexts.

        Where units or the network have options of their own, each of them is there once, too.
        """
        most = max(len(self.network_options), *map(len, self.unit_options))
        most = max(most, *map(len, self.block_options))
        return [self._alike(number, max, max) for number in range(most)]

    def _alike(
        self,
        number: int,
        depth: Callable[[tuple[int, ...]], int],
        size: Callable[[tuple[int, ...]], int],
    ) -> Architecture:
        """Return the architecture whose choices all have one number, as far as they reach."""
        units = []
        for codes, depths in zip(self.block_options, self.depths, strict=True):
            label = self.options[codes[number % len(codes)]].label
            units.append((label,) * depth(depths))
        network = self.network_options
        of_units = [options[number % len(options)].label for options in self.unit_options]
        return Architecture(
            self.name,
            tuple(units),
            size(self.resolutions) if self.resolutions else None,
            network[number % len(network)].label,
            tuple(of_units) if self.units_choose else (),
            tuple((name, size(values)) for name, values in self.contexts.items()),
        )

    def unit_variants(self, unit: int, depth: int) -> int:
        """Return the number of variants of a unit, counted from 0, with this many blocks."""
        if not depth:
            return 1
        options = len(self.block_options[unit])
        blocks = options if self.one_option_per_unit else options**depth
        return blocks * len(self.unit_options[unit])

    def count(self) -> int:
        """Return the number of networks in the space; their contexts do not count."""
        units = math.prod(
            sum(self.unit_variants(unit, depth) for depth in depths)
            for unit, depths in enumerate(self.depths)
        )
        return units * max(len(self.resolutions), 1) * len(self.network_options)

    @property
    def context_count(self) -> int:
        """Number of combinations of the values that campaigns draw from the contexts."""
        return math.prod(map(len, self.contexts.values()))

    def settings(self) -> dict[str, Any]:
        """Return the settings that identify this space.

        The dtype is there if it is not float32, contexts if they are not those of the class.
        """
        settings: dict[str, Any] = {
            "name": self.name,
            "resolution": "free" if self.resolutions else self.resolution,
            "width_mult": self.width_mult,
            "batch": self.batch,
        }
        if self.dtype != FLOAT32:
            settings["dtype"] = self.dtype
        if self.contexts != type(self).contexts:
            settings["contexts"] = {name: list(values) for name, values in self.contexts.items()}
        return settings

    # Contexts

    def with_contexts(self, grid: Mapping[str, int | Sequence[int]]) -> Self:
        """Return this space with other values of contexts, which campaigns draw.

        Args:
            grid: Values by the name of a context. ``batch`` and ``resolution`` are contexts if they
                are named here.

        Raises:
            InvalidSpaceError: the space has no such context, or a value is out of its range.
        """
        contexts = dict(self.contexts)
        for name, given in grid.items():
            contexts[name] = self._values(name, given)
        sizes: dict[str, Any] = {name: max(contexts[name]) for name in _SIZES if name in grid}
        if "resolution" in grid:
            sizes["resolutions"] = ()
        return self._copy(contexts=contexts, **sizes)

    def at(self, **contexts: int) -> Self:
        """Return this space in one context, such as ``space.at(past=1500)``.

        The value need not be one that campaigns draw. :meth:`read` places architectures there.

        Raises:
            InvalidSpaceError: the space has no such context, or a value is out of its range.
        """
        varied = {}
        for name, value in contexts.items():
            if name in self.contexts:
                varied[name] = value
            elif not self._is_setting(name, value):
                raise InvalidSpaceError(self._no_context(name))
        space = self.with_contexts({name: (value,) for name, value in varied.items()})
        return space._copy(_fixed={**self._fixed, **varied})

    def _is_setting(self, name: str, value: int) -> bool:
        """Return whether all architectures have this batch or resolution."""
        free = name == "resolution" and self.resolutions
        return name in _SIZES and not free and value == getattr(self, name)

    def _no_context(self, name: str) -> str:
        """Return why a name is no context here."""
        own = ", ".join(self.contexts) or "none"
        if name == "resolution" and self.resolutions:
            return (
                f"context '{name}': each architecture has a resolution of its own here, begin its "
                f"short form with '{max(self.resolutions)} px: '"
            )
        if name in self._known_contexts():
            text = f"context '{name}' has one value here: measure with several to vary it"
            return f"{text}; varied are {own}"
        return unknown("context", name, self.contexts, choices=f"the space has {own}")

    def _values(self, name: str, given: int | Sequence[int]) -> tuple[int, ...]:
        """Return the values of a context.

        Raises:
            InvalidSpaceError: the space has no such context, or a value is out of its range.
        """
        if name not in self.contexts and name not in (known := self._known_contexts()):
            raise InvalidSpaceError(unknown("context", name, known))
        several = isinstance(given, Sequence) and not isinstance(given, str)
        values: tuple[Any, ...] = tuple(given) if several else (given,)  # type: ignore[arg-type]
        least, most = self._range(name)
        for value in values:
            if not _is_whole(value) or not least <= value <= most:
                is_large = _is_whole(value) and value > most
                allowed = f"{least} to {most}" if most < _MOST or is_large else f"{least} or more"
                raise InvalidSpaceError(
                    f"{name}={value}: give whole numbers of {allowed}; the contexts of {self.name} "
                    f"are {', '.join(self._known_contexts())}",
                    "contexts",
                )
        if not values or len(set(values)) < len(values):
            shown = ",".join(map(str, values))
            text = f"{name}={shown}: give one value or more, each once"
            raise InvalidSpaceError(text, "contexts")
        return tuple(map(int, values))

    def _known_contexts(self) -> list[str]:
        """Return the names of contexts: the resolution only if the graphs depend on it."""
        shapes = []
        for side in (self.resolution, 2 * self.resolution):
            space = self._copy(resolution=side, resolutions=())
            net, _ = space._trace(space.extremes()[0])
            shapes.append([net.shape(node.output[0]) for node in net.nodes])
        sizes = _SIZES if shapes[0] != shapes[1] else ("batch",)
        return list(dict.fromkeys([*self.contexts, *sizes]))

    def _range(self, name: str) -> tuple[int, int]:
        """Return the smallest and the largest value of a context."""
        sizes = {"batch": (1, 4096), "resolution": (self.min_resolution, _MOST)}
        return sizes.get(name, (1, _MOST))

    def _copy(self, **attributes: Any) -> Self:
        """Return a copy with other attributes, without what was cached."""
        other = copy.copy(self)
        for cls in type(self).__mro__:
            for name, value in vars(cls).items():
                if isinstance(value, cached_property):
                    vars(other).pop(name, None)
        vars(other).update(attributes)
        return other

    # Architectures and codes

    def read(self, given: Architecture | Mapping[str, Any] | str) -> Architecture:
        """Return an architecture from its JSON, its short form or itself.

        It gets the contexts of :meth:`at`, and those that it lacks and that have one value. Its
        resolution becomes a context, or a context its resolution, as the space has it. What all
        architectures have is left out.
        :meth:`validate` checks whether it is in the space.

        Raises:
            InvalidArchitectureError: ``given`` has another form.
        """
        if isinstance(given, Architecture):
            found = given
        elif isinstance(given, str):
            found = Architecture.from_text(self.name, given)
        else:
            found = Architecture.from_json(given)
        side = found.resolution
        if not (self.contexts or found.contexts) and (side is None or self.resolutions):
            return found
        given = dict(found.contexts)
        if "resolution" in self.contexts and side is not None:
            # Two resolutions contradict each other, and are refused.
            is_same = given.setdefault("resolution", side) == side
            side = None if is_same or "resolution" in self._fixed else side
        elif self.resolutions and side is None:
            side = given.pop("resolution", None)
        elif side is not None and self._is_setting("resolution", side):
            side = None
        only = {name: values[0] for name, values in self.contexts.items() if len(values) == 1}
        known = {
            name: value
            for name, value in given.items()
            if name in self.contexts or not self._is_setting(name, value)
        }
        contexts = {**only, **known, **self._fixed}
        return replace(found, resolution=side, contexts=tuple(contexts.items()))

    def validate(self, architecture: Architecture) -> None:
        """Check that an architecture is in the space.

        Raises:
            InvalidArchitectureError: it is not; the message says why.
        """
        if not isinstance(architecture, Architecture):
            raise InvalidArchitectureError(
                f"{architecture!r} is not an architecture: read one with read(), or draw one"
            )
        if architecture.space != self.name:
            raise InvalidArchitectureError(
                f"the architecture is of space '{architecture.space}', not '{self.name}'"
            )
        if len(architecture.units) != self.unit_count:
            raise InvalidArchitectureError(
                f"{self.name} has {counted(self.unit_count, 'unit')}; the architecture has "
                f"{len(architecture.units)}"
            )
        for number, (unit, depths) in enumerate(
            zip(architecture.units, self.depths, strict=True), start=1
        ):
            if len(unit) not in depths:
                raise InvalidArchitectureError(
                    f"unit {number} has {counted(len(unit), 'block')}; {self.name} allows "
                    f"{', '.join(map(str, depths))}"
                )
            allowed = self._allowed[number - 1]
            for label in unit:
                if label not in allowed:
                    raise InvalidArchitectureError(
                        f"unit {number} has a block '{label}'; {self.name} allows "
                        f"{', '.join(allowed)}"
                    )
            if self.one_option_per_unit and len(set(unit)) > 1:
                raise InvalidArchitectureError(
                    f"unit {number} mixes {', '.join(sorted(set(unit)))}; {self.name} takes one "
                    "option for all blocks of a unit"
                )
        self._validate_choices(architecture)
        if architecture.contexts or self.contexts:
            self._validate_contexts(architecture)
        if self.resolutions and architecture.resolution not in self.resolutions:
            raise InvalidArchitectureError(
                f"the architecture's resolution is {architecture.resolution}; {self.name} allows "
                f"{', '.join(map(str, self.resolutions))}"
            )
        if not self.resolutions and architecture.resolution is not None:
            raise InvalidArchitectureError(
                f"the architecture has a resolution of its own, {architecture.resolution}: leave "
                f"it out; all architectures have {self.resolution}"
            )

    def _validate_choices(self, architecture: Architecture) -> None:
        """Check the choices of the network and of the units."""
        count = self.unit_count if self.units_choose else 0
        if len(architecture.unit_choices) != count:
            raise InvalidArchitectureError(
                f"the architecture has {counted(len(architecture.unit_choices), 'unit choice')}; "
                f"{self.name} has {count or 'none'}"
            )
        if not self.choices and architecture.choice:
            raise InvalidArchitectureError(
                f"the choice of the network is '{architecture.choice}'; {self.name} allows none"
            )
        for level, label in self._choices_of(architecture):
            code = level.codes.get(label)
            # A unit without blocks has one form: the first option.
            empty = level.unit is not None and not architecture.units[level.unit]
            if code is None or (empty and code):
                what = "the network" if level.unit is None else f"unit {level.unit + 1}"
                if empty:
                    form = f"{level.options[0].label}: -".removeprefix(": ")
                    raise InvalidArchitectureError(
                        f"the choice of {what} is '{label}', and it has no blocks: write it as "
                        f"'{form}'"
                    )
                allowed = [option.label for option in level.options]
                raise InvalidArchitectureError(
                    f"the choice of {what} is '{label}'; {self.name} allows "
                    f"{', '.join(allowed) or 'none'}"
                )

    def _validate_contexts(self, architecture: Architecture) -> None:
        given = dict(architecture.contexts)
        lacking = {n: max(values) for n, values in self.contexts.items() if n not in given}
        if lacking:
            front = "".join(f"{value} {name}: " for name, value in sorted(lacking.items()))
            values = "other values" if len(lacking) > 1 else "another value"
            raise InvalidArchitectureError(
                f"the architecture has no {' and no '.join(lacking)}: begin it with '{front}', or "
                f"with {values}",
                lacking=lacking,
            )
        for name, value in given.items():
            if name not in self.contexts:
                raise InvalidArchitectureError(
                    f"the architecture has a context {name}; {self.name} has "
                    f"{', '.join(self.contexts) or 'none'}: leave it out",
                    foreign={n: v for n, v in given.items() if n not in self.contexts},
                )
            least, most = self._range(name)
            if not least <= value <= most:
                raise InvalidArchitectureError(
                    f"the architecture's {name} is {value}; {self.name} allows {least} to {most}"
                )

    def _choices_of(self, architecture: Architecture) -> Iterator[tuple[Level, str]]:
        """Return the label of the architecture's choice at each level."""
        labels = (*[architecture.choice] * bool(self.choices), *architecture.unit_choices)
        return zip(self.levels, labels, strict=True)

    def outside(self, codes: Codes) -> NDArray[np.bool_]:
        """Return whether each row of codes is outside of the space, ``(n,)``.

        Args:
            codes: Codes, ``(n, *code_shape)``.
        """
        blocks = self.blocks_of(codes)
        present = blocks >= 0
        depth = present.sum(axis=2)
        prefix = np.arange(self.max_unit_depth) < depth[..., None]
        wrong = (blocks < -1) | (present != prefix)
        if self.one_option_per_unit:
            wrong |= present & (blocks != blocks[..., :1])
        outside = wrong.any(axis=(1, 2))
        for unit, depths in enumerate(self.depths):
            outside |= ~np.isin(depth[:, unit], depths)
            allowed = np.isin(blocks[:, unit], self.block_options[unit])
            outside |= (present[:, unit] & ~allowed).any(axis=1)
        outside |= (codes[:, : self.unit_count, self.max_unit_depth :] != -1).any(axis=(1, 2))
        if self.choice_sizes:
            chosen = self.choices_of(codes)
            outside |= ((chosen < 0) | (chosen >= np.array(self.choice_sizes))).any(axis=1)
            if self.units_choose:
                outside |= ((depth == 0) & (chosen[:, -self.unit_count :] > 0)).any(axis=1)
        if len(self.code_columns):
            outside |= (codes[:, -1, len(self.code_columns) :] != -1).any(axis=1)
        outside |= (codes[:, -1, self._context_columns] < 0).any(axis=1)
        for name, values in zip(self.contexts, self.contexts_of(codes).T, strict=True):
            least, most = self._range(name)
            outside |= (values < least) | (values > most)
        return np.asarray(outside)

    @property
    def code_shape(self) -> tuple[int, int]:
        """Shape of the codes of one architecture."""
        last = len(self.code_columns)
        return self.unit_count + bool(last), max(self.max_unit_depth, last)

    @property
    def code_columns(self) -> range:
        """Columns of choices and contexts in the last row of the codes; empty without them."""
        return range(len(self.choice_sizes) + 2 * len(self.contexts))

    @property
    def _context_columns(self) -> slice:
        """Columns of the contexts in the last row of the codes."""
        return slice(len(self.choice_sizes), len(self.code_columns))

    def blocks_of(self, codes: Codes) -> Codes:
        """Return the codes of the options, without choices, ``(n, units, max_depth)``."""
        return codes[:, : self.unit_count, : self.max_unit_depth]

    def choices_of(self, codes: Codes) -> Codes:
        """Return the codes of the choices beside blocks, ``(n, len(choice_sizes))``."""
        if not self.choice_sizes:
            return np.empty((len(codes), 0), dtype=np.int16)
        return codes[:, self.unit_count, : len(self.choice_sizes)]

    def contexts_of(self, codes: Codes) -> NDArray[np.int64]:
        """Return the values of the contexts, ``(n, len(contexts))``."""
        digits = codes[:, -1, self._context_columns].astype(np.int64)
        return digits[:, ::2] * _DIGIT + digits[:, 1::2]

    def in_contexts(self, codes: Codes) -> NDArray[np.bool_]:
        """Return whether architectures are in contexts that campaigns draw, ``(n,)``."""
        found = np.ones(len(codes), dtype=np.bool_)
        columns = self.contexts_of(codes).T
        for given, values in zip(columns, self.contexts.values(), strict=True):
            found &= np.isin(given, values)
        return found

    def join(
        self,
        blocks: Codes,
        choices: NDArray[np.integer] | None = None,
        contexts: NDArray[np.integer] | None = None,
    ) -> Codes:
        """Return the codes of blocks, of the other choices and of contexts, ``(n, *code_shape)``.

        Args:
            blocks: Codes of the options, ``(n, units, max_depth)``.
            choices: Codes of the choices beside blocks, ``(n, len(choice_sizes))``; None for the
                first of each. That of a unit without blocks becomes the first in any case.
            contexts: Values of the contexts, ``(n, len(contexts))``; None for the largest of each.
        """
        codes = np.full((len(blocks), *self.code_shape), -1, dtype=np.int16)
        self.blocks_of(codes)[:] = blocks
        chosen = self.choices_of(codes)
        chosen[:] = 0 if choices is None else choices
        if self.units_choose:
            chosen[:, -self.unit_count :][(blocks < 0).all(axis=2)] = 0
        if self.contexts:
            largest = np.array([max(values) for values in self.contexts.values()])
            self._set_contexts(codes, largest if contexts is None else contexts)
        return codes

    def _set_contexts(self, codes: Codes, values: NDArray[np.integer]) -> None:
        columns = codes[:, -1, self._context_columns]
        columns[:, ::2], columns[:, 1::2] = np.divmod(values, _DIGIT)

    def resolution_of(self, codes: Codes) -> NDArray[np.int64]:
        """Return the input height and width of each architecture, pixels, ``(n,)``."""
        if self.resolutions:
            return np.array(self.resolutions)[codes[:, self.unit_count, 0]]
        if "resolution" in self.contexts:
            return self.contexts_of(codes)[:, list(self.contexts).index("resolution")]
        return np.full(len(codes), self.resolution, dtype=np.int64)

    def encode(self, architectures: Sequence[Architecture]) -> Codes:
        """Return the codes of architectures, ``(n, *code_shape)``.

        Raises:
            InvalidArchitectureError: an architecture is not in the space.
        """
        if not hasattr(architectures, "__len__"):
            raise InvalidArchitectureError(
                f"{architectures!r} is not a list of architectures: give one, also for a single one"
            )
        codes = np.full((len(architectures), *self.code_shape), -1, dtype=np.int16)
        for row, architecture in enumerate(architectures):
            self.validate(architecture)
            for number, unit in enumerate(architecture.units):
                codes[row, number, : len(unit)] = [self._index[label] for label in unit]
            if architecture.resolution is not None:
                codes[row, -1, 0] = self.resolutions.index(architecture.resolution)
            for level, label in self._choices_of(architecture):
                codes[row, -1, level.place] = level.codes[label]
        if self.contexts:
            given = [dict(architecture.contexts) for architecture in architectures]
            values = [[each[name] for name in self.contexts] for each in given]
            shape = len(codes), len(self.contexts)
            self._set_contexts(codes, np.array(values, np.int64).reshape(shape))
        return codes

    def decode(self, codes: Codes) -> list[Architecture]:
        """Return the architectures of codes, the inverse of :meth:`encode`."""
        labels = [option.label for option in self.options]
        blocks, resolutions = self.blocks_of(codes).tolist(), self.resolution_of(codes).tolist()
        chosen = self.choices_of(codes).T
        columns = [[level.options[c].label for c in chosen[level.place]] for level in self.levels]
        network = columns.pop(0) if self.choices else repeat("", len(blocks))
        of_units = zip(*columns, strict=True) if columns else repeat((), len(blocks))
        contexts = self.contexts_of(codes).tolist()
        return [
            Architecture(
                self.name,
                tuple(tuple(labels[code] for code in unit if code >= 0) for unit in row),
                resolution if self.resolutions else None,
                choice,
                of_each,
                tuple(zip(self.contexts, values, strict=True)),
            )
            for row, resolution, choice, of_each, values in zip(
                blocks, resolutions, network, of_units, contexts, strict=True
            )
        ]

    # Graphs

    def build(
        self,
        architecture: Architecture,
        weights: WeightSource | None = None,
        free: bool = False,
    ) -> bytes:
        """Return a subnet as a serialized ONNX model; equal arguments give equal bytes.

        Args:
            architecture: Architecture of this space.
            weights: Function that returns the values of an initializer. With None the graph is
                weightless: its initializers are external data without a file.
            free: Whether dimensions with a name (:class:`esm_models.graph.Axis`) are free, as in
                exported files. Devices measure the fixed size.

        Raises:
            InvalidArchitectureError: the architecture is not in this space.
            InvalidSpaceError: the space is from a user's file and fails.
        """
        net, output = self.trace(architecture, weights)
        return net.serialize(f"{self.name}-{architecture.key}", output, free)

    def trace(
        self,
        architecture: Architecture,
        weights: WeightSource | None = None,
        opset: int | None = None,
    ) -> tuple[Network, str]:
        """Return a subnet as a graph under construction, and the name of its output.

        The operators are those of float32, also with dtype int8. Arguments and errors are those
        of :meth:`build`. ``opset`` replaces that of the space.
        """
        self.validate(architecture)
        sizes = {name: value for name, value in architecture.contexts if name in _SIZES}
        space = self._copy(**sizes) if sizes else self
        return space._trace(architecture, weights, opset)

    def _trace(
        self,
        architecture: Architecture,
        weights: WeightSource | None = None,
        opset: int | None = None,
    ) -> tuple[Network, str]:
        """Trace an architecture with the batch and the resolution of this space."""
        side = architecture.resolution or self.resolution
        net = Network((self.batch, 3, side, side), weights, self.dtype, opset or self.opset)
        units = self._chosen(architecture)
        try:
            output = self.network(net, units)
            with suppress(TypeError, ValueError):
                net.shape(output)
                return net, output
            raise self._invalid(
                "network",
                f"a network that returns {output!r}: return the name of its result, such as "
                "net.relu(x)",
            )
        except ModelsError:
            raise
        except Exception as error:  # a user's class can raise any error
            if text := own_failure(self, error, "cannot be built"):
                raise InvalidSpaceError(f"{text}, with {architecture.to_text()}") from error
            raise

    def _chosen(self, architecture: Architecture) -> Chosen[Chosen[Option]]:
        """Return the options of an architecture."""
        chosen = {
            level.unit: level.options[level.codes[label]]
            for level, label in self._choices_of(architecture)
        }
        units = [
            Chosen.of(
                (self.options[self._index[label]] for label in unit),
                chosen.get(number, NO_CHOICE),
            )
            for number, unit in enumerate(architecture.units)
        ]
        network = chosen.get(None, NO_CHOICE)
        if architecture.contexts:
            network = Option(network.label, {**network.values, **dict(architecture.contexts)})
        return Chosen.of(units, network)

    # Places of a graph and their contents (esm_models.part_table)

    def place(self, scope: str) -> int:
        """Return the column of :meth:`places` that determines the operators of a scope.

        Column 0 is for the constant parts. The blocks follow, unit by unit.
        """
        match = _BLOCK_SCOPE.match(scope)
        if match is None:
            return 0
        unit, block = map(int, match.groups())
        return 1 + (unit - 1) * self.max_unit_depth + block - 1

    def has_block_scopes(self) -> bool:
        """Return whether an operator of the largest network is in the scope of a block."""
        net, _ = self.trace(self.extremes()[1])
        return any(self.place(node.name.rpartition(".")[0]) for node in net.nodes)

    def places(self, blocks: Codes, pruned: bool = True) -> NDArray[np.int64]:
        """Return an id for the operators at each place of a graph, shape ``(n, places)``.

        Equal ids mean equal operators and shapes, within an architecture or between two with the
        same resolution. By default a block depends only on its option, and all other parts are
        constant. A space with other dependencies overrides both methods.

        Args:
            blocks: Option codes, without resolutions.
            pruned: Whether blocks without effect are left out, as in the graphs; see
                :attr:`prunes`.
        """
        flat = blocks.reshape(len(blocks), math.prod(blocks.shape[1:])).astype(np.int64)
        first = 2 + len(self.options) * np.arange(flat.shape[1])
        return np.pad(np.where(flat < 0, 1, first + flat), ((0, 0), (1, 0)))

    def showcase(self) -> Codes:
        """Return option codes of architectures that together contain every possible part."""
        return self.blocks_of(self.encode(self.uniform()))

    def channels(self, base: float) -> int:
        """Return ``base`` times the width multiplier, rounded by :func:`round_channels`."""
        return round_channels(base * self.width_mult)


def _all_are(kind: type, values: object) -> bool:
    return isinstance(values, tuple | list) and all(isinstance(each, kind) for each in values)


def _is_whole(value: object) -> bool:
    """Return whether a value is a whole number of 1 or more."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and bool(value >= 1)  # type: ignore[operator]


def _grid(features: Sequence[Feature]) -> tuple[Option, ...]:
    """Return every combination of the features' values, the last feature's changing fastest."""
    names = [feature.name for feature in features]
    return tuple(
        Option(
            "".join(f"{f.symbol}{v}" for f, v in zip(features, values, strict=True)),
            dict(zip(names, values, strict=True)),
        )
        for values in itertools.product(*(feature.values for feature in features))
    )


def _joined(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Return features of different names, with all their values."""
    found: dict[str, Feature] = {}
    for feature in features:
        known = found.get(feature.name)
        values = (*known.values, *feature.values) if known else feature.values
        found[feature.name] = replace(feature, values=tuple(dict.fromkeys(values)))
    return tuple(found.values())


def round_channels(channels: float) -> int:
    """Round a channel count to a multiple of 8, as mobile networks do.

    The result is the nearest multiple, at least 8. It is the next larger one if rounding down
    would lose more than 10 %.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
