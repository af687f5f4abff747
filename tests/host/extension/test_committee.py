"""Where the members of a cross-validation disagree, and what it costs to settle it."""

import numpy as np
import pytest

from esm_host.extension.committee import choose, cross_validate
from esm_host.predictors.base import Predictor


class Times(Predictor):
    """The first column times a factor that it is given; fitting only counts the samples."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def _fit(self, encodings: np.ndarray, latency_ms: np.ndarray, weights: np.ndarray) -> None:
        self.samples_ = len(encodings)

    def _predict(self, encodings: np.ndarray) -> np.ndarray:
        result: np.ndarray = encodings[:, 0] * self.factor ** encodings[:, 1]
        return result


def committee() -> list[Predictor]:
    """They disagree about rows with another second column than 0, the more the larger it is."""
    x, y = np.ones((2, 2)), np.ones(2)
    return [Times(factor).fit(x, y) for factor in (0.9, 1.0, 1.1)]


def flat(latency_ms: np.ndarray) -> np.ndarray:
    return np.ones(len(latency_ms))


def test_the_most_doubtful_come_first() -> None:
    rows = np.array([[5, 0], [5, 2], [5, 1], [5, 3]], np.float32)
    assert choose(committee(), rows, flat, 3).tolist() == [3, 1, 2]


def test_doubt_counts_in_proportion_to_the_latency() -> None:
    rows = np.array([[100, 1], [1, 2]], np.float32)
    assert choose(committee(), rows, flat, 1).tolist() == [1]


def test_doubt_counts_by_the_second() -> None:
    rows = np.array([[100, 2], [1, 1]], np.float32)
    assert choose(committee(), rows, flat, 1).tolist() == [0]
    assert choose(committee(), rows, lambda ms: ms / 1e3, 1).tolist() == [1]


def test_equals_keep_their_order() -> None:
    rows = np.full((7, 2), 3, np.float32)
    assert choose(committee(), rows, flat, 7).tolist() == list(range(7))


@pytest.mark.filterwarnings("error")
def test_impossible_predictions_and_no_candidates_do_no_harm() -> None:
    rows = np.array([[-4, 1], [0, 1], [2, 1]], np.float32)
    assert sorted(choose(committee(), rows, lambda ms: ms, 9).tolist()) == [0, 1, 2]
    assert choose(committee(), rows[:0], flat, 5).tolist() == []


def test_members_have_not_seen_what_they_are_judged_by() -> None:
    numbers: list[int] = []

    def make(member: int) -> Predictor:
        numbers.append(member)
        return Times(1 + member)

    encodings = np.ones((20, 2), np.float32)
    strata = np.repeat([0, 1], 10)
    predicted, _, members = cross_validate(make, encodings, np.ones(20), np.ones(20), strata, 4, 3)
    assert numbers == [0, 1, 2, 3]
    assert [member.samples_ for member in members] == [15] * 4  # type: ignore[attr-defined]
    assert np.unique(predicted, return_counts=True)[1].tolist() == [5] * 4
