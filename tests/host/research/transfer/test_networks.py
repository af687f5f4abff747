"""HELP and MultiPredict, where they are more than any few-shot method."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from esm_host.research.transfer.bodies import ArchitectureInput, Scale
from esm_host.research.transfer.help import HELPPredictor
from esm_host.research.transfer.multipredict import MultiPredictPredictor, _nearest_source
from esm_host.transfer.source import Source
from esm_models.spaces import load_space

SPACE = load_space("fbnet")
RNG = np.random.default_rng(0)
CODES = np.full((160, *SPACE.code_shape), -1, dtype=np.int16)
for _unit, (_depth,) in enumerate(SPACE.depths):
    CODES[:, _unit, :_depth] = RNG.integers(0, 9, (160, _depth))
COSTS_MS = RNG.uniform(0.1, 1, (3, 10)) * [*range(9), 0]  # the last of no block
KNOWN = [1 + cost[CODES].sum(axis=(1, 2)) for cost in COSTS_MS]
SOURCES = [
    Source(str(n), SPACE, CODES[:100], latency_ms[:100]) for n, latency_ms in enumerate(KNOWN)
]
SMALL_HELP = {"episodes": 3, "width": 8, "query": 20}
SMALL_MULTIPREDICT = {"epochs": 1, "joint": 20, "width": 8}


# HELP


def test_references_are_what_all_sources_measured() -> None:
    sources = [
        Source("0", SPACE, CODES[:60], KNOWN[0][:60]),
        Source("1", SPACE, CODES[40:100], KNOWN[1][40:100]),
    ]
    method = HELPPredictor(**SMALL_HELP).learn(sources)
    rows = {codes.tobytes(): row for row, codes in enumerate(CODES)}
    chosen = [rows[codes.tobytes()] for codes in method.references_]
    assert len(set(chosen)) == 10
    assert all(40 <= row < 60 for row in chosen)
    other = HELPPredictor(**SMALL_HELP, seed=1).learn(sources)
    assert not np.array_equal(other.references_, method.references_)


def test_a_device_is_known_by_its_references() -> None:
    """Measured where they are among the samples, else estimated from these."""
    method = HELPPredictor(**SMALL_HELP).learn(SOURCES)
    rows = {codes.tobytes(): row for row, codes in enumerate(CODES)}
    chosen = [rows[codes.tobytes()] for codes in method.references_]
    new = 2 * KNOWN[0] + 3 * KNOWN[2]
    expected = (new[chosen] - new[chosen].min()) / np.ptp(new[chosen])
    noisy = new.copy()
    noisy[chosen[0]] = 500  # what was measured is believed
    method.adapt(CODES[[*chosen, 120]], noisy[[*chosen, 120]])
    assert method.embedding_[0].max() == method.embedding_[0][0] == 1
    method.adapt(CODES[[*chosen, 120]], new[[*chosen, 120]])
    np.testing.assert_allclose(method.embedding_[0], expected, atol=1e-6)
    method.adapt(CODES[100:140], new[100:140])
    np.testing.assert_allclose(method.embedding_[0], expected, atol=0.1)


def test_learning_rates_are_learned_and_steps_taken() -> None:
    method = HELPPredictor(**SMALL_HELP).learn(SOURCES)
    rates = torch.cat([rate.detach().flatten() for rate in method.rates_.values()])
    assert (rates != 1e-3).float().mean() > 0.3
    few = slice(100, 120)
    stepped = method.adapt(CODES[few], KNOWN[0][few]).predict(CODES)
    method.inner_steps = 0
    unstepped = method.adapt(CODES[few], KNOWN[0][few]).predict(CODES)
    assert np.abs(stepped - unstepped).max() > 1e-4


def test_few_references_where_few_architectures_are_known() -> None:
    sources = [Source("0", SPACE, CODES[:4], KNOWN[0][:4])]
    method = HELPPredictor(**SMALL_HELP).learn(sources)
    assert len(method.references_) == 4
    predicted = method.adapt(CODES[100:110], KNOWN[1][100:110]).predict(CODES)
    assert np.isfinite(predicted).all()


# MultiPredict


def test_a_new_device_begins_as_the_one_most_like_it() -> None:
    method = MultiPredictPredictor(**SMALL_MULTIPREDICT, steps=0).learn(SOURCES)
    for number, known in enumerate(KNOWN):
        method.adapt(CODES[:20], 3 * known[:20] + 1)
        torch.testing.assert_close(method.own_device_.data, method.devices_[number].data)


def test_ranks_decide_which_is_nearest_source() -> None:
    known = np.array([[1.0, 5, 2], [2, 4, 2], [3, 3, 2], [4, 2, 2]])
    assert _nearest_source(known, np.array([1.0, 2, 50, 1000])) == 0
    assert _nearest_source(known, np.array([9.0, 8, 7, 1])) == 1
    assert _nearest_source(known, np.ones(4)) == 0


def test_what_reads_architectures_is_not_tuned() -> None:
    method = MultiPredictPredictor(**SMALL_MULTIPREDICT).learn(SOURCES)
    before = {name: value.clone() for name, value in method.reader_.state_dict().items()}
    joint = {name: value.clone() for name, value in method.joint_.state_dict().items()}
    method.adapt(CODES[100:120], KNOWN[0][100:120])
    for name, value in method.reader_.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    own = method.own_joint_.state_dict()
    assert any((own[name] != value).any() for name, value in joint.items())


# Both


def test_a_scale_holds_nearly_all_between_0_and_1() -> None:
    latency_ms = RNG.normal(50, 5, 1000)
    scale = Scale.of(latency_ms)
    scaled = scale.into(latency_ms)
    assert ((scaled > 0) & (scaled < 1)).float().mean() > 0.99
    assert float(scaled.mean()) == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(scale.back(scaled), latency_ms, rtol=1e-5)


@pytest.mark.parametrize("name", ["fbnet", "nasbench201", "ofa"])
def test_first_layers_suit_the_space(name: str) -> None:
    space = load_space(name)
    codes = np.full((5, *space.code_shape), -1, dtype=np.int16)
    for unit, depths in enumerate(space.depths):
        codes[:, unit, : max(depths)] = RNG.integers(0, len(space.options), (5, max(depths)))
    if space.resolutions:
        codes[:, -1, 0] = np.arange(5)
    read = ArchitectureInput(space, None, codes)
    x = read(codes)
    assert float(x.max()) == 1
    assert read.body(12)(x[None]).shape == (1, 5, 12)
