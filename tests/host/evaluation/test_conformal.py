"""What errors that were seen say of the next one."""

import math

import numpy as np
import pytest

from esm_host.evaluation.conformal import LeftOutErrors


@pytest.mark.parametrize("n", [10, 30, 300])
def test_intervals_and_bounds_hold_their_share_whatever_the_errors(n: int) -> None:
    rng = np.random.default_rng(n)
    within, below = [], []
    for _ in range(200):
        errors = 0.05 * rng.standard_t(3, n + 100) + 0.03  # heavy tails, and a bias
        seen = LeftOutErrors(np.exp(errors[:n]), np.ones(n))
        within.append(np.mean(np.abs(errors[n:]) <= math.log(seen.within(0.9))))
        below.append(np.mean(errors[n:] <= math.log(seen.at_most(0.9))))
    assert 0.88 < np.mean(within) < 0.95
    assert 0.88 < np.mean(below) < 0.95


def test_what_was_not_predicted_says_nothing() -> None:
    measured = np.array([1.0, 2.0, 4.0, 8.0])
    errors = LeftOutErrors(measured, np.array([1.1, np.nan, 4.0, 0.0]))
    assert errors.within(0.5) == pytest.approx(1.1)
    with pytest.raises(ValueError, match="fewer than two"):
        LeftOutErrors(measured, np.array([np.nan, 2.0, np.nan, -1.0]))
