"""NAS-Bench-201 search space (Dong and Yang 2020): one cell of six operations, stacked."""

from __future__ import annotations

from collections.abc import Sequence

from esm_models.graph import Network
from esm_models.space import Feature, Option, SearchSpace


class NASBench201Space(SearchSpace):
    """The cell's six edges, in the order of the benchmark's strings, as one unit of six blocks.

    Edges lead from an earlier to a later of four nodes: 0-1, 0-2, 1-2, 0-3, 1-3, 2-3. 15,625
    architectures.
    """

    name = "nasbench201"
    depths = ((6,),)
    features = (
        Feature(
            "operation",
            "",
            ("none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "nor_conv_3x3"),
        ),
    )
    # Blocks are the edges; one feeds another that leaves the node where it ends.
    wiring = (
        *((-1, 0), (-1, 1), (-1, 3), (0, 2), (0, 4)),
        *((1, 5), (2, 5), (3, 6), (4, 6), (5, 6)),
    )
    default_resolution = 32

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        raise NotImplementedError
