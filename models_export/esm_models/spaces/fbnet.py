"""FBNet search space (Wu et al. 2019): 22 layers, each one of nine blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from esm_models.graph import Network
from esm_models.space import Feature, Option, SearchSpace

BLOCKS = (
    ("skip", 0, 0, 0),
    ("k3_e1_g2", 3, 1, 2),
    ("k3_e1", 3, 1, 1),
    ("k5_e1_g2", 5, 1, 2),
    ("k5_e1", 5, 1, 1),
    ("k3_e3", 3, 3, 1),
    ("k5_e3", 5, 3, 1),
    ("k3_e6", 3, 6, 1),
    ("k5_e6", 5, 6, 1),
)
"""Name, kernel size, expansion ratio and groups of the 1x1 convolutions; zeros where nothing is."""


class FBNetSpace(SearchSpace):
    """Seven stages of 1, 4, 4, 4, 4, 4 and 1 layers; 9.85e20 architectures."""

    name = "fbnet"
    depths = ((1,), (4,), (4,), (4,), (4,), (4,), (1,))
    features = (
        Feature("kernel", "k", (0, 3, 5)),
        Feature("expansion", "e", (0, 1, 3, 6)),
        Feature("groups", "g", (0, 1, 2)),
    )
    default_resolution = 32

    @cached_property
    def options(self) -> tuple[Option, ...]:
        names = [feature.name for feature in self.features]
        return tuple(
            Option(label, dict(zip(names, values, strict=True))) for label, *values in BLOCKS
        )

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        raise NotImplementedError
