"""ESM's random sampling: every choice uniform, so that depths crowd in the middle (ESM, II-C1)."""

from __future__ import annotations

import numpy as np

from esm_host.sampling.base import Sampler, draw_options
from esm_models.space import Codes


class RandomSampler(Sampler):
    """Every unit's depth and every block's options uniform and independent."""

    by_bin = False

    def _codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> Codes:
        columns = [rng.choice(depths, size=n) for depths in self.space.depths]
        return draw_options(self.space, np.stack(columns, axis=1), rng)
