"""Choice of the most informative architectures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.sampling.informative import (
    most_informative,
    posterior_features,
    prior_features,
)


def mean_variance(features: np.ndarray, chosen: list[int]) -> float:
    """Of all rows, where these have been measured."""
    known = features[chosen]
    cross = features @ known.T
    explained = cross @ np.linalg.solve(known @ known.T + 0.05 * np.eye(len(chosen)), cross.T)
    return float((features**2).sum(axis=1).mean() - np.diagonal(explained).mean())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 12))
def test_it_is_the_greedy_choice(seed: int, count: int) -> None:
    features = np.random.default_rng(seed).normal(size=(25, 4))
    chosen: list[int] = []
    for _ in range(count):
        left = [row for row in range(25) if row not in chosen]
        chosen.append(min(left, key=lambda row: mean_variance(features, [*chosen, row])))
    assert most_informative(features, count).tolist() == chosen


def test_networks_of_all_depths_are_chosen_where_depth_varies() -> None:
    rng = np.random.default_rng(0)
    depth = rng.integers(1, 11, 300)
    blocks = (np.arange(10) < depth[:, None]) * rng.choice([1.0, 2.0], (300, 10))
    features = prior_features(blocks, {"blocks": (0, 10)})
    chosen = depth[most_informative(features, 8)]
    assert chosen.min() <= 3
    assert chosen.max() >= 9


def test_none_twice_and_no_more_than_there_are() -> None:
    chosen = most_informative(np.ones((5, 2)), 9)
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]


def test_what_takes_long_must_tell_more() -> None:
    features = np.eye(6)
    dear = np.where(np.arange(6) < 3, 100.0, 1.0)
    assert set(most_informative(features, 3, dear).tolist()) == {3, 4, 5}


def test_groups_have_the_same_say_however_wide() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 101)) * rng.uniform(0.1, 100, 101) + 5
    features = prior_features(x, {"one": (0, 1), "many": (1, 101)})
    assert (features[:, :1] ** 2).sum(axis=1).mean() == pytest.approx(0.5)
    assert (features[:, 1:] ** 2).sum(axis=1).mean() == pytest.approx(0.5)


def test_columns_that_never_vary_do_not_matter() -> None:
    x = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    features = prior_features(x, {"a": (0, 1), "b": (1, 2)})
    assert features.shape == (3, 1)
    assert prior_features(x[:1], {"a": (0, 1)}).shape == (1, 1)


def test_the_variance_is_of_what_is_not_known() -> None:
    features = np.random.default_rng(0).normal(size=(25, 4))
    left = posterior_features(features, features[[3, 7]])
    assert (left**2).sum(axis=1).mean() == pytest.approx(mean_variance(features, [3, 7]))
    again = most_informative(posterior_features(features, features[[3, 7]]), 3)
    assert again.tolist() != most_informative(features, 3).tolist()


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 40))
def test_strata_have_equal_shares(strata: list[int], count: int) -> None:
    features = np.random.default_rng(0).normal(size=(len(strata), 3))
    chosen = most_informative(features, count, strata=np.array(strata))
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(strata))
    taken = np.bincount(np.array(strata)[chosen], minlength=4)
    there = np.bincount(strata, minlength=4)
    for mine, size in zip(taken, there, strict=True):
        assert mine == size or mine >= taken.max() - 1


def test_important_rows_are_told_of_first() -> None:
    features = np.eye(6)
    importance = np.where(np.arange(6) < 3, 0.1, 1.0)
    assert set(most_informative(features, 3, importance=importance).tolist()) == {3, 4, 5}
