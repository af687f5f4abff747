"""What sources take for architectures, measured or not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from esm_host.transfer.known import KnownLatencies
from esm_host.transfer.source import Source
from esm_models.spaces import load_space

SPACE = load_space("nasbench201")
RNG = np.random.default_rng(0)
CODES = np.stack(np.unravel_index(RNG.permutation(5**6)[:300], (5,) * 6), axis=-1, dtype=np.int16)[
    :, None
]
ONE, OTHER = (1 + np.array(cost)[CODES[:, 0]].sum(axis=1) for cost in np.eye(5)[1:3] + np.arange(5))


def test_what_was_measured_is_taken_as_it_is() -> None:
    known = KnownLatencies([Source("a", SPACE, CODES, ONE), Source("b", SPACE, CODES, OTHER)])
    rows = [7, 3, 7, 200]
    np.testing.assert_array_equal(known.at(CODES[rows]), np.stack([ONE, OTHER], axis=1)[rows])


def test_what_was_not_is_predicted_from_that_source_alone() -> None:
    known = KnownLatencies(
        [Source("a", SPACE, CODES[:200], ONE[:200]), Source("b", SPACE, CODES, OTHER)]
    )
    found = known.at(CODES[150:])
    np.testing.assert_array_equal(found[:50, 0], ONE[150:200])
    np.testing.assert_array_equal(found[:, 1], OTHER[150:])
    assert spearmanr(found[50:, 0], ONE[200:]).statistic > 0.99
    assert found[:, 0].min() >= ONE[:200].min()
    assert found[:, 0].max() <= ONE[:200].max()


def test_a_source_of_one_architecture_says_always_the_same() -> None:
    known = KnownLatencies([Source("a", SPACE, CODES[:1], ONE[:1])])
    assert known.at(CODES[:5])[:, 0] == pytest.approx(ONE[0])


def test_shared_architectures_come_once_in_order() -> None:
    a = Source("a", SPACE, CODES[[0, 1, 2, 3, 1]], np.ones(5))
    b = Source("b", SPACE, CODES[[9, 3, 1]], np.ones(3))
    c = Source("c", SPACE, CODES[[5]], np.ones(1))
    np.testing.assert_array_equal(KnownLatencies([a, b]).shared(), CODES[[1, 3]])
    np.testing.assert_array_equal(KnownLatencies([b, a]).shared(), CODES[[3, 1]])
    np.testing.assert_array_equal(KnownLatencies([a, b, c]).shared(), CODES[[1, 3]])
    np.testing.assert_array_equal(KnownLatencies([c]).shared(), CODES[[5]])
