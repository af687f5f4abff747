"""NAS-Bench-201 search space (Dong and Yang 2020): one cell of six operations, stacked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esm_models.graph import Network
from esm_models.space import Codes, Feature, Option, SearchSpace

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""First and last node of each block, which is an edge of the cell."""

OUTPUT_NODE = 3

_MAX_CONTENTS = 100
"""Upper bound of the different contents of a place of a cell."""


class NASBench201Space(SearchSpace):
    """NAS-Bench-201 as one unit of six blocks: the cell's edges in the order of its strings.

    Edges connect an earlier with a later of four nodes: 0-1, 0-2, 1-2, 0-3, 1-3, 2-3. There are
    15,625 architectures. A network has three stages of five equal cells, with 16, 32 and 64
    channels. Between stages is a residual block of stride 2. There are ten classes.

    The graphs contain only what an inference compiler would keep of a cell. Edges ``none``, edges
    from a node without input and edges to a node without output are left out. ``skip_connect``
    adds its input to the sum at its end. Architectures that differ only in such edges have the
    same graph.
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
    # Blocks are the edges: a block feeds the blocks that start at its last node.
    wiring = (
        *((-1, 0), (-1, 1), (-1, 3), (0, 2), (0, 4)),
        *((1, 5), (2, 5), (3, 6), (4, 6), (5, 6)),
    )
    prunes = True
    min_resolution = 16
    default_resolution = 32
    widths = (16, 32, 64)
    cells = 5

    def place(self, scope: str) -> int:
        """Return the column of a scope, equal in all cells: the edges, then the nodes' sums."""
        last = scope.rpartition(".")[2]
        if last.startswith("block"):
            return int(last.removeprefix("block"))
        return len(EDGES) + int(last.removeprefix("node")) if last.startswith("node") else 0

    def places(self, blocks: Codes, pruned: bool = True) -> NDArray[np.int64]:
        """Return numbers from an edge's operation, or from the edges that arrive at a node.

        An edge that is left out has number 0. The number of a node also depends on which of its
        edges carry the same image.
        """
        options = blocks[:, 0].astype(np.int64)
        live = options != self._index["none"]
        if pruned:
            live = _live_edges(live)
        # The number of an image is that of the edge that computes it, or of the node that sums it.
        sums = len(EDGES) + np.arange(OUTPUT_NODE + 1)
        image = np.full((len(blocks), OUTPUT_NODE + 1), sums)
        brought = np.empty_like(options)
        nodes = []
        for end in range(1, OUTPUT_NODE + 1):
            arriving = [number for number, edge in enumerate(EDGES) if edge[1] == end]
            number = np.zeros(len(blocks), np.int64)
            for edge in arriving:
                skip = options[:, edge] == self._index["skip_connect"]
                brought[:, edge] = np.where(skip, image[:, EDGES[edge][0]], edge)
                number = 2 * number + live[:, edge]
                image[:, end] = np.where(live[:, edge], brought[:, edge], image[:, end])
            several = live[:, arriving].sum(axis=1) > 1
            image[:, end] = np.where(several, sums[end], image[:, end])
            for one, other in itertools.combinations(arriving, 2):
                both = live[:, one] & live[:, other]
                same = pruned & both & (brought[:, one] == brought[:, other])
                number = 2 * number + same
            nodes.append(number)
        edges = np.where(live, options, 0)
        places = np.stack([np.zeros(len(blocks), np.int64), *edges.T, *nodes], axis=1)
        return places + _MAX_CONTENTS * np.arange(places.shape[1])

    def showcase(self) -> Codes:
        """Return all cells."""
        cells = itertools.product(range(len(self.options)), repeat=len(EDGES))
        return np.array(list(cells), dtype=np.int16)[:, None]

    def network(self, net: Network, units: Sequence[Sequence[Option]]) -> str:
        operations = [str(block["operation"]) for block in units[0]]
        with net.scope("stem"):
            x = net.conv(net.input, self.channels(self.widths[0]), kernel=3)
        for stage, width in enumerate(self.widths, start=1):
            if stage > 1:
                with net.scope(f"reduction{stage - 1}"):
                    x = self._reduction(net, x, self.channels(width))
            for number in range(1, self.cells + 1):
                with net.scope(f"stage{stage}.cell{number}"):
                    x = self._cell(net, x, operations)
        with net.scope("head"):
            x = net.relu(net.batch_norm(x))
            return net.linear(net.flatten(net.global_average_pool(x)), 10)

    def _cell(self, net: Network, x: str, operations: Sequence[str]) -> str:
        (live,) = _live_edges(np.array([operations]) != "none")
        nodes = {0: x}
        for end in range(1, OUTPUT_NODE + 1):
            arriving = []
            for number in np.flatnonzero(live).tolist():
                if EDGES[number][1] == end:
                    with net.scope(f"block{number + 1}"):
                        y = _operation(net, nodes[EDGES[number][0]], operations[number])
                    arriving.append(y)
            if arriving:
                nodes[end] = arriving[0]
                with net.scope(f"node{end}"):
                    for y in arriving[1:]:
                        nodes[end] = net.add(nodes[end], y)
        if OUTPUT_NODE not in nodes:
            # No path leads through the cell. It then returns zeros, as in the benchmark, so the
            # network still has a path from input to output.
            with net.scope(f"node{OUTPUT_NODE}"):
                return net.zeros_like(x)
        return nodes[OUTPUT_NODE]

    def _reduction(self, net: Network, x: str, channels: int) -> str:
        y = net.conv(net.relu(x), channels, kernel=3, stride=2)
        y = net.conv(net.relu(y), channels, kernel=3)
        shortcut = net.same_average_pool(x, kernel=2, stride=2)
        shortcut = net.conv(shortcut, channels, norm=False)
        return net.add(shortcut, y)


def _live_edges(present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which of the present edges are on a path from the cell's input to its output."""
    reached = np.zeros((len(present), OUTPUT_NODE + 1), bool)
    useful = reached.copy()
    reached[:, 0] = useful[:, OUTPUT_NODE] = True
    for number, (begin, end) in enumerate(EDGES):  # in the order of their ends
        reached[:, end] |= present[:, number] & reached[:, begin]
    for number in sorted(range(len(EDGES)), key=lambda each: EDGES[each], reverse=True):
        begin, end = EDGES[number]
        useful[:, begin] |= present[:, number] & useful[:, end]
    begins, ends = np.array(EDGES).T
    live: NDArray[np.bool_] = present & reached[:, begins] & useful[:, ends]
    return live


def _operation(net: Network, x: str, name: str) -> str:
    if name == "avg_pool_3x3":
        return net.same_average_pool(x, kernel=3)
    if name.startswith("nor_conv"):
        kernel = 3 if name == "nor_conv_3x3" else 1
        return net.conv(net.relu(x), net.shape(x)[1], kernel=kernel)
    return x
