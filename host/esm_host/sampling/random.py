"""ESM's random sampling: uniform choices, which concentrate in the middle depths (ESM, II-C1)."""

from __future__ import annotations

import numpy as np

from esm_host.sampling.base import Sampler, draw_options
from esm_models.space import Codes


class RandomSampler(Sampler):
    """Sampler with uniform, independent unit depths and block options."""

    by_bin = False

    def _codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> Codes:
        columns = [rng.choice(depths, size=n) for depths in self.space.depths]
        return draw_options(self.space, np.stack(columns, axis=1), rng)
