"""Random seed of sampling and training."""

from __future__ import annotations

from dataclasses import dataclass

from esm_host.errors import check_range
from esm_host.typed import check_fields


@dataclass(frozen=True, kw_only=True)
class SeedSettings:
    """Random seed.

    Raises:
        UsageError: the seed is out of range.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("seed", self.seed, 0, 2**63 - 1)
