"""Sets of devices between which transfer is hard."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_host.research.hard_sets import hard_sets, mean_correlation


def two_families(sizes: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Devices of two families, 0.9 alike within and 0.2 between, shuffled; and their families."""
    family = [0] * sizes[0] + [1] * sizes[1]
    rng = np.random.default_rng(seed)
    rng.shuffle(family)
    alike = np.equal.outer(family, family)
    noise = rng.normal(0, 0.01, alike.shape)
    matrix = np.where(alike, 0.9, 0.2) + (noise + noise.T) / 2
    np.fill_diagonal(matrix, 1)
    return matrix, family


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 20), st.booleans(), st.integers(0, 10**6), st.data())
def test_sets_are_as_large_as_asked_and_share_nothing(
    devices: int, hardest: bool, seed: int, data: st.DataObject
) -> None:
    matrix = np.corrcoef(np.random.default_rng(seed).normal(size=(devices, 5)))
    larger, smaller = devices - devices // 2, devices // 2
    sizes = data.draw(st.integers(1, larger)), data.draw(st.integers(1, smaller))
    train, test = data.draw(st.permutations(sizes))
    sets = hard_sets(matrix, train, test, seed, hardest)
    assert (len(sets.train), len(sets.test)) == (train, test)
    assert len({*sets.train, *sets.test}) == train + test
    assert list(sets.train) == sorted(sets.train)
    assert sets == hard_sets(matrix, train, test, seed, hardest)


@pytest.mark.parametrize("seed", range(5))
def test_the_hardest_sets_are_the_families(seed: int) -> None:
    matrix, family = two_families((6, 6))
    sets = hard_sets(matrix, 4, 3, seed, hardest=True)
    assert {family[device] for device in sets.train} != {family[device] for device in sets.test}
    assert mean_correlation(matrix, sets.train, sets.test) == pytest.approx(0.2, abs=0.02)
    assert mean_correlation(matrix, sets.train, sets.train) == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_negative_weights_spread_families_and_trimming_parts_them(seed: int) -> None:
    matrix, family = two_families((8, 8))
    halves = hard_sets(matrix, 8, 8, seed)
    assert [family[device] for device in halves.train].count(0) == 4
    trimmed = hard_sets(matrix, 4, 4, seed)
    before, after = (mean_correlation(matrix, s.train, s.test) for s in (halves, trimmed))
    assert after < before


def test_seeds_give_other_sets() -> None:
    matrix, _ = two_families((8, 8))
    assert len({hard_sets(matrix, 4, 4, seed) for seed in range(5)}) > 1


def test_trimming_takes_what_is_most_alike_first() -> None:
    """Halves of two by hand: 0 and 1 against 2 and 3, of which 1 and 3 are the more alike."""
    matrix = np.array(
        [
            [1.00, 0.90, 0.10, 0.20],
            [0.90, 1.00, 0.30, 0.40],
            [0.10, 0.30, 1.00, 0.90],
            [0.20, 0.40, 0.90, 1.00],
        ]
    )
    sets = hard_sets(matrix, 1, 1, hardest=True)
    assert {*sets.train, *sets.test} == {0, 2}
    halves = hard_sets(matrix, 2, 2, hardest=True)
    assert {halves.train, halves.test} == {(0, 1), (2, 3)}
    assert mean_correlation(matrix, (0, 1), (2, 3)) == pytest.approx(0.25)
    assert mean_correlation(matrix, (0, 1), (0, 1)) == pytest.approx(0.9)
    assert np.isnan(mean_correlation(matrix, (0,), (0,)))


@pytest.mark.parametrize(("train", "test"), [(0, 1), (1, 0), (4, 1), (3, 3), (-1, 2)])
def test_impossible_sizes_are_refused(train: int, test: int) -> None:
    with pytest.raises(ValueError, match="of 5 devices: give 1 to 3 and 1 to 2"):
        hard_sets(np.eye(5), train, test)


@pytest.mark.parametrize(("train", "test"), [(2, 3), (3, 2)])
def test_either_set_may_be_the_larger_half(train: int, test: int) -> None:
    sets = hard_sets(np.eye(5), train, test)
    assert (len(sets.train), len(sets.test)) == (train, test)


def test_every_correlation_is_needed() -> None:
    matrix = np.eye(4)
    matrix[0, 1] = matrix[1, 0] = np.nan
    with pytest.raises(ValueError, match="every pair"):
        hard_sets(matrix, 1, 1)
