"""Settings of the search space."""

from __future__ import annotations

from dataclasses import dataclass

from esm_models.graph import FLOAT32
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.plugins import absolute


@dataclass(frozen=True)
class SpaceSettings:
    """Settings that make a search space.

    Attributes:
        space: name, or path/to/file.py:Class.
        resolution: input side, pixels; None leaves it to the space.
        width_mult: multiplier of channel counts.
        batch: batch size.
        dtype: of the networks' arithmetic, ``"float32"`` or ``"int8"``.
    """

    space: str = "resnet"
    resolution: int | None = None
    width_mult: float = 1.0
    batch: int = 1
    dtype: str = FLOAT32

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", absolute(self.space))  # found again from any folder

    def search_space(self) -> SearchSpace:
        """Make the search space.

        Raises:
            ModelsError: it does not exist, or not with these settings.
        """
        # A user's own space may have a constructor that does not know what is optional.
        others = {} if self.dtype == FLOAT32 else {"dtype": self.dtype}
        return load_space(
            self.space,
            resolution=self.resolution,
            width_mult=self.width_mult,
            batch=self.batch,
            **others,
        )
