"""The predictor that chooses by itself."""

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
from esm_host.predictors.candidates import FoldNetworks
from esm_host.predictors.multi_kernel import MultiKernelGP
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
def test_as_onnx_it_predicts_the_same(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esm_host.predictors.auto.NETWORKS_FROM", 300)
    auto = AutoPredictor(ENCODER.layout).fit(TEST_X[:n], TEST_MS[:n])
    assert ("networks" in auto.candidates_) == (n == 300)
    data = auto.to_onnx()
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (got,) = session.run(["latency_ms"], {"encoding": TEST_X})
    np.testing.assert_allclose(got, auto.predict(TEST_X), rtol=1e-5)


def test_networks_of_other_folds_differ_in_their_seeds_alone() -> None:
    networks = [FoldNetworks(seed) for seed in range(2)]
    for each in networks:
        each.fit(TEST_X[:60], TEST_MS[:60], np.ones(60))
    params = [member.get_params() for each in networks for member in each.members_]
    seeds = [found.pop("seed") for found in params]
    assert len(set(seeds)) == len(seeds)
    assert all(found == params[0] for found in params)


def test_the_best_candidate_gets_the_weight_and_equal_ones_share_it() -> None:
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(200)
    good, bad = truth + 0.1 * rng.standard_normal(200), truth + rng.standard_normal(200)
    assert weigh(truth, np.stack([good, bad]))[0] > 0.99
    np.testing.assert_allclose(weigh(truth, np.stack([good, good])), 0.5)
    np.testing.assert_allclose(weigh(truth, np.stack([truth, truth, bad])), [0.5, 0.5, 0])
    few = weigh(truth[:3], np.stack([truth[:3] + 1, truth[:3] + 1.2]))
    assert 0.5 < few[0] < 0.7  # three samples decide little


def test_left_out_predictions_are_those_of_a_process_without_the_sample() -> None:
    x, latency_ms = draw(12, 3)
    process = MultiKernelGP(ENCODER.layout, smooth=["operations"]).fit(x, latency_ms)
    means, stds = process.left_out()
    for row in (0, 7):
        others = np.arange(12) != row
        inputs = [each[others] for each in process.inputs_]
        kernel = process._kernel(inputs, inputs) + np.diag(process._noise()[others])
        cross = process._kernel([each[[row]] for each in process.inputs_], inputs)[0]
        assert means[row] == pytest.approx(
            cross @ np.linalg.solve(kernel, process.targets_[others]), abs=1e-6
        )
        own = process._kernel(*[[each[[row]] for each in process.inputs_]] * 2)[0, 0]
        variance = own + process._noise()[row] - cross @ np.linalg.solve(kernel, cross)
        assert stds[row] ** 2 == pytest.approx(variance, rel=1e-3)


def test_linear_kernels_make_a_linear_function() -> None:
    x, latency_ms = draw(60, 3)
    predicted = MultiKernelGP(ENCODER.layout).fit(x, latency_ms).predict(x)
    constant, weights = MultiKernelGP(ENCODER.layout).fit_linear(x, latency_ms)
    np.testing.assert_allclose(np.exp(constant + x @ weights), predicted, rtol=1e-6)
    with pytest.raises(ValueError, match="smooth"):
        MultiKernelGP(ENCODER.layout, smooth=["operations"]).fit_linear(x, latency_ms)


def test_uncertain_samples_count_less() -> None:
    x, latency_ms = draw(60, 5)
    wrong = np.arange(60) % 3 == 0
    weights = np.where(wrong, 0.01, 1.0)
    auto = AutoPredictor(ENCODER.layout)
    weighted = auto.fit(x, np.where(wrong, 1.5 * latency_ms, latency_ms), weights).predict(TEST_X)
    equal = auto.fit(x, np.where(wrong, 1.5 * latency_ms, latency_ms)).predict(TEST_X)
    assert accuracy_percent(TEST_MS, weighted) > accuracy_percent(TEST_MS, equal) + 3


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
