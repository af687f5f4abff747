"""Rank correlations between devices, and what Algorithm 1 makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from esm_host.transfer.monotonicity import (
    LEAST_SHARED,
    Decision,
    RankCorrelation,
    best_proxy,
    block_order,
    correlation_matrix,
    decide,
    rank_correlation,
)


def devices(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    one = rng.uniform(1, 10, n)
    return one, one * np.exp(noise * rng.normal(size=n))


@given(st.integers(0, 1000), st.floats(0.01, 2))
def test_it_is_spearmans_and_within_its_interval(seed: int, noise: float) -> None:
    one, other = devices(30, noise, seed)
    found = rank_correlation(one, other)
    assert found.value == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    truth = spearmanr(*devices(200_000, 0.4)).statistic
    found = [rank_correlation(*devices(40, 0.4, seed)) for seed in range(400)]
    share = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.91 <= share <= 0.99


def test_more_samples_narrow_it() -> None:
    few, many = (rank_correlation(*devices(n, 0.3)) for n in (15, 150))
    assert many.high - many.low < (few.high - few.low) / 2


def test_only_what_both_have_measured_counts() -> None:
    one, other = devices(20, 0.1)
    gaps = np.where(np.arange(20) < 8, np.nan, other)
    assert rank_correlation(one, gaps) == rank_correlation(one[8:], other[8:])
    assert rank_correlation(one, gaps).samples == 12


def test_a_device_that_takes_the_same_for_all_says_nothing() -> None:
    assert rank_correlation([1, 2, 3, 4, 5], [2.0] * 5) == RankCorrelation(0.0, -1.0, 1.0, 5)


def test_equal_ranks_are_not_certain_for_ever() -> None:
    found = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert found.value == pytest.approx(1)
    assert found.high >= found.value
    assert found.low < 0.95


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "3 architectures"),
        ([1.0, 2.0], [1.0], "same architectures"),
        ([np.nan] * 6, [1.0] * 6, "0 architectures"),
    ],
)
def test_too_little_is_refused(one: list[float], other: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation(one, other)


def test_matrix_is_symmetric_and_knows_what_it_cannot_know() -> None:
    one, other = devices(30, 0.2)
    third = np.where(np.arange(30) < 27, np.nan, one)  # shares three architectures
    matrix = correlation_matrix(np.stack([one, other, third], axis=1))
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(spearmanr(one, other).statistic)
    assert np.isnan(matrix[2, :2]).all()
    assert (np.diag(matrix) == 1).all()


def test_devices_that_rank_alike_stand_together() -> None:
    family = np.array([0, 1, 2, 1, 0, 2, 0, 1])
    matrix = np.where(np.equal.outer(family, family), 0.9, 0.1)
    np.fill_diagonal(matrix, 1)
    matrix[0, 1] = matrix[1, 0] = np.nan
    order = block_order(matrix)
    assert sorted(order) == list(range(8))
    assert np.count_nonzero(np.diff(family[order])) == 2
    assert [block_order(np.eye(n)) for n in range(3)] == [[], [0], [0, 1]]


@given(st.integers(0, 1000), st.floats(0, 0.9))
def test_the_matrix_is_of_the_correlations_of_all_pairs(seed: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    latency_ms = rng.integers(1, 9, (12, 4)).astype(float)
    latency_ms[:, 3] = 5
    latency_ms[rng.random(latency_ms.shape) < missing] = np.nan
    matrix = correlation_matrix(latency_ms)
    for one in range(4):
        for other in range(one):
            pair = latency_ms[:, one], latency_ms[:, other]
            if np.isnan(matrix[one, other]):
                assert np.isfinite(pair).all(axis=0).sum() < LEAST_SHARED
            else:
                assert matrix[one, other] == pytest.approx(rank_correlation(*pair).value)


def test_the_proxy_serves_most_targets() -> None:
    matrix = np.array(
        [
            [1, 0.95, 0.92, 0.10],
            [0.95, 1, 0.89, 0.89],
            [0.92, 0.89, 1, 0.20],
            [0.10, 0.89, 0.20, 1],
        ]
    )
    assert best_proxy(matrix, [0, 1], [2, 3]) == 0  # one strong, though less in the mean
    assert best_proxy(matrix, [0, 1], [2, 3], threshold=0.8) == 1
    assert best_proxy(matrix, [0], [0]) == 0
    with pytest.raises(ValueError, match="no device"):
        best_proxy(matrix, [], [0])


@pytest.mark.parametrize(
    ("low", "high", "decision"),
    [
        (0.91, 0.99, Decision.REUSE),
        (0.5, 0.89, Decision.ADAPT),
        (0.8, 0.95, Decision.MEASURE),
    ],
)
def test_a_proxy_is_decided_on_only_where_the_samples_can_tell(
    low: float, high: float, decision: Decision
) -> None:
    correlation = RankCorrelation((low + high) / 2, low, high, 30)
    assert decide(correlation) is decision
    papers = Decision.REUSE if correlation.value >= 0.9 else Decision.ADAPT
    assert decide(correlation, by_interval=False) is papers
