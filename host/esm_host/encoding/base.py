"""What an encoder is: architectures as integer codes in, one vector each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from esm_models.architecture import Architecture
from esm_models.space import Codes, SearchSpace

Encoding = NDArray[np.float32]
"""``(n, len(columns))``."""


class Encoder(ABC):
    """Turns architectures of one space into vectors, many at a time.

    Equal architectures get equal vectors; ``columns`` names every entry.
    """

    name: ClassVar[str]

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.columns: tuple[str, ...] = tuple(self._columns())

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
        """Vectors of codes, ``(n, units, max_depth)`` -> ``(n, len(self))``.

        Raises:
            ValueError: the codes have another space's shape.
        """
        expected = (self.space.unit_count, self.space.max_unit_depth)
        if codes.ndim != 3 or codes.shape[1:] != expected:
            raise ValueError(f"codes of {self.space.name} are (n, {expected[0]}, {expected[1]})")
        if not len(codes):
            return np.zeros((0, len(self)), dtype=np.float32)
        return self._encode(codes).astype(np.float32, copy=False)

    @abstractmethod
    def _columns(self) -> list[str]: ...

    @abstractmethod
    def _encode(self, codes: Codes) -> NDArray[np.generic]: ...

    # What encoders share

    def _units(self) -> range:
        return range(1, self.space.unit_count + 1)

    def _values(self, codes: Codes) -> NDArray[np.float32]:
        """Feature values of every block, ``(n, units, max_depth, features)``, 0 where absent."""
        table = np.array(
            [[float(value) for value in option.values.values()] for option in self.space.options]
            + [[0.0] * len(self.space.features)],  # code -1
            dtype=np.float32,
        )
        return table[codes]
