"""What is known of one device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_models.space import Codes, SearchSpace


@dataclass(frozen=True, eq=False)
class Source:
    """Latencies that were measured on one device.

    Attributes:
        name: ``TABLE/DEVICE``, or the folder of a campaign.
        codes: ``(n, *space.code_shape)``.
        latency_ms: ``(n,)``, positive and finite.
    """

    name: str
    space: SearchSpace
    codes: Codes
    latency_ms: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.codes)

    def fits(self, space: SearchSpace) -> bool:
        """Whether it is of such architectures; resolution, width and batch may be others."""
        return self.space.name == space.name and self.codes.shape[1:] == space.code_shape
