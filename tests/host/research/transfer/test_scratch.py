"""What is compared with few-shot learning: without sources, and without learning."""

from __future__ import annotations

import numpy as np
import pytest

from esm_host.encoding import make_encoder
from esm_host.errors import UsageError
from esm_host.predictors import make_predictor
from esm_host.research.transfer.counting import (
    FlopsPredictor,
    LayerWisePredictor,
    ParametersPredictor,
)
from esm_host.research.transfer.scratch import ScratchPredictor
from esm_host.transfer.source import Source
from esm_models.spaces import load_space

SPACE = load_space("nasbench201")
RNG = np.random.default_rng(0)
CODES = np.stack(np.unravel_index(RNG.permutation(5**6)[:200], (5,) * 6), axis=-1, dtype=np.int16)[
    :, None
]
COST_MS = np.array([0.0, 0.1, 0.3, 0.8, 1.5])
LATENCY_MS = 2 + COST_MS[CODES[:, 0]].sum(axis=1)
SOURCES = [Source("elsewhere", SPACE, CODES, 1 / LATENCY_MS)]


@pytest.mark.parametrize(
    ("predictor", "encoding", "used"),
    [
        ("auto", None, "views"),
        ("ridge", "fcc", "fcc"),
        pytest.param("gcn", None, "graph", marks=pytest.mark.predictors),
    ],
)
def test_it_is_that_predictor_and_nothing_else(
    predictor: str, encoding: str | None, used: str
) -> None:
    params = {"min_steps": 20, "epochs": 1} if predictor == "gcn" else {}
    few, rest = slice(0, 20), slice(20, 40)
    method = ScratchPredictor(predictor, encoding, params, seed=4).learn(SOURCES)
    found = method.adapt(CODES[few], LATENCY_MS[few]).predict(CODES[rest])
    encoder = make_encoder(used, SPACE)
    x = encoder.encode_codes(CODES)
    alone = make_predictor(predictor, encoder, seed=4, **params).fit(x[few], LATENCY_MS[few])
    np.testing.assert_array_equal(found, alone.predict(x[rest]))


def test_what_does_not_exist_or_fit_is_refused_early() -> None:
    with pytest.raises(UsageError, match="unknown predictor"):
        ScratchPredictor("gnc")
    with pytest.raises(UsageError, match="unknown encoding"):
        ScratchPredictor(encoding="view").learn(SOURCES)
    with pytest.raises(UsageError, match="needs graphs"):
        ScratchPredictor("gcn", "fcc").learn(SOURCES)


@pytest.mark.parametrize(
    ("cls", "measure"), [(FlopsPredictor, "mflops"), (ParametersPredictor, "mparameters")]
)
def test_counts_are_of_the_network_as_written(cls: type, measure: str) -> None:
    method = cls().learn(SOURCES).adapt(CODES[:1], LATENCY_MS[:1])
    encoder = make_encoder("cost", SPACE)
    column = encoder.columns.index(f"written.all.{measure}")
    np.testing.assert_allclose(method.predict(CODES), encoder.encode_codes(CODES)[:, column])


def test_layers_that_add_up_are_found() -> None:
    method = LayerWisePredictor().learn(SOURCES).adapt(CODES[:120], LATENCY_MS[:120])
    np.testing.assert_allclose(method.predict(CODES), LATENCY_MS, rtol=0.01)
    assert (method.table_ms_ >= 0).all()


def test_a_layer_that_was_never_measured_takes_what_all_share() -> None:
    codes = CODES[(CODES != 4).all(axis=(1, 2))][:30]
    latency_ms = 2 + COST_MS[codes[:, 0]].sum(axis=1)
    method = LayerWisePredictor().learn(SOURCES).adapt(codes, latency_ms)
    unseen = method.table_ms_[4:30:5]
    np.testing.assert_allclose(unseen, latency_ms.sum() / (7 * 30), rtol=0.02)


def test_a_layer_takes_longer_with_more_pixels() -> None:
    space = load_space("ofa")
    codes = np.full((25, *space.code_shape), -1, dtype=np.int16)
    codes[:, :5, :3] = RNG.integers(0, 9, (25, 5, 3))
    codes[:, -1, 0] = np.arange(25)
    pixels = (np.array(space.resolutions) / max(space.resolutions)) ** 2
    latency_ms = 10 * pixels
    method = LayerWisePredictor().learn([Source("a", space, codes, latency_ms)])
    predicted = method.adapt(codes[::2], latency_ms[::2]).predict(codes[1::2])
    np.testing.assert_allclose(predicted, latency_ms[1::2], rtol=0.06)
