"""Trimmed means and the limits of a measurement's settings."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_protos.messages import MeasureSpec, trimmed_mean

samples = st.lists(st.integers(1, 10**12), min_size=1, max_size=200).map(np.array)


def test_papers_trim_drops_thirty_of_150_at_each_end() -> None:
    runs = np.concatenate([np.full(30, 1), np.full(90, 1000), np.full(30, 10**9)])
    assert trimmed_mean(runs, 0.2) == 1000
    runs[30] = 10  # the thirty-first fastest counts
    assert trimmed_mean(runs, 0.2) < 1000


@given(samples, st.floats(0, 0.49))
def test_trimmed_mean_lies_between_extremes_whatever_the_order(
    values: np.ndarray, trim: float
) -> None:
    mean = trimmed_mean(values, trim)
    assert values.min() <= mean <= values.max()
    assert trimmed_mean(values[::-1], trim) == mean


@given(samples)
def test_no_trim_is_the_mean(values: np.ndarray) -> None:
    assert trimmed_mean(values, 0) == pytest.approx(values.mean())


@pytest.mark.parametrize(("values", "trim"), [([], 0.2), ([1], 0.5), ([1], -0.1)])
def test_trimmed_mean_refuses_nonsense(values: list[int], trim: float) -> None:
    with pytest.raises(ValueError, match="trimmed mean"):
        trimmed_mean(np.array(values, dtype=np.int64), trim)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("runs", 0),
        ("runs_per_visit", 0),
        ("warmup", -1),
        ("threads", 0),
        ("seed", -1),
        ("trim", 0.5),
        ("model_timeout_s", 0),
        ("load_timeout_s", 0),
        ("load_timeout_s", float("inf")),
        ("model_timeout_s", float("nan")),
    ],
)
def test_spec_names_the_value_that_is_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        MeasureSpec(**{name: value})
