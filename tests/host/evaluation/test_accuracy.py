"""Accuracy, per bin, on samples that the predictor has not seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_host.evaluation.accuracy import accuracy_by_bin, accuracy_percent, assign_folds
from esm_host.evaluation.cross_device import evaluate_across
from esm_host.sampling.bins import DepthBins


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


def test_predictions_for_another_device_rank_as_in_a_study() -> None:
    """Predictions that are all the same tell nothing of the order; equal measurements have none."""
    y, same = np.array([1.0, 2.0, 3.0]), np.full(3, 2.0)
    depth, seen, bins = np.full(3, 4), np.zeros(3, dtype=bool), DepthBins(4, 4, 1)
    told_nothing = evaluate_across(y, same, depth, seen, bins)
    assert (told_nothing.tau, told_nothing.spearman) == (0, 0)
    assert evaluate_across(y, 2 * y, depth, seen, bins).tau == pytest.approx(1)
    assert evaluate_across(same, y, depth, seen, bins).to_json()["spearman"] is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(2, 6))
def test_every_fold_has_its_share_of_every_bin(strata: list[int], folds: int) -> None:
    fold = assign_folds(np.array(strata), folds, seed=0)
    assert set(fold.tolist()) == set(range(min(folds, len(strata))))
    shares = [np.bincount(np.array(strata)[fold == n], minlength=4) for n in np.unique(fold)]
    assert (np.max(shares, axis=0) - np.min(shares, axis=0)).max() <= 1
