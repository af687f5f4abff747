"""Settings of the search space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from esm_host.arguments import argument
from esm_host.errors import UsageError
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
        contexts: Values by the name of a context, ``{"past": (128, 512)}``; every network is
            measured in one of each, drawn with it. Those that are left out have the values of the
            space. ``batch`` and ``resolution`` can be contexts of any space.

    Raises:
        UsageError: the resolution or the batch is given twice.
    """

    space: str = "resnet"
    resolution: int | None = None
    width_mult: float = 1.0
    batch: int = 1
    dtype: str = FLOAT32
    contexts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        given = {"resolution": self.resolution is not None, "batch": self.batch != 1}
        for name in self.contexts:
            if given.get(name):
                raise UsageError(
                    f"{argument(name)} {getattr(self, name)} and {argument('contexts')} {name}: "
                    "give one of them"
                )
        contexts = {name: _several(values) for name, values in self.contexts.items()}
        object.__setattr__(self, "contexts", contexts)
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
            contexts=self.contexts,
            resolution=self.resolution,
            width_mult=self.width_mult,
            batch=self.batch,
            **others,
        )


def _several(given: Any) -> tuple[Any, ...]:
    is_several = isinstance(given, Sequence) and not isinstance(given, str)
    return tuple(given) if is_several else (given,)
