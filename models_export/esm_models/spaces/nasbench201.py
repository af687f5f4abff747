"""NAS-Bench-201 search space (Dong and Yang 2020): one cell of six operations, stacked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from esm_models.graph import Network
from esm_models.space import Codes, Feature, Option, SearchSpace

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From and to which of the cell's nodes each block leads."""

OUTPUT_NODE = 3

_MOST = 100
"""Different things that may be at one place of a cell, at most."""


class NASBench201Space(SearchSpace):
    """The cell's six edges, in the order of the benchmark's strings, as one unit of six blocks.

    Edges lead from an earlier to a later of four nodes: 0-1, 0-2, 1-2, 0-3, 1-3, 2-3. 15,625
    architectures. Three stages of five equal cells with 16, 32 and 64 channels, a residual block
    of stride 2 between them, ten classes.

    The graphs hold what an inference compiler would leave of a cell: no edge ``none``, no edge
    that begins at a node without input, and none whose end leads nowhere; ``skip_connect`` only
    joins the sum at its end. Architectures that differ in nothing else have the same graph.
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
    prunes = True
    min_resolution = 16
    default_resolution = 32
    widths = (16, 32, 64)
    cells = 5

    def place(self, scope: str) -> int:
        """Of every cell alike: the six edges, then the sums at the nodes."""
        last = scope.rpartition(".")[2]
        if last.startswith("block"):
            return int(last.removeprefix("block"))
        return len(EDGES) + int(last.removeprefix("node")) if last.startswith("node") else 0

    def places(self, blocks: Codes, pruned: bool = True) -> NDArray[np.int64]:
        """Edges by their operation, 0 where nothing is left of them; nodes by which edges arrive,
        and which of these bring the same image."""
        options = blocks[:, 0].astype(np.int64)
        live = options != self._index["none"]
        if pruned:
            live = _live(live)
        # An image is named by the edge that makes it, or the node whose sum it is.
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
        return places + _MOST * np.arange(places.shape[1])

    def showcase(self) -> Codes:
        """All cells."""
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
        (live,) = _live(np.array([operations]) != "none")
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
            # Nothing leads through the cell. The benchmark's cell then gives zeros, and so does
            # this one: the network still runs from input to output.
            with net.scope(f"node{OUTPUT_NODE}"):
                return net.zeros_like(x)
        return nodes[OUTPUT_NODE]

    def _reduction(self, net: Network, x: str, channels: int) -> str:
        y = net.conv(net.relu(x), channels, kernel=3, stride=2)
        y = net.conv(net.relu(y), channels, kernel=3)
        shortcut = net.same_average_pool(x, kernel=2, stride=2)
        shortcut = net.conv(shortcut, channels, norm=False)
        return net.add(shortcut, y)


def _live(present: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which edges are on a way from the cell's input to its output, of those that are there."""
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
