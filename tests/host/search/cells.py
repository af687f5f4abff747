"""Cells of NAS-Bench-201 with a made-up quality."""

from collections.abc import Mapping

import numpy as np

from esm_models.space import Codes
from esm_models.spaces import load_space

CELLS = load_space("nasbench201")


class Quality:
    """Convolutions are good, the more so the later they come."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, codes: Codes) -> Mapping[str, np.ndarray]:
        self.asked += len(codes)
        worth = np.array([0.0, 1.0, 1.5, 4.0, 5.0])[codes.reshape(len(codes), -1)]
        return {"quality": (worth * (1, 1.1, 1.23, 1.37, 1.51, 1.68)).sum(axis=1)}
