"""More samples where the predictor is bad, and never one lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_host.extension.allocate import allocate, by_shortfall

weights = st.floats(0.01, 100)


@given(st.integers(0, 5000), st.lists(st.booleans(), min_size=1, max_size=20), weights, weights)
def test_every_sample_goes_somewhere(
    step: int, passing: list[bool], below: float, above: float
) -> None:
    shares = allocate(step, passing, below, above)
    assert sum(shares) == step
    for side in (True, False):
        same = [share for share, passed in zip(shares, passing, strict=True) if passed is side]
        assert not same or max(same) - min(same) <= 1


@pytest.mark.parametrize(
    ("passing", "below", "above", "expected"),
    [
        ([False, True, True, True], 0.8, 0.2, [80, 7, 7, 6]),
        ([False, False, True, True], 0.8, 0.2, [40, 40, 10, 10]),
        ([False, False], 0.8, 0.2, [50, 50]),
        ([True, True], 0.8, 0.2, [50, 50]),
        ([False, True], 1.0, 0.0, [100, 0]),
        ([True, True], 1.0, 0.0, [50, 50]),
    ],
)
def test_shares(passing: list[bool], below: float, above: float, expected: list[int]) -> None:
    assert allocate(100, passing, below, above) == expected


accuracy = st.none() | st.floats(-1000, 100)


@given(st.integers(0, 5000), st.lists(accuracy, min_size=1, max_size=20))
def test_every_sample_goes_somewhere_by_shortfall(step: int, bins: list[float | None]) -> None:
    shares = by_shortfall(step, bins, 95.0)
    assert sum(shares) == step
    assert min(shares) >= 0


@pytest.mark.parametrize(
    ("bins", "expected"),
    [
        ([92.0, 95.0, 95.0, 95.0], [57, 15, 14, 14]),  # short of 96: 4, 1, 1, 1
        ([91.0, 86.0], [33, 67]),
        ([99.0, 91.0], [2, 98]),  # never quite nothing
        ([99.0, 99.0], [50, 50]),
        ([86.0, None], [50, 50]),
        ([None, None], [50, 50]),
    ],
)
def test_shares_by_shortfall(bins: list[float | None], expected: list[int]) -> None:
    assert by_shortfall(100, bins, 95.0) == expected
