"""Once-for-all's MobileNetV3 search space (Cai et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from esm_models.graph import Network
from esm_models.space import Feature, Option, SearchSpace


class OFASpace(SearchSpace):
    """Five units of 2-4 inverted-residual blocks with kernel 3, 5 or 7 and expansion 3, 4 or 6.

    The resolution is the architecture's own, 128 to 224 in steps of 4, unless one is given.
    """

    name = "ofa"
    depths = ((2, 3, 4),) * 5
    features = (Feature("kernel", "k", (3, 5, 7)), Feature("expansion", "e", (3, 4, 6)))
    resolutions = tuple(range(128, 225, 4))

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        raise NotImplementedError
