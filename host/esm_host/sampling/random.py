"""ESM's random sampling: every choice uniform, so that depths crowd in the middle (ESM, II-C1)."""

from __future__ import annotations

import numpy as np

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.sampling.base import Sampler, draw_options
from esm_models.space import Codes


class RandomSampler(Sampler):
    """Every unit's depth and every block's options uniform and independent."""

    def quotas(self, total: int) -> None:
        return None

    def _codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> Codes:
        if bin_index is not None:
            raise UsageError(
                f"random sampling knows no bins: choose {argument('sampling')} balanced"
            )
        columns = [rng.choice(depths, size=n) for depths in self.space.depths]
        return draw_options(self.space, np.stack(columns, axis=1), rng)
