"""Interface of encoders: from integer codes of architectures to vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from esm_host.errors import UsageError
from esm_host.plugins import own_failures
from esm_models.architecture import Architecture
from esm_models.space import Codes, Option, SearchSpace
from esm_protos.plugins import own_name

if TYPE_CHECKING:
    from esm_models.parts import Part

Encoding = NDArray[np.float32]
"""Vectors of architectures, shape ``(n, len(columns))``."""


@dataclass(frozen=True)
class Layout:
    """Structure of an encoding's columns, for predictors that use it.

    Attributes:
        groups: First column and end (exclusive) by group name; groups do not overlap.
        nodes: Number of nodes of a graph encoding, from input to output; 0 for other encodings.
            Group ``"operations"`` then has shape ``(nodes, operations)``, values from 0 to 1,
            zeros for an absent node. Group ``"adjacency"`` has shape ``(nodes, nodes)``, 1 for an
            edge from row to column.
    """

    groups: Mapping[str, tuple[int, int]]
    nodes: int = 0


class Encoder(ABC):
    """Encoder of one space's architectures as vectors, many at a time.

    Equal architectures get equal vectors; ``columns`` names every entry. Choices of the network and
    of units follow the columns of the blocks, a column per number and per word. Contexts come next,
    a column each. If architectures have their own resolution, it is the last column. An encoder
    with ``with_choices`` False encodes choices and contexts differently, and one with
    ``with_resolution`` False the resolution.
    """

    name: ClassVar[str]
    with_resolution: ClassVar[bool] = True
    with_choices: ClassVar[bool] = True

    parts: tuple[Part, ...] = ()
    """Part of a network that each column counts; empty for an encoding without counts."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        names, self._choice_values = choice_columns(space) if self.with_choices else ([], [])
        contexts = [*space.contexts] if self.with_choices else []
        resolution = ["resolution"] if self.with_resolution and space.resolutions else []
        self._appended = [*names, *contexts, *resolution]
        self.columns: tuple[str, ...] = (*self._columns(), *self._appended)
        if len(set(self.columns)) < len(self.columns):
            twice = next(name for name, count in Counter(self.columns).items() if count > 1)
            raise UsageError(
                f"{own_name(self)} names the column {twice!r} twice: give each a name of its own"
            )

    @classmethod
    def suits(cls, space: SearchSpace) -> bool:
        """Return whether the encoder supports this space."""
        return True

    @property
    def own_columns(self) -> list[str]:
        """Columns without those of choices, contexts and the resolution at the end."""
        return list(self.columns[: len(self.columns) - len(self._appended)])

    @property
    def layout(self) -> Layout:
        return Layout({self.name: (0, len(self))})

    def __len__(self) -> int:
        """Return the length of a vector."""
        return len(self.columns)

    def encode(self, architectures: Sequence[Architecture]) -> Encoding:
        """Return the vectors of architectures, shape ``(n, len(self))``.

        Raises:
            InvalidArchitectureError: an architecture is not in the space.
        """
        return self.encode_codes(self.space.encode(architectures))

    def encode_codes(self, codes: Codes) -> Encoding:
        """Return the vectors, shape ``(n, len(self))``, of codes, shape ``(n, *space.code_shape)``.

        Raises:
            ValueError: the codes have the shape of another space.
            EsmError: a class from a user's file fails, or returns an array of another shape.
        """
        expected = self.space.code_shape
        if codes.ndim != 3 or codes.shape[1:] != expected:
            raise ValueError(f"codes of {self.space.name} are (n, {expected[0]}, {expected[1]})")
        if not len(codes):
            return np.zeros((0, len(self)), dtype=np.float32)
        resolution = self.space.resolution_of(codes)
        with own_failures(self):
            encoded = np.asarray(self._encode_all(codes, resolution))
            encoded = encoded.astype(np.float32, copy=False)
        expected = (len(codes), len(self) - len(self._appended))
        if encoded.shape != expected:
            raise UsageError(
                f"{own_name(self)} encodes {expected[0]} architectures of {self.space.name} as an "
                f"array {encoded.shape}, but names {expected[1]} columns: return one row for each, "
                "one value for each column"
            )
        if not np.isfinite(encoded).all():
            column = self.columns[int(np.argmin(np.isfinite(encoded).all(axis=0)))]
            raise UsageError(
                f"{own_name(self)} encodes {self.space.name} with values of the column {column!r} "
                "that are not finite: return finite numbers"
            )
        if self._appended:
            chosen = self.space.choices_of(codes)
            parts = [encoded, *(table[chosen[:, at]] for at, table in self._choice_values)]
            if self.with_choices:
                parts.append(self.space.contexts_of(codes))
            if self.with_resolution and self.space.resolutions:
                parts.append(resolution[:, None])
            encoded = np.concatenate(parts, axis=1, dtype=np.float32)
        return encoded

    def _encode_all(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        """Encode codes with the choices that are not appended; by default there are none."""
        return self._encode(self.space.blocks_of(codes), resolution)

    @abstractmethod
    def _columns(self) -> list[str]: ...

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        """Encode blocks, shape ``(n, units, max_depth)``, and input sides in pixels, ``(n,)``."""
        raise NotImplementedError

    # Helpers of encoders

    def _options_of(self, unit: int) -> list[Option]:
        """Return the options that the blocks of a unit may have; units count from 1."""
        return [self.space.options[code] for code in self.space.block_options[unit - 1]]

    def _units(self) -> range:
        return range(1, self.space.unit_count + 1)

    def _values(self, codes: Codes) -> NDArray[np.float32]:
        """Return the feature values of blocks, shape ``(n, units, max_depth, features)``.

        Absent blocks have 0.
        """
        return self.space.feature_values[codes]


def choice_columns(space: SearchSpace) -> tuple[list[str], list[tuple[int, NDArray[np.float32]]]]:
    """Return the columns of the choices of the network and of units.

    Returns:
        Names of the columns; and for each choice its place among the space's choices and the values
        of its options, ``(options, columns)``.
    """
    names: list[str] = []
    tables = []
    for level in space.levels:
        prefix = "" if level.unit is None else f"unit{level.unit + 1}."
        columns: list[list[float]] = []
        for feature in level.features:
            if feature.has_words:
                names += [f"{prefix}{feature.name}={value}" for value in feature.values]
                columns += [
                    [float(option[feature.name] == value) for option in level.options]
                    for value in feature.values
                ]
            else:
                names.append(f"{prefix}{feature.name}")
                columns.append([feature.number(option[feature.name]) for option in level.options])
        if columns:
            tables.append((level.place, np.array(columns, dtype=np.float32).T))
    return names, tables
