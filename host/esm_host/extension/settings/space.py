"""Settings of the search space."""

from __future__ import annotations

from dataclasses import dataclass

from esm_host.typed import check_fields
from esm_models.graph import FLOAT32
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.plugins import absolute


@dataclass(frozen=True)
class SpaceSettings:
    """Settings of a search space.

    Attributes:
        space: Name of the space, or path/to/file.py:Class.
        resolution: Input side, pixels; None for the default of the space.
        width_mult: Multiplier of channel counts.
        batch: Batch size.
        dtype: Arithmetic of the networks, ``"float32"`` or ``"int8"``.
    """

    space: str = "resnet"
    resolution: int | None = None
    width_mult: float = 1.0
    batch: int = 1
    dtype: str = FLOAT32

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "space", absolute(self.space))  # valid from any working folder

    def search_space(self) -> SearchSpace:
        """Make the search space.

        Raises:
            ModelsError: the space does not exist or rejects the settings.
        """
        # The constructor of a user's own space may lack optional arguments.
        others = {} if self.dtype == FLOAT32 else {"dtype": self.dtype}
        return load_space(
            self.space,
            resolution=self.resolution,
            width_mult=self.width_mult,
            batch=self.batch,
            **others,
        )
