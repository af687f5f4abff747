"""What an encoder is: architectures as integer codes in, one vector each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from esm_models.architecture import Architecture
from esm_models.space import Codes, SearchSpace

if TYPE_CHECKING:
    from esm_models.parts import Part

Encoding = NDArray[np.float32]
"""``(n, len(columns))``."""


@dataclass(frozen=True)
class Layout:
    """How the columns of an encoding belong together, for predictors that care.

    Attributes:
        groups: name -> first column and the one after the last; they may not overlap.
        nodes: of an encoding that is a graph, its number of nodes, from the input to the output:
            group ``"operations"`` is then ``(nodes, operations)``, what each node is in numbers
            from 0 to 1, zeros where one is absent, and group ``"adjacency"`` is
            ``(nodes, nodes)``, 1 from row to column. 0 of other encodings.
    """

    groups: Mapping[str, tuple[int, int]]
    nodes: int = 0


class Encoder(ABC):
    """Turns architectures of one space into vectors, many at a time.

    Equal architectures get equal vectors; ``columns`` names every entry. Where architectures have
    a resolution of their own, it is the last column, unless ``with_resolution`` is False because
    the encoding has it in another way.
    """

    name: ClassVar[str]
    with_resolution: ClassVar[bool] = True

    parts: tuple[Part, ...] = ()
    """Part of a network that each column counts; none of an encoding that counts no parts."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._appends = self.with_resolution and bool(space.resolutions)
        self.columns: tuple[str, ...] = (*self._columns(), *["resolution"] * self._appends)

    @classmethod
    def suits(cls, space: SearchSpace) -> bool:
        """Whether it can encode this space; some cannot encode every one."""
        return True

    @property
    def layout(self) -> Layout:
        return Layout({self.name: (0, len(self))})

    def __len__(self) -> int:
        """Length of a vector."""
        return len(self.columns)

    def encode(self, architectures: Sequence[Architecture]) -> Encoding:
        """Vectors of architectures, ``(n, len(self))``.

        Raises:
            InvalidArchitectureError: one of them is not in the space.
        """
        return self.encode_codes(self.space.encode(architectures))

    def encode_codes(self, codes: Codes) -> Encoding:
        """Vectors of codes, ``(n, *space.code_shape)`` -> ``(n, len(self))``.

        Raises:
            ValueError: the codes have another space's shape.
        """
        expected = self.space.code_shape
        if codes.ndim != 3 or codes.shape[1:] != expected:
            raise ValueError(f"codes of {self.space.name} are (n, {expected[0]}, {expected[1]})")
        if not len(codes):
            return np.zeros((0, len(self)), dtype=np.float32)
        resolution = self.space.resolution_of(codes)
        encoded = self._encode(self.space.blocks_of(codes), resolution)
        if self._appends:
            encoded = np.concatenate([encoded, resolution[:, None]], axis=1)
        return encoded.astype(np.float32, copy=False)

    @abstractmethod
    def _columns(self) -> list[str]: ...

    @abstractmethod
    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        """Of blocks alone, ``(n, units, max_depth)``, and input sides in pixels, ``(n,)``."""

    # What encoders share

    def _units(self) -> range:
        return range(1, self.space.unit_count + 1)

    def _values(self, codes: Codes) -> NDArray[np.float32]:
        """Feature values of every block, ``(n, units, max_depth, features)``, 0 where absent."""
        return self.space.feature_values[codes]
