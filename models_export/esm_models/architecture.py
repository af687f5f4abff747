"""One point of a search space: frozen, hashable, written as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from esm_models.errors import InvalidArchitectureError


@dataclass(frozen=True)
class Architecture:
    """The blocks of every unit, each named by the label of its option.

    Attributes:
        space: name of the search space.
        units: one tuple per unit; one option label (such as ``"k3e1/2"``) per block.
        resolution: input height and width, pixels, where the space leaves them to the
            architecture; else None.
    """

    space: str
    units: tuple[tuple[str, ...], ...]
    resolution: int | None = None

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return sum(len(unit) for unit in self.units)

    @cached_property
    def key(self) -> str:
        """Stable identifier: 16 hexadecimal digits, the same on every machine."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """``{"space": ..., "units": [[label, ...], ...]}``, and ``"resolution"`` if it has one."""
        data: dict[str, Any] = {"space": self.space, "units": [list(u) for u in self.units]}
        return data if self.resolution is None else {**data, "resolution": self.resolution}

    @classmethod
    def from_json(cls, data: object) -> Architecture:
        """Inverse of :meth:`to_json`.

        Raises:
            InvalidArchitectureError: ``data`` has another shape.
        """
        if isinstance(data, Mapping):
            space, units = data.get("space"), data.get("units")
            resolution = data.get("resolution")
            if (
                isinstance(space, str)
                and (resolution is None or type(resolution) is int)
                and isinstance(units, list)
                and all(
                    isinstance(unit, list) and all(isinstance(label, str) for label in unit)
                    for unit in units
                )
            ):
                return cls(space, tuple(tuple(unit) for unit in units), resolution)
        raise InvalidArchitectureError(
            'an architecture is written {"space": "resnet", "units": [["k3e1/2", ...], ...]}; '
            f"got {json.dumps(data, default=str)[:120]}"
        )
