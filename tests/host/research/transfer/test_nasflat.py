"""NASFLAT: its layers against their equations, its loss by hand, and a family of devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from benchmarks.transfer import read_methods
from esm_host.research.transfer.nasflat import NasflatPredictor
from esm_host.research.transfer.nasflat_network import (
    LAYERS,
    Architectures,
    GraphFlow,
    NasflatNetwork,
    draw_pairs,
    pairwise_hinge,
)
from esm_host.transfer import encoding_names, make_method, sampler_and_encoding
from esm_host.transfer.source import Source
from esm_models.spaces import load_space

CELLS = load_space("nasbench201")
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 5, (160, 1, 6)).astype(np.int16)
SEEN, UNSEEN = CODES[:80], CODES[80:]
# What the five operations cost on two kinds of device.
KINDS = np.array([[0.0, 0.1, 0.3, 0.6, 1.0], [0.0, 0.9, 1.0, 0.2, 0.1]])


def latency_ms(codes: np.ndarray, share: float) -> np.ndarray:
    """Of a device between both kinds."""
    cost = (1 - share) * KINDS[0] + share * KINDS[1]
    return 1 + cost[codes[:, 0]].sum(axis=1)


def source(share: float, codes: np.ndarray = SEEN) -> Source:
    return Source(f"table/{share}", CELLS, codes, latency_ms(codes, share))


SOURCES = [source(share) for share in (0.0, 0.3, 0.7, 1.0)]


@pytest.fixture(scope="module")
def learnt() -> NasflatPredictor:
    return NasflatPredictor(epochs=24, batch_size=64, transfer_epochs=12).learn(SOURCES)


def test_the_hinge_by_hand() -> None:
    scores = torch.tensor([0.5, 0.0, 0.45, 2.0])
    slower, faster = torch.tensor([0, 0, 1, 3]), torch.tensor([1, 2, 0, 1])
    # 0.5 above: nothing; 0.05 above: 0.05 is lacking; 0.5 below: 0.6; 2 above: nothing
    assert pairwise_hinge(scores, slower, faster, 0.1).item() == pytest.approx(0.65 / 4)
    assert pairwise_hinge(scores, slower[3:], faster[3:], 0.1).item() == 0


@given(
    st.lists(st.sampled_from([1.0, 2.0, 2.5, 4.0]), min_size=2, max_size=12),
    st.integers(1, 6),
)
def test_pairs_differ_and_come_once(values: list[float], per_sample: int) -> None:
    latency = torch.tensor(values)
    slower, faster = draw_pairs(latency, per_sample)
    assert (latency[slower] > latency[faster]).all()
    pairs = {frozenset(pair) for pair in zip(slower.tolist(), faster.tolist(), strict=True)}
    different = sum(a != b for i, a in enumerate(values) for b in values[:i])
    assert len(pairs) == len(slower) == min(different, per_sample * len(values))


def test_layers_are_those_of_the_equations() -> None:
    torch.manual_seed(0)
    flow = GraphFlow(5, [4], 3).double()
    layer = flow.last
    nodes = 6
    x, o = torch.randn(2, nodes, 5).double(), torch.randn(2, nodes, 3).double()
    incoming = (torch.rand(2, nodes, nodes) < 0.4).double()
    expected = torch.empty(2, nodes, 4).double()
    for n in range(2):
        gate = torch.sigmoid(o[n] @ layer.flow_gate.weight.T + layer.flow_gate.bias)
        along = incoming[n] @ x[n] @ layer.flow
        dense = gate * along + x[n] @ layer.flow + layer.flow_bias
        gate = torch.sigmoid(o[n] @ layer.attention_gate.weight.T + layer.attention_gate.bias)
        wx = x[n] @ layer.attention
        for i in range(nodes):
            scores = torch.stack(
                [incoming[n, i, j] * (wx[i] * wx[j]) @ layer.score for j in range(nodes)]
            )
            weights = torch.softmax(torch.nn.functional.leaky_relu(scores), 0)
            expected[n, i] = (dense[i] + layer.norm(gate[i] * (weights @ wx))) / 2
    torch.testing.assert_close(flow(x, incoming, o, None), expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_the_output_node_alone_is_as_among_all(seed: int) -> None:
    torch.manual_seed(seed)
    flow = GraphFlow(5, [6, 7], 3).double()
    x, o = torch.randn(4, 8, 5).double(), torch.randn(4, 8, 3).double()
    incoming = (torch.rand(4, 8, 8) < 0.4).double()
    there = (torch.rand(4, 8) < 0.7).double()
    there[:, -1] = 1
    for edges, count in ((incoming, None), (incoming, there), (None, None), (None, 3 * there)):
        whole = flow(x, edges, o, count)[:, -1]
        torch.testing.assert_close(flow.output_node(x, edges, o, count), whole)


def test_without_edges_alike_nodes_may_be_counted() -> None:
    torch.manual_seed(0)
    network = NasflatNetwork(4, 2).double().eval()
    kinds = torch.cat([torch.zeros(1, 4), torch.eye(4), torch.zeros(1, 4)]).double()
    blocks = torch.tensor([1, 3, 3, 3, 0, 1, 3])  # no block of kind 2
    operations = kinds[torch.cat([torch.tensor([0]), 1 + blocks, torch.tensor([5])])]
    device = torch.tensor([1])
    one_by_one = Architectures(operations[None], torch.eye(9)[None].double())
    count = torch.tensor([[1.0, 1, 2, 0, 4, 1]]).double()
    for other in (
        Architectures(operations[None], None),
        Architectures(kinds[None], None, count),
    ):
        torch.testing.assert_close(network(other, device), network(one_by_one, device))


def test_absent_nodes_say_nothing() -> None:
    torch.manual_seed(0)
    network = NasflatNetwork(4, 2).eval()
    operations = torch.eye(4)[torch.randint(0, 4, (1, 7))]
    chain = torch.diag(torch.ones(6), -1)[None]
    short = network(Architectures(operations, chain), torch.tensor([1]))
    # The same with two absent nodes, of any operation, between the last block and the output.
    places = [0, 1, 2, 3, 4, 5, 8]
    longer = torch.rand(1, 9, 4)
    longer[:, places] = operations
    incoming = torch.zeros(1, 9, 9)
    incoming[0, np.ix_(places, places)[0], np.ix_(places, places)[1]] = chain[0]
    count = torch.zeros(1, 9)
    count[:, places] = 1
    masked = network(Architectures(longer, incoming, count), torch.tensor([1]))
    torch.testing.assert_close(masked, short)


@pytest.mark.predictors
def test_it_learns_a_family_of_devices(learnt: NasflatPredictor) -> None:
    for share in (0.1, 0.85):
        learnt.adapt(SEEN[:15], latency_ms(SEEN[:15], share))
        truth = latency_ms(UNSEEN, share)
        assert spearmanr(learnt.predict(UNSEEN), truth).statistic > 0.8


@pytest.mark.predictors
def test_units_do_not_matter(learnt: NasflatPredictor) -> None:
    """Only the order does: latencies may be in seconds or minutes."""
    wanted = latency_ms(SEEN[:15], 0.5)
    once = learnt.adapt(SEEN[:15], wanted).predict(UNSEEN)
    np.testing.assert_allclose(learnt.adapt(SEEN[:15], 1024 * wanted).predict(UNSEEN), once)


@pytest.mark.predictors
def test_each_device_starts_anew(learnt: NasflatPredictor) -> None:
    wanted = latency_ms(SEEN[:15], 0.85)
    learnt.adapt(SEEN[:15], wanted)
    once = learnt.predict(UNSEEN)
    learnt.adapt(SEEN[20:30], latency_ms(SEEN[20:30], 0.0))
    other = learnt.predict(UNSEEN)
    learnt.adapt(SEEN[:15], wanted)
    np.testing.assert_array_equal(learnt.predict(UNSEEN), once)
    assert spearmanr(other, once).statistic < 0.95


@pytest.mark.predictors
def test_the_same_seed_the_same_result() -> None:
    few = SEEN[:6], latency_ms(SEEN[:6], 0.4)

    def predicted(seed: int) -> np.ndarray:
        torch.rand(seed + 1)  # whatever others draw
        predictor = NasflatPredictor(epochs=1, transfer_epochs=1, seed=seed)
        return predictor.learn(SOURCES[:2]).adapt(*few).predict(UNSEEN[:9])

    np.testing.assert_array_equal(predicted(1), predicted(1))
    assert not np.allclose(predicted(1), predicted(2))


@pytest.mark.predictors
def test_a_new_device_begins_as_the_one_that_correlates_most(learnt: NasflatPredictor) -> None:
    for share in (0.0, 1.0):
        wanted = latency_ms(SEEN[:30], share)
        learnt.adapt(SEEN[:30], wanted)
        merit = [spearmanr(each.latency_ms[:30], wanted).statistic for each in SOURCES]
        assert learnt.nearest_ == SOURCES[int(np.argmax(merit))].name
    learnt.transfer_epochs = 0
    try:
        learnt.adapt(SEEN[:30], latency_ms(SEEN[:30], 1.0))
    finally:
        learnt.transfer_epochs = 12
    untouched = learnt.predict(UNSEEN)
    embeddings = learnt.adapted_network_.device.weight
    assert torch.equal(embeddings[-1], embeddings[3])
    assert spearmanr(untouched, latency_ms(UNSEEN, 1.0)).statistic > 0.8


@pytest.mark.predictors
def test_a_constant_device_is_no_error(learnt: NasflatPredictor) -> None:
    predicted = learnt.adapt(SEEN[:5], np.full(5, 3.0)).predict(UNSEEN)
    assert np.isfinite(predicted).all()


@pytest.mark.predictors
def test_a_prediction_does_not_depend_on_its_neighbours(learnt: NasflatPredictor) -> None:
    learnt.adapt(SEEN[:15], latency_ms(SEEN[:15], 0.5))
    together = learnt.predict(UNSEEN)
    np.testing.assert_allclose(learnt.predict(UNSEEN[7:8]), together[7:8], rtol=1e-4)


class Told:
    """A supplement that tells what the graph network cannot learn in time, in odd units."""

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        hidden = latency_ms(codes, 0.5)
        return np.stack([1e6 + 1e3 * hidden, np.full(len(codes), 7.0)], axis=1)


@pytest.mark.predictors
def test_a_supplement_helps() -> None:
    merit = []
    for supplement in (None, Told()):
        predictor = NasflatPredictor(supplement, epochs=3, transfer_epochs=3)
        predictor.learn([source(0.5)]).adapt(SEEN[:15], latency_ms(SEEN[:15], 0.5))
        merit.append(spearmanr(predictor.predict(UNSEEN), latency_ms(UNSEEN, 0.5)).statistic)
    assert merit[1] > max(merit[0], 0.9)


@pytest.mark.predictors
def test_sources_may_have_measured_different_architectures() -> None:
    predictor = NasflatPredictor(epochs=14, batch_size=32, transfer_epochs=8)
    predictor.learn([source(0.2, SEEN[:50]), source(0.4, SEEN[30:])])
    predictor.adapt(UNSEEN[:10], latency_ms(UNSEEN[:10], 0.3))
    assert spearmanr(predictor.predict(UNSEEN), latency_ms(UNSEEN, 0.3)).statistic > 0.7


@pytest.mark.predictors
@pytest.mark.predictors
def test_units_can_be_told() -> None:
    """Where only the first unit's blocks cost."""
    space = load_space("resnet")
    codes = np.full((150, 4, 7), -1, dtype=np.int16)
    codes[:, :, :2] = RNG.integers(0, 9, (150, 4, 2))
    codes[::2, 1, 2] = 3  # some are deeper
    y = 1 + codes[:, 0, :2].sum(axis=1) / 4
    predictor = NasflatPredictor(units=True, epochs=40, batch_size=32)
    predictor.learn([Source("one", space, codes[:100], y[:100])]).adapt(codes[:20], y[:20])
    assert spearmanr(predictor.predict(codes[100:]), y[100:]).statistic > 0.8


@pytest.mark.predictors
def test_a_resolution_of_its_own_is_seen() -> None:
    space = load_space("ofa")
    codes = np.repeat(space.encode(space.extremes()[:1]), 8, axis=0)
    codes[:, -1, 0] = np.arange(8) % len(space.resolutions)
    y = 1.0 + codes[:, -1, 0]
    predictor = NasflatPredictor(epochs=30, transfer_epochs=0)
    predictor.learn([Source("one", space, codes, y)]).adapt(codes, y)
    assert spearmanr(predictor.predict(codes), y).statistic > 0.9


@pytest.mark.predictors
def test_without_edges_the_order_of_blocks_is_not_seen() -> None:
    space = load_space("fbnet")
    codes = np.full((40, *space.code_shape), -1, dtype=np.int16)
    for unit, depths in enumerate(space.depths):
        codes[:, unit, : max(depths)] = RNG.integers(0, len(space.options), (40, max(depths)))
    swapped = codes.copy()
    swapped[:, [1, 3]] = codes[:, [3, 1]]
    y = 1.0 + (codes == 8).sum(axis=(1, 2))
    for edges, same in ((None, True), (True, False)):
        predictor = NasflatPredictor(edges=edges, epochs=2, batch_size=16, transfer_epochs=1)
        predictor.learn([Source("one", space, codes, y)]).adapt(codes[:10], y[:10])
        one, other = predictor.predict(codes), predictor.predict(swapped)
        assert np.array_equal(one, other) == same


@pytest.mark.predictors
def test_a_supplement_may_be_taken_as_it_is() -> None:
    """In units so odd that nothing else is seen."""
    told = []
    for standardise in (True, False):
        predictor = NasflatPredictor(Told(), standardise=standardise, epochs=1, transfer_epochs=1)
        predictor.learn([source(0.5)]).adapt(SEEN[:15], latency_ms(SEEN[:15], 0.5))
        told.append(np.abs(predictor.predict(UNSEEN)).max())
    assert told[1] > 100 * told[0]


# Its parts, one by one


@pytest.mark.parametrize("kind", ["dgf", "gat"])
def test_an_ensemble_is_the_mean_of_its_layers(kind: str) -> None:
    torch.manual_seed(0)
    both = GraphFlow(5, [4], 3)
    x, o = torch.randn(2, 6, 5), torch.randn(2, 6, 3)
    incoming = (torch.rand(2, 6, 6) < 0.4).float()
    alone = {}
    for each in ("dgf", "gat"):
        flow = GraphFlow(5, [4], 3, each)
        flow.load_state_dict(both.state_dict())
        alone[each] = flow(x, incoming, o, None)
        last = flow.output_node(x, incoming, o, None)
        torch.testing.assert_close(last, alone[each][:, -1])
    torch.testing.assert_close((alone["dgf"] + alone["gat"]) / 2, both(x, incoming, o, None))
    assert not torch.allclose(alone[kind], both(x, incoming, o, None))


def test_without_operation_wise_embedding_the_device_joins_the_head_alone() -> None:
    network = NasflatNetwork(4, 2, operation_wise=False).eval()
    kinds = torch.cat([torch.zeros(1, 4), torch.eye(4), torch.zeros(1, 4)])
    architectures = Architectures(kinds[None].expand(2, -1, -1), None)
    read: list[torch.Tensor] = []
    network.head[0].register_forward_pre_hook(lambda _, given: read.append(given[0]))
    scores = network(architectures, torch.tensor([0, 1]))
    assert scores[0] != scores[1]
    differs = (read[0][0] != read[0][1]).nonzero()[:, 0]
    assert differs.min() == read[0].shape[1] - network.device.weight.shape[1]


def test_without_initialisation_a_new_device_begins_as_it_was_drawn() -> None:
    settings = {"epochs": 2, "batch_size": 64, "transfer_epochs": 0}
    for initialise in (True, False):
        method = NasflatPredictor(initialise=initialise, **settings).learn(SOURCES)
        method.adapt(UNSEEN[:20], latency_ms(UNSEEN[:20], 0.0))
        embeddings = method.adapted_network_.device.weight.detach()
        nearest = method.source_names_.index(method.nearest_)
        assert torch.equal(embeddings[-1], embeddings[nearest]) is initialise


PARTS = [{"operation_wise": False}, {"initialise": False}, {"layers": "dgf"}, {"layers": "gat"}]


@pytest.mark.parametrize("part", PARTS)
def test_each_of_its_parts_can_be_left_out(part: dict[str, object]) -> None:
    """Predictions differ without the part."""
    predicted = []
    for left_out in ({}, part):
        method = NasflatPredictor(epochs=1, batch_size=64, transfer_epochs=1, **left_out)
        method.learn(SOURCES[:2]).adapt(UNSEEN[:5], latency_ms(UNSEEN[:5], 0.5))
        predicted.append(method.predict(UNSEEN[5:15]))
    assert np.isfinite(predicted).all()
    assert not np.array_equal(*predicted)


@pytest.mark.predictors
@pytest.mark.parametrize("part", PARTS)
def test_it_learns_without_any_of_its_parts(part: dict[str, object]) -> None:
    method = NasflatPredictor(epochs=16, batch_size=64, transfer_epochs=20, **part).learn(SOURCES)
    method.adapt(UNSEEN[:20], latency_ms(UNSEEN[:20], 0.5))
    predicted = method.predict(UNSEEN[20:])
    assert spearmanr(predicted, latency_ms(UNSEEN[20:], 0.5)).statistic > 0.7


@pytest.mark.parametrize("space", ["fbnet", "nasbench201"])
def test_the_ablations_tables_name_what_there_is(space: str) -> None:
    methods = read_methods(Path(f"benchmarks/nasflat-ablation-{space}.toml"))
    assert len(methods) == 8
    for method in methods.values():
        assert make_method(method.name, **method.params).layers in LAYERS
        sampler_and_encoding(method.sampler + f":{method.encoding}" * bool(method.encoding))
        assert not method.supplement or encoding_names(method.supplement)
    assert sum(method.params.get("operation_wise") is False for method in methods.values()) == 2
