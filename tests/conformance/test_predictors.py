"""What every predictor does.

Each learns architectures of NAS-Bench-201 in the encoding that it is used with. Their latencies
are made up: a cost per operation, and a little more where heavy operations meet.
"""

import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from esm_host.encoding import make_encoder
from esm_host.encoding.base import Encoder
from esm_host.errors import UsageError
from esm_host.predictors import PREDICTORS, entry, make_predictor, predictor_class
from esm_host.predictors.base import JointPredictor, Predictor
from esm_host.sampling.informative import posterior_features
from esm_models.spaces import load_space
from esm_protos.text import install

SPACE = load_space("nasbench201")
RNG = np.random.default_rng(0)
CODES = np.stack(np.unravel_index(RNG.permutation(5**6)[:240], (5,) * 6), axis=-1, dtype=np.int16)[
    :, None
]
TRAIN, TEST = slice(0, 200), slice(200, 240)
COST_MS = {
    "none": 0.0,
    "skip_connect": 0.05,
    "nor_conv_1x1": 0.3,
    "nor_conv_3x3": 0.6,
    "avg_pool_3x3": 0.2,
}
PER_BLOCK_MS = np.array([COST_MS[option.label] for option in SPACE.options])[CODES[:, 0]]
HEAVY = (PER_BLOCK_MS >= 0.3).sum(axis=1)
Y = 1 + PER_BLOCK_MS.sum(axis=1) + 0.01 * HEAVY * (HEAVY - 1)
# These latencies are of operations: a table of graphs' parts, which lack dead ends, is not.
ENCODING = {"lookup-bias": "operation-one-hot"}
TABLE_MS = tuple(COST_MS[option.label] for option in SPACE.options) * 6

# What a predictor needs, and what makes slow ones quick.
QUICK: dict[str, dict[str, Any]] = {
    "lookup-bias": {"table_ms": TABLE_MS},
    "mlp": {"epochs": 60, "min_steps": 1},
    "mlp-esm": {"epochs": 40, "min_steps": 1},
    "gp": {"most": 100},
    "sparse-gp": {"inducing": 30, "steps": 40},
    "forest": {"trees": 50},
    "xgboost": {"trees": 200, "learning_rate": 0.2},
    "lightgbm": {"trees": 150, "learning_rate": 0.1},
    "ngboost": {"trees": 30, "learning_rate": 0.3},
    "mlp-small": {"epochs": 15, "min_steps": 1},
    "mlp-large": {"epochs": 25, "min_steps": 1},
    "bananas": {"min_steps": 200},
    "nao": {"min_steps": 100},
    "bohamiann": {"burn_in": 200, "steps": 300},
    "gcn": {"min_steps": 200},
    "bonas": {"min_steps": 200},
}
# How far off they may be on average where 0.05 is too strict.
TOLERANCE: dict[str, float] = {
    "forest": 0.11,
    "ngboost": 0.07,
    "bananas": 0.1,  # paths do not tell which blocks they are of
}
# Of those that need one, the library that may be missing.
LIBRARY = {
    "sparse-gp": "gpytorch",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "ngboost": "ngboost",
}
OPTIONAL = ("gpytorch", "lightgbm", "ngboost", "xgboost")


# Those that take seconds for every fit have a command of their own.
SLOW = ("sparse-gp", "ngboost", "bohamiann", "bananas", "gcn", "bonas", "nao")


BUILTIN = [
    pytest.param(name, marks=[pytest.mark.predictors] * (name in SLOW)) for name in PREDICTORS
]


JOINT = ["auto"]


def encoding_of(plugin: str) -> str:
    return ENCODING.get(plugin) or entry(plugin).encoding


@cache
def encoder_of(encoding: str) -> Encoder:
    return make_encoder(encoding, SPACE)


@pytest.fixture
def predictor(plugin: str) -> Predictor:
    encoder = encoder_of(encoding_of(plugin))
    return make_predictor(plugin, encoder, seed=1, **QUICK.get(plugin, {}))


@cache
def encodings(encoding: str) -> np.ndarray:
    x = encoder_of(encoding).encode_codes(CODES)
    x.setflags(write=False)
    return x


@pytest.fixture
def x(plugin: str) -> np.ndarray:
    return encodings(encoding_of(plugin))


@cache
def _fitted(plugin: str) -> Predictor:
    encoding = encoding_of(plugin)
    predictor = make_predictor(plugin, encoder_of(encoding), seed=1, **QUICK.get(plugin, {}))
    return predictor.fit(encodings(encoding)[TRAIN], Y[TRAIN])


@pytest.fixture
def fitted(plugin: str) -> Predictor:
    """Predictor fitted once on the training samples, for tests that only predict."""
    return _fitted(plugin)


@pytest.fixture
def tolerance(plugin: str) -> float:
    return TOLERANCE.get(plugin, 0.05)


def error(predicted: np.ndarray, truth: np.ndarray) -> float:
    assert predicted.shape == truth.shape
    assert np.isfinite(predicted).all()
    return float(np.mean(np.abs(predicted / truth - 1)))


def test_predicting_the_mean_is_not_good_enough(tolerance: float) -> None:
    assert error(np.full(40, Y[TRAIN].mean()), Y[TEST]) > 1.5 * tolerance


# What they learn


def test_learns_what_operations_cost(fitted: Predictor, x: np.ndarray, tolerance: float) -> None:
    predicted = fitted.predict(x[TEST])
    assert predicted.dtype == np.float64
    assert error(predicted, Y[TEST]) < tolerance


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_microseconds_and_seconds_are_learned_alike(
    predictor: Predictor, x: np.ndarray, tolerance: float, unit: float
) -> None:
    predicted = predictor.fit(x[TRAIN], unit * Y[TRAIN]).predict(x[TEST])
    assert error(predicted, unit * Y[TEST]) < tolerance


def test_same_seed_same_predictor(fitted: Predictor, x: np.ndarray) -> None:
    again = type(fitted)(**fitted.get_params()).fit(x[TRAIN], Y[TRAIN])
    np.testing.assert_array_equal(fitted.predict(x), again.predict(x))


def test_fitted_again_it_forgets_what_it_knew(predictor: Predictor, x: np.ndarray) -> None:
    fresh = clone(predictor).fit(x[:50], Y[:50]).predict(x)
    again = predictor.fit(x[TRAIN], 5 * Y[TRAIN]).fit(x[:50], Y[:50]).predict(x)
    np.testing.assert_array_equal(again, fresh)


def test_one_by_one_as_many_at_once(fitted: Predictor, x: np.ndarray) -> None:
    alone = np.concatenate([fitted.predict(row[None]) for row in x[TEST]])
    np.testing.assert_allclose(alone, fitted.predict(x[TEST]), rtol=1e-4)


def test_fitted_together_each_learns_from_its_own(
    predictor: Predictor, fitted: Predictor, x: np.ndarray, tolerance: float
) -> None:
    """One of them something else than the others, and from fewer samples."""
    members = [clone(predictor) for _ in range(3)]
    type(predictor).fit_all(
        members, [(x[TRAIN], Y[TRAIN]), (x[:170], 3 * Y[:170]), (x[TRAIN], Y[TRAIN])]
    )
    for member, factor in zip(members, (1, 3, 1), strict=True):
        assert error(member.predict(x[TEST]), factor * Y[TEST]) < tolerance
    alone = fitted.predict(x[TEST])
    # A learning rate that never falls leaves rounding its say.
    steady = getattr(predictor, "cosine", True)
    np.testing.assert_allclose(members[0].predict(x[TEST]), alone, rtol=1e-3 if steady else 0.1)


# Weights


def test_samples_without_weight_do_not_count(
    predictor: Predictor, x: np.ndarray, tolerance: float
) -> None:
    if not predictor.uses_weights:
        pytest.skip("does not use weights, and says so")
    wrong = np.arange(200) % 4 == 0
    y = np.where(wrong, 10 * Y[TRAIN], Y[TRAIN])
    predicted = predictor.fit(x[TRAIN], y, sample_weight=~wrong).predict(x[TEST])
    assert error(predicted, Y[TEST]) < 1.2 * tolerance


def test_only_ratios_of_weights_matter(
    predictor: Predictor, fitted: Predictor, x: np.ndarray
) -> None:
    again = predictor.fit(x[TRAIN], Y[TRAIN], np.full(200, 7.0)).predict(x)
    np.testing.assert_allclose(again, fitted.predict(x), rtol=1e-4)


@pytest.mark.parametrize(
    "weights", [np.ones(239), -np.ones(240), np.zeros(240), np.full(240, np.nan)]
)
def test_bad_weights_are_refused(predictor: Predictor, x: np.ndarray, weights: np.ndarray) -> None:
    with pytest.raises(ValueError, match="weights"):
        predictor.fit(x, Y, sample_weight=weights)


# Uncertainty


def test_says_how_sure_it_is_or_that_it_cannot(fitted: Predictor, x: np.ndarray) -> None:
    if not fitted.knows_std:
        with pytest.raises(ValueError, match="has no standard deviation"):
            fitted.predict(x[TEST], return_std=True)
        return
    predicted, std_ms = fitted.predict(x[TEST], return_std=True)
    np.testing.assert_allclose(predicted, fitted.predict(x[TEST]), rtol=1e-4)
    assert std_ms.shape == (40,)
    assert np.isfinite(std_ms).all()
    assert (std_ms > 0).all()
    assert all(part.shape == (0,) for part in fitted.predict(x[:0], return_std=True))


def test_uncertainty_has_the_unit_of_the_latencies(predictor: Predictor, x: np.ndarray) -> None:
    if not predictor.knows_std:
        pytest.skip("has no standard deviation")
    noisy = Y * np.random.default_rng(1).normal(1, 0.05, len(Y))  # else there is no uncertainty
    _, std_ms = predictor.fit(x[TRAIN], noisy[TRAIN]).predict(x[TEST], return_std=True)
    _, std_us = predictor.fit(x[TRAIN], 1e3 * noisy[TRAIN]).predict(x[TEST], return_std=True)
    assert std_us.mean() / std_ms.mean() == pytest.approx(1e3, rel=0.2)


# Data of all kinds


def test_fitting_leaves_its_arguments_alone(predictor: Predictor, x: np.ndarray) -> None:
    own_x, y, weights = x.copy(), Y.copy(), np.linspace(0.5, 1.5, 240)
    predictor.fit(own_x, y, weights).predict(own_x)
    np.testing.assert_array_equal(own_x, x)
    np.testing.assert_array_equal(y, Y)
    np.testing.assert_array_equal(weights, np.linspace(0.5, 1.5, 240))


def test_one_sample(predictor: Predictor, x: np.ndarray) -> None:
    predicted = predictor.fit(x[:1], Y[:1]).predict(x)
    assert np.isfinite(predicted).all()
    assert predicted[0] == pytest.approx(Y[0], rel=0.1)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_few_samples(predictor: Predictor, x: np.ndarray, n: int) -> None:
    assert error(predictor.fit(x[:n], Y[:n]).predict(x), Y) < 0.5
    if predictor.knows_std:
        _, std_ms = predictor.predict(x, return_std=True)
        assert np.isfinite(std_ms).all()
        assert (std_ms > 0).all()


def test_constant_latencies(predictor: Predictor, x: np.ndarray) -> None:
    predicted = predictor.fit(x[:40], np.full(40, 2.0)).predict(x)
    np.testing.assert_allclose(predicted, 2, rtol=0.05)


def test_all_the_same_architecture(predictor: Predictor, x: np.ndarray) -> None:
    """No column varies, and the latencies differ as measurements do."""
    same = np.repeat(x[:1], 20, axis=0)
    assert predictor.fit(same, np.full(20, 2.0)).predict(same)[0] == pytest.approx(2, 0.05)
    noisy = 2 + np.tile([-0.2, 0.2], 10)
    predicted = predictor.fit(same, noisy).predict(x)
    assert np.isfinite(predicted).all()
    assert predicted[0] == pytest.approx(2, 0.06)


def test_architectures_measured_twice(
    predictor: Predictor, x: np.ndarray, tolerance: float
) -> None:
    twice = np.repeat(x[TRAIN], 2, axis=0)
    noisy = np.repeat(Y[TRAIN], 2) * np.tile([0.95, 1.05], 200)
    predicted = predictor.fit(twice, noisy).predict(x[TEST])
    assert error(predicted, Y[TEST]) < tolerance + 0.02


def test_nothing_to_predict(predictor: Predictor, x: np.ndarray) -> None:
    assert predictor.fit(x[:20], Y[:20]).predict(x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: (x[:0], Y[:0]), "latencies"),
        (lambda x: (x, Y[:-1]), "latencies"),
        (lambda x: (x[0], Y[:1]), "table"),
        (lambda x: (x, np.where(np.arange(240) == 3, np.nan, Y)), "positive, finite"),
        (lambda x: (x, np.where(np.arange(240) == 3, np.inf, Y)), "positive, finite"),
        (lambda x: (x, np.where(np.arange(240) == 3, -1, Y)), "positive, finite"),
        (lambda x: (x, np.where(np.arange(240) == 3, 0, Y)), "positive, finite"),
        (lambda x: (np.where(x == x.max(), np.inf, x), Y), "finite"),
        (lambda x: (np.where(x == x.max(), np.nan, x), Y), "finite"),
    ],
)
def test_bad_data_is_refused(predictor: Predictor, x: np.ndarray, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor.fit(*bad(x))


def test_predicting_needs_fitting_and_the_same_width(predictor: Predictor, x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="call fit first"):
        predictor.predict(x)
    predictor.fit(x[:20], Y[:20])
    width = x.shape[1]
    with pytest.raises(ValueError, match=f"{width - 1} columns; fitted on {width}"):
        predictor.predict(x[:, :-1])
    with pytest.raises(ValueError, match=f"{width + 1} columns; fitted on {width}"):
        predictor.predict(np.hstack([x, x[:, :1]]))
    with pytest.raises(ValueError, match="finite"):
        predictor.predict(np.full_like(x, np.nan))


# Estimators of scikit-learn, by name


def test_get_params_makes_an_equal_one(predictor: Predictor) -> None:
    params = predictor.get_params()
    assert type(predictor)(**params).get_params() == params
    assert clone(predictor).get_params() == params


def test_a_clone_is_not_fitted(predictor: Predictor, x: np.ndarray) -> None:
    with pytest.raises(ValueError, match="call fit first"):
        clone(predictor.fit(x[:20], Y[:20])).predict(x)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where no library is optional, none is loaded."""
    module = predictor_class(name).__module__
    for loaded in [m for m in sys.modules if m.startswith(tuple(f"{o}." for o in OPTIONAL))]:
        monkeypatch.delitem(sys.modules, loaded)
    for library in OPTIONAL:
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, module)
    package, _, leaf = module.rpartition(".")
    monkeypatch.delattr(sys.modules[package], leaf)
    if name not in LIBRARY:
        assert issubclass(predictor_class(name), Predictor)
        return
    with pytest.raises(UsageError) as caught:
        predictor_class(name)
    assert str(caught.value) == (
        f"predictor '{name}' needs {LIBRARY[name]}: {install('predictors')}"
    )


def test_an_unknown_name_is_answered_with_the_known() -> None:
    with pytest.raises(UsageError, match="did you mean 'mlp'"):
        predictor_class("mpl")


# What a joint predictor knows beside


@pytest.fixture
def joint(fitted: Predictor) -> JointPredictor:
    if not isinstance(fitted, JointPredictor):
        pytest.skip("not a joint predictor")
    return fitted


def test_held_out_predictions_are_of_samples_and_worse_than_fitted_ones(
    joint: JointPredictor, x: np.ndarray, tolerance: float
) -> None:
    predicted, std = joint.held_out()
    held_out = error(predicted, Y[TRAIN])
    assert error(joint.predict(x[TRAIN]), Y[TRAIN]) <= held_out < tolerance
    assert std.shape == predicted.shape
    assert (std > 0).all()


def test_held_out_predictions_are_in_the_order_of_the_samples_and_cover_ignored_ones(
    joint: JointPredictor, x: np.ndarray, tolerance: float
) -> None:
    weights = np.ones(200)
    weights[::7] = 0
    again = clone(joint).fit(x[TRAIN], Y[TRAIN], weights)
    assert error(again.held_out()[0], Y[TRAIN]) < tolerance
    with pytest.raises(ValueError, match="not fitted yet"):
        clone(joint).held_out()


def test_what_is_known_leaves_less_variance(joint: JointPredictor, x: np.ndarray) -> None:
    features, noise = joint.joint_features(x)
    assert features.shape[0] == len(x)
    assert noise > 0
    before = (features**2).sum(axis=1)
    after = (posterior_features(features, features[TRAIN], noise) ** 2).sum(axis=1)
    assert (after <= before * (1 + 1e-9)).all()
    assert after[TRAIN].mean() < after[TEST].mean() < before[TEST].mean()
