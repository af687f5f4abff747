"""The predictor that chooses by itself."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from esm_host.encoding import make_encoder
from esm_host.encoding.base import Layout
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.predictors import make_predictor
from esm_host.predictors.auto import AutoPredictor, weigh
from esm_host.predictors.design import Design
from esm_host.predictors.process import Process
from esm_host.predictors.readout import evaluate
from esm_host.predictors.regression import regress
from esm_models.spaces import load_space

SPACE = load_space("fbnet")
ENCODER = make_encoder("views", SPACE)


def draw(n: int, seed: int, noise: float = 0.02) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Encodings, and latencies that the graphs' costs explain but for noise."""
    rng = np.random.default_rng(seed)
    codes = np.full((n, *SPACE.code_shape), -1, dtype=np.int16)
    for unit, (depth,) in enumerate(SPACE.depths):
        codes[:, unit, :depth] = rng.integers(len(SPACE.options), size=(n, depth))
    x = ENCODER.encode_codes(codes)
    column = {name: number for number, name in enumerate(ENCODER.columns)}
    mflops, operators = x[:, column["all.mflops"]], x[:, column["all.operators"]]
    latency_ms = 0.5 + 0.02 * mflops + 0.01 * operators + 0.3 * np.sqrt(mflops)
    return x, latency_ms * np.exp(noise * rng.standard_normal(n))


TEST_X, TEST_MS = draw(500, 99)


@pytest.mark.parametrize("n", [10, 60, 200])
def test_few_samples_suffice_where_costs_explain_latency(n: int) -> None:
    x, latency_ms = draw(n, 1)
    auto = AutoPredictor(ENCODER.layout).fit(x, latency_ms)
    one_hot = slice(*ENCODER.layout.groups["operations"])
    ridge = make_predictor("ridge", make_encoder("operation-one-hot", SPACE))
    ridge.fit(x[:, one_hot], latency_ms)
    ours = accuracy_percent(TEST_MS, auto.predict(TEST_X))
    assert ours > accuracy_percent(TEST_MS, ridge.predict(TEST_X[:, one_hot]))
    assert ours > 96


def test_intervals_hold_their_share() -> None:
    """Over several sets of samples, since one set's intervals are all too wide or too narrow."""
    inside: dict[float, list[float]] = {0.5: [], 0.9: []}
    for seed in range(8):
        auto = AutoPredictor(ENCODER.layout, seed).fit(*draw(30, seed, noise=0.1))
        x, latency_ms = draw(300, 100 + seed, noise=0.1)
        for coverage, shares in inside.items():
            low_ms, high_ms = auto.predict_interval(x, coverage)
            assert (low_ms < auto.predict(x)).all()
            shares.append(float(np.mean((low_ms <= latency_ms) & (latency_ms <= high_ms))))
    for coverage, shares in inside.items():
        assert np.mean(shares) == pytest.approx(coverage, abs=0.09)


def test_intervals_of_nothing_and_wrong_ones() -> None:
    auto = AutoPredictor(ENCODER.layout)
    with pytest.raises(ValueError, match="call fit first"):
        auto.predict_interval(TEST_X)
    auto.fit(TEST_X[:5], TEST_MS[:5])
    for coverage in (0, 1, 90, float("nan")):
        with pytest.raises(ValueError, match="above 0 and below 1"):
            auto.predict_interval(TEST_X, coverage)
    with pytest.raises(ValueError, match="columns; fitted on"):
        auto.predict_interval(TEST_X[:, 1:])


@pytest.mark.parametrize("n", [1, 2, 40, 300])
def test_as_onnx_it_predicts_the_same(n: int) -> None:
    auto = AutoPredictor(ENCODER.layout).fit(TEST_X[:n], TEST_MS[:n])
    data = auto.to_onnx()
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (got,) = session.run(["latency_ms"], {"encoding": TEST_X})
    np.testing.assert_allclose(got, auto.predict(TEST_X), rtol=2e-5)


def test_the_best_candidate_gets_the_weight_and_equal_ones_share_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(200)
    good, bad = truth + 0.1 * rng.standard_normal(200), truth + rng.standard_normal(200)
    assert weigh(truth, np.stack([good, bad]))[0] > 0.99
    np.testing.assert_allclose(weigh(truth, np.stack([good, good])), 0.5)
    np.testing.assert_allclose(weigh(truth, np.stack([truth, truth, bad])), [0.5, 0.5, 0])
    few = weigh(truth[:3], np.stack([truth[:3] + 1, truth[:3] + 1.2]))
    assert 0.5 < few[0] < 0.7  # three samples decide little


def fitted(n: int, smooth: list[str], target: str = "log") -> Process:
    x, latency_ms = draw(n, 3)
    process = Process(list(ENCODER.layout.groups), smooth, target)
    process.fit(Design.of(x, ENCODER.layout, smooth), x, latency_ms, np.ones(n))
    return process


def kernel_of(process: Process, left: NDArray[np.float32], right: NDArray[np.float32]) -> Any:
    """Covariance of what a process says, by its definition."""
    design, kernels = process.design, process.kernels_
    one, other = design.inputs(left), design.inputs(right)
    total = np.full((len(one), len(other)), 1.0)
    for name, log_variance in kernels.linear.items():
        at = design.groups[name]
        total += np.exp(log_variance) * one[:, at] @ other[:, at].T
    for name, (log_variance, length) in kernels.smooth.items():
        at = design.groups[name]
        distance = ((one[:, None, at] - other[:, at]) ** 2).sum(axis=2)
        total += np.exp(log_variance - distance / (2 * np.exp(2 * length)))
    return total


@pytest.mark.parametrize("target", ["log", "raw"])
def test_with_every_sample_an_inducing_point_it_is_the_whole_process(target: str) -> None:
    x, _ = draw(60, 3)
    process = fitted(60, ["operations", "counts"], target)
    noise = np.diag(process.noise_ * process.variance_)
    cross = kernel_of(process, TEST_X, x)
    whole = kernel_of(process, x, x) + noise
    expected = cross @ np.linalg.solve(whole, process.targets_)
    own = np.diag(kernel_of(process, TEST_X[:50], TEST_X[:50]))
    variance = own - (cross[:50] * np.linalg.solve(whole, cross[:50].T).T).sum(axis=1)
    (got,) = evaluate([process], [True], TEST_X)
    np.testing.assert_allclose(got[:, 0], expected, atol=1e-3)
    drawn = got[:50, 1]
    assert np.mean(drawn / variance) == pytest.approx(1, abs=0.1)
    assert np.std(drawn / variance) < 0.3  # 18 % for so many draws


def test_left_out_predictions_are_those_of_a_process_without_the_sample() -> None:
    x, _ = draw(12, 3)
    process = fitted(12, ["operations"])
    means, stds = process.left_out_
    for row in (0, 7):
        others = np.arange(12) != row
        whole = kernel_of(process, x[others], x[others])
        whole += np.diag(process.noise_ * process.variance_[others])
        cross = kernel_of(process, x[[row]], x[others])[0]
        mean = cross @ np.linalg.solve(whole, process.targets_[others])
        assert means[row] == pytest.approx(mean * process.scale_ + process.mean_, abs=1e-4)
        own = kernel_of(process, x[[row]], x[[row]])[0, 0] + process.noise_
        variance = own - cross @ np.linalg.solve(whole, cross)
        assert stds[row] == pytest.approx(np.sqrt(variance) * process.scale_, rel=1e-2)


@pytest.mark.parametrize(("samples", "columns"), [(30, 80), (80, 30)])
def test_both_forms_of_a_regression_are_the_same(samples: int, columns: int) -> None:
    """More columns than samples, or fewer: one is solved as the other is defined."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((samples, columns))
    targets, noise = rng.standard_normal(samples), rng.uniform(0.5, 2, samples)
    found = regress(features, targets, noise)
    precision = features.T @ (features / noise[:, None]) + np.eye(columns)
    mean = np.linalg.solve(precision, features.T @ (targets / noise))
    np.testing.assert_allclose(found.weights[:, 0], mean, atol=1e-8)
    whole = np.linalg.inv(features @ features.T + np.diag(noise))
    left_out = targets - whole @ targets / np.diag(whole)
    np.testing.assert_allclose(found.left_out_mean, left_out, atol=1e-8)
    np.testing.assert_allclose(found.left_out_std**2, 1 / np.diag(whole), rtol=1e-8)


def test_many_samples_take_fewer_inducing_points_and_lose_little() -> None:
    x, latency_ms = draw(1200, 4)
    auto = AutoPredictor(ENCODER.layout).fit(x, latency_ms)
    assert accuracy_percent(TEST_MS, auto.predict(TEST_X)) > 97.5


def test_linear_kernels_make_a_linear_function() -> None:
    process = fitted(60, [])
    constant, weights = process.linear_function()
    (got,) = evaluate([process], [False], TEST_X)
    np.testing.assert_allclose(constant + TEST_X @ weights, process.in_log(got)[0], rtol=1e-4)
    with pytest.raises(ValueError, match="smooth"):
        fitted(60, ["operations"]).linear_function()


def test_one_architecture_is_predicted_alone_as_among_many() -> None:
    auto = AutoPredictor(ENCODER.layout).fit(TEST_X[:100], TEST_MS[:100])
    many = np.repeat(TEST_X, 20, axis=0)
    np.testing.assert_allclose(auto.predict(many)[::20], auto.predict(TEST_X), rtol=1e-5)
    low_ms, high_ms = auto.predict_interval(many)
    alone = auto.predict_interval(TEST_X[7:8])
    np.testing.assert_allclose([low_ms[140], high_ms[140]], np.ravel(alone), rtol=1e-5)


def test_uncertain_samples_count_less() -> None:
    x, latency_ms = draw(60, 5)
    wrong = np.arange(60) % 3 == 0
    weights = np.where(wrong, 0.01, 1.0)
    auto = AutoPredictor(ENCODER.layout)
    weighted = auto.fit(x, np.where(wrong, 1.5 * latency_ms, latency_ms), weights).predict(TEST_X)
    equal = auto.fit(x, np.where(wrong, 1.5 * latency_ms, latency_ms)).predict(TEST_X)
    assert accuracy_percent(TEST_MS, weighted) > accuracy_percent(TEST_MS, equal) + 3


def test_a_few_wrong_samples_do_little_harm() -> None:
    """Something else held the device up: one in twenty took three times as long."""
    x, latency_ms = draw(100, 6)
    held_up = np.where(np.arange(100) % 20 == 0, 3 * latency_ms, latency_ms)
    clean, spoilt = (AutoPredictor(ENCODER.layout).fit(x, y) for y in (latency_ms, held_up))
    lost = accuracy_percent(TEST_MS, clean.predict(TEST_X))
    lost -= accuracy_percent(TEST_MS, spoilt.predict(TEST_X))
    assert lost < 0.3


def test_intervals_of_what_nobody_can_know_are_finite() -> None:
    x, latency_ms = draw(10, 7)
    latency_ms[3] *= 1e6
    low_ms, high_ms = AutoPredictor(ENCODER.layout).fit(x, latency_ms).predict_interval(TEST_X)
    assert np.isfinite([low_ms, high_ms]).all()
    assert (low_ms > 0).all()


def test_groups_are_those_of_the_columns() -> None:
    end = 0
    for first, last in ENCODER.layout.groups.values():
        assert first == end
        end = last
    assert end == len(ENCODER)
    names = [n for n in ENCODER.columns if n.startswith("total.")]
    first, last = ENCODER.layout.groups["totals"]
    assert list(ENCODER.columns[first:last]) == names


def test_without_a_layout_all_columns_are_one_group() -> None:
    plain = AutoPredictor().fit(TEST_X[:20], TEST_MS[:20]).predict(TEST_X)
    whole = AutoPredictor(Layout({"x": (0, len(ENCODER))})).fit(TEST_X[:20], TEST_MS[:20])
    np.testing.assert_allclose(plain, whole.predict(TEST_X))
