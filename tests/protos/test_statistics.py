"""Trimmed mean, its interval, and the pace that models share, on devices we make up."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esm_protos.estimates import BlockEstimate, Runs, estimate_block
from esm_protos.statistics import (
    MIN_ROUNDS,
    PACE_MODELS,
    pace,
    relative_interval,
    trimmed_mean,
)

TRIM = 0.2


def estimated(latency, start, common_pace: bool = True, runs_per_visit: int = 1) -> BlockEstimate:
    """Estimates of models from their runs alone."""
    runs = [Runs(*each, runs_per_visit) for each in zip(latency, start, strict=True)]
    return estimate_block(runs, TRIM, common_pace)


def block(pace_of, noise, truth_ns, rounds, rng, cost_ns=1_000_000):
    """Interleaved visits of one run: their latencies and starts, by model."""
    latency = [[] for _ in truth_ns]
    start = [[] for _ in truth_ns]
    now = 0
    for _ in range(rounds):
        for model in rng.permutation(len(truth_ns)):
            value = truth_ns[model] * pace_of(now) * math.exp(rng.normal(0, noise))
            latency[model].append(round(value))
            start[model].append(now)
            now += cost_ns
    return [np.array(v) for v in latency], [np.array(v) for v in start]


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(MIN_ROUNDS, 60), st.integers(1, 4)),
        elements=st.floats(1, 1e9),
    ),
    st.floats(0, 0.4),
    st.floats(1e-3, 1e3),
)
def test_an_interval_is_a_share_whatever_the_unit(rounds, trim, unit) -> None:
    interval = relative_interval(rounds, trim)
    assert interval >= 0
    assert relative_interval(unit * rounds, trim) == pytest.approx(interval, rel=1e-6, abs=1e-12)


def test_runs_that_do_not_vary_leave_no_doubt() -> None:
    assert relative_interval(np.full((20, 3), 7.0), TRIM) == 0


def test_too_few_rounds_tell_nothing() -> None:
    assert relative_interval(np.ones((MIN_ROUNDS - 1, 100)), TRIM) == math.inf


@pytest.mark.parametrize("correlation", [0.0, 0.3])
@pytest.mark.parametrize("rounds", [12, 40, 150])
def test_the_interval_holds_the_truth_as_often_as_it_says(rounds: int, correlation: float) -> None:
    """Normal noise with outliers; runs of one round share most of it, rounds some of it."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        shared = np.empty(rounds)
        value = rng.normal()
        for index in range(rounds):
            value = correlation * value + math.sqrt(1 - correlation**2) * rng.normal()
            shared[index] = value
        noise = 0.05 * shared[:, None] + 0.01 * rng.normal(size=(rounds, 3))
        runs = 100 * (1 + noise + 0.5 * (rng.random((rounds, 3)) < 0.03) * rng.choice([1, -1]))
        error = abs(trimmed_mean(runs.ravel(), TRIM) / 100 - 1)
        hits += error <= relative_interval(runs, TRIM)
    # Correlation between rounds costs some of the promised 95 %, most of it where rounds are few.
    assert hits / 400 > (0.92 if correlation == 0 else 0.84)


def test_a_pace_that_wanders_is_found_and_divided_out() -> None:
    rng = np.random.default_rng(1)
    truth = [1e6, 2e6, 5e5, 3e6, 8e5, 1.5e6]

    def wander(now: int) -> float:
        return 1 + 0.3 * math.sin(now / 4e7) + (0.5 if now % 90_000_000 > 80_000_000 else 0)

    latency, start = block(wander, 0.01, truth, 60, rng)
    estimate = estimated(latency, start)
    found = np.array([model.latency_ns for model in estimate.models]) / truth
    assert found / np.median(found) == pytest.approx(1, abs=0.02)
    assert all(model.interval < 0.02 for model in estimate.models)
    raw = estimated(latency, start, common_pace=False)
    assert all(model.interval > 0.02 for model in raw.models), "without it nothing is resolved"
    assert [m.raw_ns for m in raw.models] == [m.raw_ns for m in estimate.models]


def test_a_models_own_noise_is_not_taken_for_the_devices() -> None:
    """A model that jumps by itself keeps its wide interval; its neighbours stay tight."""
    rng = np.random.default_rng(2)
    latency, start = block(lambda now: 1.0, 0.003, [1e6] * 6, 50, rng)
    latency[0] = (latency[0] * rng.choice([0.8, 1.2], 50)).astype(np.int64)
    first, *others = estimated(latency, start).models
    assert first.interval > 0.03
    assert all(other.interval < 0.01 for other in others)


def test_an_interval_from_hardly_any_batches_is_wide() -> None:
    """Of ten rounds, of which eight are trimmed, two batches are left, and one degree."""
    rounds = np.random.default_rng(6).normal(1e6, 1e4, (10, 1))
    assert relative_interval(rounds, 0.4) > 2 * relative_interval(rounds, 0.3)


def test_a_few_models_do_not_tell_the_pace() -> None:
    rng = np.random.default_rng(3)
    latency, start = block(lambda now: 1 + now / 1e8, 0.0, [1e6] * (PACE_MODELS - 1), 20, rng)
    factors = pace([v.astype(float) for v in latency], start)
    assert all((factor == 1).all() for factor in factors)


def test_a_model_that_left_early_is_judged_by_the_pace_it_met() -> None:
    """The device halves its speed when most models have gone; nobody is the worse for it."""
    rng = np.random.default_rng(4)
    models, rounds = 8, 60
    change = models * rounds // 2 * 1_000_000
    latency, start = block(lambda now: 1 + (now >= change), 0.005, [1e6] * models, rounds, rng)
    for model in range(4):  # gone after a third
        latency[model], start[model] = latency[model][:20], start[model][:20]
    estimate = estimated(latency, start)
    found = np.array([model.latency_ns for model in estimate.models])
    assert found / found.mean() == pytest.approx(1, abs=0.02)
    assert estimate.slowdown == pytest.approx(1, abs=0.1)


@settings(max_examples=50)
@given(
    st.lists(st.lists(st.integers(1, 10**12), min_size=1, max_size=12), min_size=1, max_size=7),
    st.integers(1, 5),
    st.booleans(),
)
def test_any_runs_give_finite_latencies(runs, runs_per_visit, common_pace) -> None:
    latency = [np.array(values) for values in runs]
    start = [np.arange(len(values)) * 7 + index for index, values in enumerate(runs)]
    estimate = estimated(latency, start, common_pace, runs_per_visit)
    for values, model in zip(latency, estimate.models, strict=True):
        assert 0 < model.latency_ns < math.inf
        assert values.min() <= model.raw_ns <= values.max()
        assert model.interval >= 0
