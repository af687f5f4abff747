"""Architectures as graphs: nodes with edges between them, or the paths through them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder, Layout
from esm_host.errors import UsageError
from esm_models.space import Codes, SearchSpace


class GraphEncoder(Encoder):
    """Per node, one-hot option and unit; then the adjacency: N * (O + 2 + U + R) + N * N.

    The N nodes are the input, every place where a block may be, and the output. Blocks follow each
    other or, in spaces that have one, the space's wiring, as for the line graphs of cells (Wen et
    al. 2020); where a block is absent, its row and edges are zeros and its neighbours meet. The
    two more options are those of input and output. Convolutions share their weights over all
    nodes, so units, if there are several, must be told (U), and the resolution, where it is the
    architecture's (R, from 0 for the smallest to 1 for the largest).
    """

    name = "graph"
    with_resolution = False

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
        self._features = [
            *(option.label for option in space.options),
            *("input", "output"),
            *(f"unit={unit}" for unit in self._units() if several),
            *(["resolution"] if space.resolutions else []),
        ]
        return [
            *(f"{node}.{feature}" for node in nodes for feature in self._features),
            *(f"{a}->{b}" for a in nodes for b in nodes),
        ]

    def _encode(self, codes: Codes, resolution: NDArray[np.int64]) -> NDArray[np.generic]:
        space, n = self.space, len(codes)
        most = [max(depths) for depths in space.depths]
        blocks = _blocks(space, codes)
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
        if space.resolutions:
            least, largest = min(space.resolutions), max(space.resolutions)
            operation[..., -1] = ((resolution - least) / max(largest - least, 1))[:, None]
        operation *= present[..., None]

        if space.wiring:
            wired = np.zeros((self._nodes, self._nodes), dtype=bool)
            wired[tuple(np.array(space.wiring).T + 1)] = True
        else:  # each leads to the next that is there
            place = np.cumsum(present, axis=1)
            wired = place[:, None, :] == place[:, :, None] + 1
        adjacency = wired & present[:, :, None] & present[:, None, :]
        return np.concatenate([operation.reshape(n, -1), adjacency.reshape(n, -1)], axis=1)


class PathEncoder(Encoder):
    """Which sequences of operations lead from input to output, one-hot (White et al. 2019).

    BANANAS' encoding: a column for every sequence that some architecture may have. Two paths of
    the same operations share one, so some architectures look alike. Only of spaces with a wiring.

    Raises:
        UsageError: the blocks of the space simply follow each other, so that every path would be
            a whole network.
    """

    name = "path"

    def __init__(self, space: SearchSpace) -> None:
        if not self.suits(space):
            raise UsageError(
                f"encoding path needs a space whose blocks are wired as a graph, and those of "
                f"{space.name} follow each other: choose operation-one-hot"
            )
        super().__init__(space)

    @classmethod
    def suits(cls, space: SearchSpace) -> bool:
        return bool(space.wiring)

    def _columns(self) -> list[str]:
        self._paths = list(_paths(self.space.wiring, self.space.max_depth))
        labels = [option.label for option in self.space.options]
        columns: list[str] = []
        self._begin: dict[int, int] = {}  # length of path -> its first column
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
    """One behind the other, ``(n, max_depth)``, -1 where absent."""
    parts = [codes[:, unit, : max(depths)] for unit, depths in enumerate(space.depths)]
    return np.concatenate(parts, axis=1)


def _paths(wiring: tuple[tuple[int, int], ...], blocks: int) -> Iterator[list[int]]:
    """The blocks of every path from input to output."""
    unfinished = [[-1]]
    while unfinished:
        path = unfinished.pop()
        if path[-1] == blocks:
            yield path[1:-1]
        else:
            unfinished += [[*path, after] for before, after in wiring if before == path[-1]]
