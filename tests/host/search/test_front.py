"""What no other beats."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from esm_host.evaluation.selection import hypervolume as area
from esm_host.search.front import hypervolume, nondominated

COSTS = st.integers(1, 4).flatmap(
    lambda objectives: arrays(
        float, st.tuples(st.integers(0, 25), st.just(objectives)), elements=st.integers(0, 5)
    )
)


@given(COSTS)
def test_it_is_what_pairs_say(costs: np.ndarray) -> None:
    no_worse = (costs[:, None] <= costs).all(axis=2)
    better = (costs[:, None] < costs).any(axis=2)
    np.testing.assert_array_equal(nondominated(costs), ~(no_worse & better).any(axis=0))


def test_of_two_objectives_the_volume_is_the_area_under_the_stairs() -> None:
    rng = np.random.default_rng(0)
    latency_ms, accuracy = rng.uniform(1, 9, 40), rng.uniform(1, 99, 40)
    costs = np.stack([latency_ms, -accuracy / 100], axis=1)
    assert np.isclose(hypervolume(costs, (10, 0)), area(latency_ms, accuracy, 10))


def test_what_is_worse_than_the_reference_adds_nothing() -> None:
    assert hypervolume([[1.0, 1.0]], (2, 2)) == 1
    assert hypervolume([[1.0, 1.0], [0.0, 3.0]], (2, 2)) == 1
    assert hypervolume([[3.0, 3.0]], (2, 2)) == 0
    assert hypervolume(np.zeros((0, 2)), (2, 2)) == 0
