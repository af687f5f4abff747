"""Expected errors of bins, from errors of chosen samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.evaluation.expected_error import ExpectedErrors, Predicted, expected_errors

BINS = 5
POPULATION = Predicted(np.ones(BINS), np.full(BINS, 0.05), np.arange(BINS))


def drawn(seed: int, n: int, ratio: np.ndarray) -> tuple[Predicted, np.ndarray]:
    """Predictions and their errors, whose standard deviations are off by a ratio of each bin."""
    rng = np.random.default_rng(seed)
    bins = np.concatenate([np.arange(BINS), rng.integers(BINS, size=n - BINS)])
    stds = rng.uniform(0.01, 0.1, n)
    latency_ms = np.exp(rng.normal(0, 0.3, n))
    return Predicted(latency_ms, stds, bins), rng.normal(0, stds * ratio[bins])


def some(rows: np.ndarray, samples: Predicted, errors: np.ndarray) -> ExpectedErrors:
    chosen = Predicted(samples.latency_ms[rows], samples.stds[rows], samples.bins[rows])
    return expected_errors(chosen, errors[rows], POPULATION, BINS, 0.9)


def expected(seed: int, n: int, ratio: np.ndarray, confidence: float = 0.9) -> ExpectedErrors:
    return expected_errors(*drawn(seed, n, ratio), POPULATION, BINS, confidence)


def test_chosen_samples_with_large_errors_do_not_make_a_bin_worse() -> None:
    typical = expected(0, 5000, np.ones(BINS)).estimate
    samples, errors = drawn(0, 5000, np.ones(BINS))
    chosen = some(samples.stds > 0.06, samples, errors)
    assert chosen.estimate == pytest.approx(typical, rel=0.1)
    assert typical == pytest.approx(0.05 * np.sqrt(2 / np.pi), rel=0.05)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(BINS, 100), st.floats(0.5, 0.98))
def test_bounds_are_above_estimates_and_grow_with_confidence(
    seed: int, n: int, confidence: float
) -> None:
    found = expected(seed, n, np.ones(BINS), confidence)
    surer = expected(seed, n, np.ones(BINS), confidence + 0.01)
    assert (found.upper >= found.estimate).all()
    assert (surer.upper > found.upper).all()


def test_bounds_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    kept = []
    for seed in range(200):
        ratio = np.exp(rng.normal(0, 0.15, BINS))
        kept.append(expected(seed, 60, ratio).upper >= 0.05 * ratio * np.sqrt(2 / np.pi))
    assert 0.86 <= np.mean(kept) <= 0.98


def test_a_bin_that_errs_more_is_known_by_its_own_samples() -> None:
    found = expected(0, 2000, np.array([1, 1, 1, 1, 3.0])).estimate
    assert found[4] == pytest.approx(3 * found[0], rel=0.25)


def test_a_bin_without_samples_is_judged_by_the_others() -> None:
    samples, errors = drawn(0, 200, np.ones(BINS))
    found = some(samples.bins != 2, samples, errors)
    assert found.estimate[2] == pytest.approx(found.estimate.mean(), rel=0.2)
    factors = found.upper / found.estimate
    assert factors[2] == factors.max()


def test_large_networks_that_vary_more_count_though_few_of_them_were_chosen() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.normal(0, 0.5, 4000)
    bins = rng.integers(BINS, size=4000)
    stds = np.full(4000, 0.02)
    errors = rng.normal(0, stds * np.exp(0.8 * sizes))
    everything = Predicted(np.exp(sizes), stds, bins)
    truth = [np.abs(errors[bins == number]).mean() for number in range(BINS)]
    small = sizes < rng.normal(-0.3, 0.2, 4000)
    chosen = Predicted(np.exp(sizes[small]), stds[small], bins[small])
    found = expected_errors(chosen, errors[small], everything, BINS, 0.9)
    np.testing.assert_allclose(found.estimate, truth, rtol=0.15)
    assert np.abs(errors[small]).mean() < 0.8 * np.mean(truth)
