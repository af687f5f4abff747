"""Accuracy, per bin, on samples that the predictor has not seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_host.bins import DepthBins
from esm_host.evaluation.accuracy import accuracy_by_bin, accuracy_percent, out_of_fold


def test_accuracy_is_100_minus_mape() -> None:
    assert accuracy_percent(np.array([1.0, 2.0]), np.array([1.1, 1.8])) == pytest.approx(90)
    assert accuracy_percent(np.array([1.0]), np.array([4.0])) == pytest.approx(-200)
    assert np.isnan(accuracy_percent(np.zeros(0), np.zeros(0)))


def test_bins_are_judged_apart_and_empty_ones_are_unknown() -> None:
    measured = np.array([1.0, 1.0, 1.0])
    predicted = np.array([1.0, 1.2, 0.9])
    low, middle, high = accuracy_by_bin(
        np.array([4, 5, 12]), measured, predicted, DepthBins(4, 12, 3)
    )
    assert (low.depth_min, low.depth_max, low.samples) == (4, 6, 2)
    assert low.accuracy_percent == pytest.approx(90)
    assert middle.samples == 0
    assert np.isnan(middle.accuracy_percent)
    assert high.accuracy_percent == pytest.approx(90)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=60), st.integers(2, 6))
def test_every_sample_is_predicted_once_by_who_has_not_seen_it(
    strata: list[int], folds: int
) -> None:
    seen: list[int] = []
    sizes: list[np.ndarray] = []

    def fit_predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        assert not set(train.tolist()) & set(test.tolist())
        assert len(train) + len(test) == len(strata)
        seen.extend(test.tolist())
        sizes.append(np.bincount(np.array(strata)[test], minlength=4))
        return test.astype(float)

    predicted = out_of_fold(fit_predict, np.array(strata), folds, seed=0)
    np.testing.assert_array_equal(predicted, np.arange(len(strata)))
    assert sorted(seen) == list(range(len(strata)))
    spread = np.max(sizes, axis=0) - np.min(sizes, axis=0)
    assert spread.max() <= 1, "every fold has its share of every bin"
