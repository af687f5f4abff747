"""What every predictor does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from esm_host.predictors.base import Predictor
from esm_host.predictors.lookup import LookupBiasPredictor, LookupPredictor
from esm_host.predictors.mlp import MLPPredictor

PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "mlp": lambda: MLPPredictor(epochs=60, min_steps=1, seed=1),
    "lookup": LookupPredictor,
    "lookup-bias": lambda: LookupBiasPredictor(TABLE_MS),
}
RNG = np.random.default_rng(0)
X = RNG.integers(0, 5, (240, 12)).astype(np.float32)
TABLE_MS = RNG.uniform(0.01, 0.2, 12).tolist()
Y = 0.3 + X @ TABLE_MS


@pytest.fixture(params=PREDICTORS)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    return PREDICTORS[request.param]()


def test_learns_an_additive_latency(predictor: Predictor) -> None:
    predicted = predictor.fit(X[:200], Y[:200]).predict(X[200:])
    assert predicted.shape == (40,)
    assert np.mean(np.abs(predicted / Y[200:] - 1)) < 0.05


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_microseconds_and_seconds_are_learned_alike(predictor: Predictor, unit: float) -> None:
    predicted = predictor.fit(X[:200], unit * Y[:200]).predict(X[200:])
    assert np.mean(np.abs(predicted / (unit * Y[200:]) - 1)) < 0.05


def test_samples_without_weight_do_not_count(predictor: Predictor) -> None:
    wrong = np.arange(200) % 4 == 0
    y = np.where(wrong, 10 * Y[:200], Y[:200])
    predicted = predictor.fit(X[:200], y, sample_weight=~wrong).predict(X[200:])
    assert np.mean(np.abs(predicted / Y[200:] - 1)) < 0.06


def test_only_ratios_of_weights_matter(predictor: Predictor) -> None:
    first = predictor.fit(X, Y).predict(X)
    np.testing.assert_allclose(predictor.fit(X, Y, np.full(240, 7.0)).predict(X), first, rtol=1e-4)


@pytest.mark.parametrize(
    "weights", [np.ones(239), -np.ones(240), np.zeros(240), np.full(240, np.nan)]
)
def test_bad_weights_are_refused(predictor: Predictor, weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weights"):
        predictor.fit(X, Y, sample_weight=weights)


def test_same_seed_same_predictor(predictor: Predictor) -> None:
    first = predictor.fit(X, Y).predict(X)
    again = type(predictor)(**predictor.get_params()).fit(X, Y).predict(X)
    np.testing.assert_array_equal(first, again)


def test_fitted_together_each_learns_from_its_own(predictor: Predictor) -> None:
    """One of them something else than the others, and from fewer samples."""
    params = predictor.get_params()
    members = [type(predictor)(**params) for _ in range(3)]
    type(predictor).fit_all(
        members, [(X[:200], Y[:200]), (X[:170], 3 * Y[:170]), (X[:200], Y[:200])]
    )
    for member, truth in zip(members, (Y, 3 * Y, Y), strict=True):
        predicted = member.predict(X[200:])
        assert np.mean(np.abs(predicted / truth[200:] - 1)) < 0.05
    alone = predictor.fit(X[:200], Y[:200]).predict(X[200:])
    np.testing.assert_allclose(members[0].predict(X[200:]), alone, rtol=1e-3)


def test_fitting_leaves_its_arguments_alone(predictor: Predictor) -> None:
    x, y = X.copy(), Y.copy()
    predictor.fit(x, y)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


def test_one_sample_and_constant_columns(predictor: Predictor) -> None:
    assert predictor.fit(X[:1], Y[:1]).predict(X[:1])[0] == pytest.approx(Y[0], rel=0.1)
    constant = np.ones((20, 12), np.float32)
    assert predictor.fit(constant, np.full(20, 2.0)).predict(constant)[0] == pytest.approx(2, 0.05)


def test_nothing_to_predict(predictor: Predictor) -> None:
    assert predictor.fit(X, Y).predict(X[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:0], Y[:0], "latencies"),
        (X, Y[:-1], "latencies"),
        (X[0], Y[:1], "table"),
        (X, np.where(np.arange(240) == 3, np.nan, Y), "positive, finite"),
        (X, np.where(np.arange(240) == 3, -1, Y), "positive, finite"),
        (np.where(X == 4, np.inf, X), Y, "finite"),
    ],
)
def test_bad_data_is_refused(
    predictor: Predictor, x: np.ndarray, y: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.fit(x, y)


def test_predicting_needs_fitting_and_the_same_width(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="call fit first"):
        predictor.predict(X)
    predictor.fit(X, Y)
    with pytest.raises(ValueError, match="11 columns; fitted on 12"):
        predictor.predict(X[:, :11])


def test_get_params_makes_an_equal_one(predictor: Predictor) -> None:
    params = predictor.get_params()
    assert type(predictor)(**params).get_params() == params


def test_mlp_is_the_papers() -> None:
    predictor = MLPPredictor(epochs=1, min_steps=1).fit(X, Y)
    shapes = [tuple(p.shape) for p in predictor.network_.parameters()]
    assert shapes[::2] == [(64, 12), (64, 64), (64, 64), (1, 64)]
    assert (predictor.learning_rate, predictor.weight_decay) == (0.01, 1e-4)


def test_mlp_saved_and_as_onnx_predicts_the_same(tmp_path: Path) -> None:
    predictor = MLPPredictor(epochs=20, min_steps=1).fit(X, Y)
    expected = predictor.predict(X)
    predictor.save(tmp_path / "p.pt")
    np.testing.assert_array_equal(MLPPredictor.load(tmp_path / "p.pt").predict(X), expected)
    data = predictor.to_onnx()
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (got,) = session.run(["latency_ms"], {"encoding": X})
    np.testing.assert_allclose(got, expected, rtol=1e-5)
