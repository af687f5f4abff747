"""Encodings of architectures as graphs, or as paths through a graph."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder, Layout, choice_columns
from esm_host.errors import UsageError
from esm_models.space import Codes, SearchSpace


class GraphEncoder(Encoder):
    """One-hot option and unit per node, then the adjacency: N * (O + 2 + U + R) + N * N.

    The N nodes are the input, every place of a block, and the output. Blocks form a chain or have
    the space's wiring, as in the line graphs of cells (Wen et al. 2020). The row and edges of an
    absent block are zero, and its neighbours are joined. The two further options are those of input
    and output. Convolutions share their weights over all nodes. So if there are several units,
    nodes name theirs (U). If architectures have a resolution, nodes hold it (R, from 0 for the
    smallest to 1 for the largest). In the same way they hold contexts and choices of the network
    and of their unit.
    """

    name = "graph"
    with_resolution = False
    with_choices = False

    @property
    def layout(self) -> Layout:
        nodes = self._nodes
        end = nodes * len(self._features)
        return Layout({"operations": (0, end), "adjacency": (end, len(self))}, nodes)

    def _columns(self) -> list[str]:
        space = self.space
        places = [
            f"unit{unit}.block{block}"
            for unit, depths in zip(self._units(), space.depths, strict=True)
            for block in range(1, max(depths) + 1)
        ]
        nodes = ["input", *places, "output"]
        self._nodes = len(nodes)
        several = space.unit_count > 1
        choices, self._tables = choice_columns(space)
        self._features = [
            *(option.label for option in space.options),
            *("input", "output"),
            *(f"unit={unit}" for unit in self._units() if several),
            *choices,
            *space.contexts,
            *(["resolution"] if space.resolutions else []),
        ]
        return [
            *(f"{node}.{feature}" for node in nodes for feature in self._features),
            *(f"{a}->{b}" for a in nodes for b in nodes),
        ]

    def _encode_all(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        space, n = self.space, len(codes)
        most = [max(depths) for depths in space.depths]
        blocks = _blocks(space, space.blocks_of(codes))
        present = np.ones((n, self._nodes), dtype=bool)
        present[:, 1:-1] = blocks >= 0

        options = len(space.options)
        operation = np.zeros((n, self._nodes, len(self._features)), dtype=np.float32)
        operation[:, 1:-1, :options] = blocks[..., None] == np.arange(options)
        operation[:, 0, options] = 1
        operation[:, -1, options + 1] = 1
        if space.unit_count > 1:
            unit_of = np.repeat(np.arange(space.unit_count), most)
            units = slice(options + 2, options + 2 + space.unit_count)
            operation[:, 1:-1, units] = unit_of[:, None] == np.arange(space.unit_count)
        self._add_choices(operation, space.choices_of(codes), most)
        sizes = [*space.contexts_of(codes).T, *[resolution] * bool(space.resolutions)]
        grids = [*space.contexts.values(), *[space.resolutions] * bool(space.resolutions)]
        for column, (values, grid) in enumerate(zip(sizes, grids, strict=True), start=-len(sizes)):
            least, largest = min(grid), max(grid)
            operation[..., column] = ((values - least) / max(largest - least, 1))[:, None]
        operation *= present[..., None]

        if space.wiring:
            wired = np.zeros((self._nodes, self._nodes), dtype=bool)
            wired[tuple(np.array(space.wiring).T + 1)] = True
        else:  # each present block leads to the next one
            place = np.cumsum(present, axis=1)
            wired = place[:, None, :] == place[:, :, None] + 1
        adjacency = wired & present[:, :, None] & present[:, None, :]
        return np.concatenate([operation.reshape(n, -1), adjacency.reshape(n, -1)], axis=1)

    def _add_choices(self, operation: NDArray[np.float32], chosen: Codes, most: list[int]) -> None:
        """Set the columns of choices: the network's in all nodes, a unit's in its blocks."""
        space = self.space
        column = len(space.options) + 2 + space.unit_count * (space.unit_count > 1)
        starts = np.cumsum([1, *most])
        unit_of = {level.place: level.unit for level in space.levels}
        for place, table in self._tables:
            low, high = table.min(axis=0), table.max(axis=0)
            values = ((table - low) / np.maximum(high - low, 1))[chosen[:, place]]
            unit = unit_of[place]
            nodes = slice(None) if unit is None else slice(starts[unit], starts[unit + 1])
            operation[:, nodes, column : column + table.shape[1]] = values[:, None]
            column += table.shape[1]


class PathEncoder(Encoder):
    """One-hot paths of operations from input to output (White et al. 2019).

    This is the encoding of BANANAS: a column for every possible sequence of operations. Paths of
    equal operations share a column, so some architectures have equal encodings. It needs a space
    with a wiring.

    Raises:
        UsageError: the blocks of the space form a chain, so that every path is a whole network.
    """

    name = "path"

    def __init__(self, space: SearchSpace) -> None:
        if not self.suits(space):
            raise UsageError(
                f"encoding path needs a space whose blocks form a graph, and those of "
                f"{space.name} form a chain: choose operation-one-hot"
            )
        super().__init__(space)

    @classmethod
    def suits(cls, space: SearchSpace) -> bool:
        return bool(space.wiring)

    def _columns(self) -> list[str]:
        self._paths = list(_paths(self.space.wiring, self.space.max_depth))
        labels = [option.label for option in self.space.options]
        columns: list[str] = []
        self._begin: dict[int, int] = {}  # first column of each path length
        for length in sorted({len(path) for path in self._paths}):
            self._begin[length] = len(columns)
            columns += map(">".join, itertools.product(labels, repeat=length))
        self._width = len(columns)
        return columns

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        options = len(self.space.options)
        blocks = _blocks(self.space, codes).astype(np.int64)
        encoded = np.zeros((len(codes), self._width), dtype=np.float32)
        for path in self._paths:
            there = np.flatnonzero((blocks[:, path] >= 0).all(axis=1))
            # The operations of a path are the digits of its place among those of its length.
            place = blocks[there][:, path] @ options ** np.arange(len(path))[::-1]
            encoded[there, self._begin[len(path)] + place] = 1
        return encoded


def _blocks(space: SearchSpace, codes: Codes) -> Codes:
    """Return the blocks of all units in a row, ``(n, max_depth)``, -1 where absent."""
    parts = [codes[:, unit, : max(depths)] for unit, depths in enumerate(space.depths)]
    return np.concatenate(parts, axis=1)


def _paths(wiring: tuple[tuple[int, int], ...], blocks: int) -> Iterator[list[int]]:
    """Yield the blocks of every path from input to output."""
    unfinished = [[-1]]
    while unfinished:
        path = unfinished.pop()
        if path[-1] == blocks:
            yield path[1:-1]
        else:
            unfinished += [[*path, after] for before, after in wiring if before == path[-1]]
