"""The encodings graph and path, against walks over the architectures in plain Python."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.encoding import make_encoder
from esm_host.errors import UsageError
from esm_host.predictors import encoding_for
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins
from esm_models.spaces import SPACES, load_space

SPACE_OBJECTS = {name: load_space(name) for name in SPACES}
CELLS = SPACE_OBJECTS["nasbench201"]
CHAINS = [space for space in SPACE_OBJECTS.values() if not space.wiring]
# Which node an edge of the cell leaves and where it ends, in the order of the benchmark.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def draw(space, seed: int):
    sampler = BalancedSampler(space, DepthBins(space.min_depth, space.max_depth, 1))
    return sampler.sample(1, np.random.default_rng(seed))[0]


def graph_of(space, architecture):
    """Operations ``(nodes, features)``, their names, and adjacency, of one architecture."""
    encoder = make_encoder("graph", space)
    vector, layout = encoder.encode([architecture])[0], encoder.layout
    parts = {name: vector[begin:end] for name, (begin, end) in layout.groups.items()}
    assert sum(map(len, parts.values())) == len(vector)
    operations = parts["operations"].reshape(layout.nodes, -1)
    names = [name.partition(".")[2] for name in encoder.columns[: operations.shape[1]]]
    return operations, names, parts["adjacency"].reshape(layout.nodes, -1)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_chain_is_walked_from_input_to_output(seed: int) -> None:
    for space in CHAINS:
        architecture = draw(space, seed)
        operations, names, adjacency = graph_of(space, architecture)
        node, walked = 0, []
        while adjacency[node].any():
            (node,) = adjacency[node].nonzero()[0]
            walked.append([n for n, hot in zip(names, operations[node], strict=True) if hot == 1])
        expected = [
            [label, *[f"unit={number}"] * (space.unit_count > 1)]
            for number, unit in enumerate(architecture.units, start=1)
            for label in unit
        ]
        own = {*(option.label for option in space.options), "output"}
        shown = [[n for n in names if n in own or n.startswith("unit=")] for names in walked]
        assert shown == [*expected, ["output"]]
        assert adjacency.sum() == architecture.depth + 1
        assert node == len(operations) - 1
        assert (operations.any(axis=1)).sum() == architecture.depth + 2
        if space.resolutions:
            present = operations[:, :-1].any(axis=1)
            share = (architecture.resolution - 128) / (224 - 128)
            np.testing.assert_allclose(operations[present, -1], share)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_a_cell_is_its_line_graph(codes: list[int]) -> None:
    (architecture,) = CELLS.decode(np.array(codes, dtype=np.int16).reshape(1, 1, 6))
    operations, names, adjacency = graph_of(CELLS, architecture)
    shown = [names[int(row.argmax())] for row in operations]
    assert shown == ["input", *architecture.units[0], "output"]
    assert (operations.sum(axis=1) == 1).all()
    for a, (_, end) in enumerate(EDGES):
        assert adjacency[0, a + 1] == (EDGES[a][0] == 0)
        assert adjacency[a + 1, -1] == (end == 3)
        for b, (begin, _) in enumerate(EDGES):
            assert adjacency[a + 1, b + 1] == (end == begin)
    assert not adjacency[:, 0].any()
    assert not adjacency[-1].any()
    assert adjacency[0, -1] == 0


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_paths_are_those_from_input_to_output(codes: list[int]) -> None:
    encoder = make_encoder("path", CELLS)
    (architecture,) = CELLS.decode(np.array(codes, dtype=np.int16).reshape(1, 1, 6))
    operation = dict(zip(EDGES, architecture.units[0], strict=True))

    def paths(node: int) -> list[list[str]]:
        if node == 3:
            return [[]]
        return [[operation[e], *rest] for e in EDGES if e[0] == node for rest in paths(e[1])]

    vector = encoder.encode([architecture])[0]
    found = {name for name, hot in zip(encoder.columns, vector, strict=True) if hot}
    assert found == {">".join(path) for path in paths(0)}


@pytest.mark.parametrize("space", CHAINS, ids=lambda space: space.name)
def test_chains_have_no_paths(space) -> None:
    with pytest.raises(UsageError, match="choose operation-one-hot"):
        make_encoder("path", space)
    assert encoding_for("bananas", space) == "operation-one-hot"
    assert encoding_for("bananas", CELLS) == "path"
    assert encoding_for("gcn", space) == "graph"
