"""Expected errors of bins, from errors of chosen samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.evaluation.expected_error import ExpectedErrors, expected_errors

BINS = 5


def drawn(seed: int, n: int, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors, their standard deviations, which are off by a ratio of each bin, and their bins."""
    rng = np.random.default_rng(seed)
    bins = np.concatenate([np.arange(BINS), rng.integers(BINS, size=n - BINS)])
    stds = rng.uniform(0.01, 0.1, n)
    return rng.normal(0, stds * ratio[bins]), stds, bins


def expected(seed: int, n: int, ratio: np.ndarray, confidence: float = 0.9) -> ExpectedErrors:
    return expected_errors(*drawn(seed, n, ratio), np.full(BINS, 0.05), confidence)


def test_chosen_samples_with_large_errors_do_not_make_a_bin_worse() -> None:
    typical = expected(0, 5000, np.ones(BINS)).estimate
    errors, stds, bins = drawn(0, 5000, np.ones(BINS))
    hard = stds > 0.06
    chosen = expected_errors(errors[hard], stds[hard], bins[hard], np.full(BINS, 0.05), 0.9)
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
    errors, stds, bins = drawn(0, 200, np.ones(BINS))
    there = bins != 2
    found = expected_errors(errors[there], stds[there], bins[there], np.full(BINS, 0.05), 0.9)
    assert found.estimate[2] == pytest.approx(found.estimate.mean(), rel=0.2)
    assert found.upper[2] == found.upper.max()
