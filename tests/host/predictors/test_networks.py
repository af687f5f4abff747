"""What the network predictors do beyond what all do."""

import numpy as np
import pytest

from esm_host.encoding import make_encoder
from esm_host.encoding.base import Layout
from esm_host.errors import UsageError
from esm_host.predictors import make_predictor
from esm_models.spaces import load_space

SPACE = load_space("nasbench201")
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 5, (200, 1, 6)).astype(np.int16)
GRAPHS = make_encoder("graph", SPACE).encode_codes(CODES)
COST_MS = np.array([0.0, 0.1, 0.3, 0.6, 1.0])
QUICK = {
    "gcn": {"min_steps": 300},
    "bonas": {"min_steps": 200},
    "nao": {"min_steps": 150},
    "bananas": {"min_steps": 200},
    "bohamiann": {"burn_in": 400, "steps": 700},
}


@pytest.mark.parametrize("name", ["gcn", "bonas", "nao"])
def test_graphs_need_their_layout(name: str) -> None:
    with pytest.raises(UsageError, match="choose the encoding graph"):
        make_predictor(name, make_encoder("operation-one-hot", SPACE))
    encoder = make_encoder("graph", SPACE)
    with pytest.raises(ValueError, match="choose the encoding graph"):
        make_predictor(name, encoder, layout=None).fit(GRAPHS, np.ones(200))
    layout = Layout({"operations": (0, 10), "adjacency": (10, 300)}, 2)
    with pytest.raises(ValueError, match="pass the layout of the encoder"):
        make_predictor(name, encoder, layout=layout).fit(GRAPHS, np.ones(200))


def test_a_graph_network_sees_the_edges() -> None:
    """Counts of operations tell little (a correlation of 0.4 at best), the wiring does."""
    y = 1 + COST_MS[CODES[:, 0, 3]]  # only the edge from the first node to the last
    predictor = make_predictor("gcn", make_encoder("graph", SPACE), **QUICK["gcn"])
    predicted = predictor.fit(GRAPHS[:160], y[:160]).predict(GRAPHS[160:])
    assert np.corrcoef(predicted, y[160:])[0, 1] > 0.6


def test_stages_are_told_apart() -> None:
    space = load_space("resnet")
    codes = np.full((120, 4, 7), -1, dtype=np.int16)
    codes[:, :, :2] = RNG.integers(0, 9, (120, 4, 2))
    y = 1 + codes[:, 0, :2].sum(axis=1) / 4  # only the first unit costs
    encoder = make_encoder("graph", space)
    x = encoder.encode_codes(codes)
    predictor = make_predictor("gcn", encoder, min_steps=200)
    predicted = predictor.fit(x[:100], y[:100]).predict(x[100:])
    assert np.corrcoef(predicted, y[100:])[0, 1] > 0.8


@pytest.mark.parametrize("name", ["bonas", "bohamiann"])
def test_uncertainty_covers_the_error(name: str) -> None:
    encoding = {"bonas": "graph", "bohamiann": "operation-one-hot"}[name]
    encoder = make_encoder(encoding, SPACE)
    x = encoder.encode_codes(CODES)
    noise = np.random.default_rng(1).normal(0, 0.2, 200)
    y = 3 + COST_MS[CODES[:, 0]].sum(axis=1) + noise
    predictor = make_predictor(name, encoder, **QUICK[name]).fit(x[:150], y[:150])
    mean, sd = predictor.predict(x[150:], return_std=True)
    np.testing.assert_allclose(mean, predictor.predict(x[150:]))
    assert (sd > 0).all()
    assert (np.abs(y[150:] - mean) < 4 * sd).mean() > 0.5
    assert sd.mean() < 2 * y.std()


def test_an_ensemble_disagrees_more_about_what_it_has_not_seen() -> None:
    encoder = make_encoder("path", SPACE)
    x, y = encoder.encode_codes(CODES), 3 + COST_MS[CODES[:, 0]].sum(axis=1)
    predictor = make_predictor("bananas", encoder, **QUICK["bananas"]).fit(x[:150], y[:150])
    _, seen = predictor.predict(x[:150], return_std=True)
    mean, unseen = predictor.predict(x[150:], return_std=True)
    np.testing.assert_allclose(mean, predictor.predict(x[150:]))
    assert (unseen > 0).all()
    assert 1.5 * seen.mean() < unseen.mean() < 2 * y.std()


def test_ensembles_of_other_seeds_share_no_network() -> None:
    encoder = make_encoder("path", SPACE)
    x, y = encoder.encode_codes(CODES), 1 + COST_MS[CODES[:, 0]].sum(axis=1)
    first, second = (
        make_predictor("bananas", encoder, seed=seed, min_steps=5, epochs=1).fit(x, y)
        for seed in (0, 1)
    )
    each = [n.predict(x) for p in (first, second) for n in p.networks_]
    assert len({p.tobytes() for p in each}) == 6
    np.testing.assert_allclose(first.predict(x), np.mean(each[:3], axis=0))
