"""Which known architectures stand for those that a search measures."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from esm_host.search.anchors import most_alike


def test_they_are_the_nearest_to_chosen_ones_from_one_end_to_the_other() -> None:
    known = np.array([[0, 100], [1, 300], [2, 100], [3, 300]], np.float32)
    chosen = np.array([[0, 100], [1.4, 200], [2.9, 300]], np.float32)
    assert most_alike(known, chosen, 2).tolist() == [0, 3]
    assert sorted(most_alike(known, chosen, 9).tolist()) == [0, 1, 2, 3]


def test_what_never_differs_and_large_numbers_count_for_nothing() -> None:
    known = np.array([[0, 7, 1e6], [1, 7, 3e6], [1, 7, 2e6]], np.float32)
    chosen = np.array([[1, 9, 2.9e6]], np.float32)
    assert most_alike(known, chosen, 1).tolist() == [1]


@given(st.integers(0, 12), st.integers(1, 12), st.integers(0, 8), st.integers(0, 99))
def test_none_is_named_twice(known: int, chosen: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, (known, 4)).astype(np.float32)
    found = most_alike(values, rng.random((chosen, 4), np.float32), count)
    assert len(found) == min(known, count) == len(set(found.tolist()))
