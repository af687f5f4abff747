"""The protocols: who is run when, and what is counted. A clock of our own, no waiting."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esm_agent.measure.timing import FIRST_CHECK, copies, interleaved, sequential, settle
from esm_protos.estimates import estimate_block
from esm_protos.messages import MeasureSpec
from esm_protos.statistics import MIN_ROUNDS, PACE_MODELS, relative_interval


class Device:
    """Models that take a set time on a clock that only they move, and a log of the runs."""

    def __init__(self, costs_ns: dict[int, int]) -> None:
        self.now = 1_000
        self.log: list[int] = []
        self.runs = {index: self._run(index, cost) for index, cost in costs_ns.items()}

    def _run(self, index: int, cost: int):
        def run() -> None:
            self.now += cost
            self.log.append(index)

        return run

    def clock(self) -> int:
        return self.now


specs = st.builds(
    MeasureSpec,
    runs=st.integers(1, 40),
    runs_per_visit=st.integers(1, 7),
    warmup=st.integers(0, 3),
    seed=st.integers(0, 1000),
)


@given(specs)
def test_sequential_counts_all_but_the_warm_up(spec: MeasureSpec) -> None:
    device = Device({0: 50})
    samples = sequential(device.runs[0], spec, device.clock)
    assert samples.latency_ns == [50] * spec.runs
    assert len(device.log) == spec.warmup + spec.runs
    assert samples.start_ns[0] == 1_000 + 50 * spec.warmup
    assert samples.running_ns == 50 * len(device.log)


@given(specs, st.integers(1, 6))
def test_interleaved_gives_every_model_its_runs_in_time_order(
    spec: MeasureSpec, models: int
) -> None:
    device = Device({index: 10 + index for index in range(models)})
    samples = interleaved(device.runs, spec, clock=device.clock)
    visits = -(-spec.runs // spec.runs_per_visit)
    for index, got in samples.items():
        assert got.latency_ns == [10 + index] * spec.runs
        assert all(a < b for a, b in pairwise(got.start_ns))
        warmed = visits if models > 1 else 1  # alone, a model stays warm
        assert device.log.count(index) == spec.runs + warmed * spec.warmup
        assert got.running_ns == device.log.count(index) * (10 + index)


def test_a_model_that_fails_leaves_and_the_others_go_on() -> None:
    device, failed = Device(dict.fromkeys(range(3), 50_000_000)), []

    def failing() -> None:
        if device.log.count(1) == 3:
            raise ValueError("no more")
        well()

    well, device.runs[1] = device.runs[1], failing
    spec = MeasureSpec(runs=10, runs_per_visit=2)
    samples = interleaved(
        device.runs, spec, clock=device.clock, failed=lambda index, error: failed.append(index)
    )
    assert failed == [1]
    assert {index: len(each.latency_ns) for index, each in samples.items()} == {0: 10, 2: 10}
    settle(device.runs, lambda: 1.0, lambda *_: None, device.clock, lambda i, e: failed.append(i))
    assert failed == [1, 1]


def test_an_early_end_leaves_every_model_its_first_runs() -> None:
    device = Device(dict.fromkeys(range(3), 10))
    spec = MeasureSpec(runs=100, runs_per_visit=2)
    at_once = interleaved(device.runs, spec, clock=device.clock, finish_requested=lambda: True)
    assert [len(each.latency_ns) for each in at_once.values()] == [2, 2, 2]
    device.log.clear()
    later = interleaved(
        device.runs, spec, clock=device.clock, finish_requested=lambda: len(device.log) >= 60
    )
    assert all(2 <= len(each.latency_ns) < 100 for each in later.values())


def test_interleaved_visits_every_model_once_a_round_in_changing_order() -> None:
    spec = MeasureSpec(runs=30, runs_per_visit=3, warmup=2)
    device = Device(dict.fromkeys(range(8), 10))
    visited: list[int] = []
    interleaved(device.runs, spec, lambda index, share: visited.append(index), device.clock)
    rounds = [visited[i : i + 8] for i in range(0, len(visited), 8)]
    assert len(rounds) == 10
    assert all(sorted(order) == list(range(8)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 5
    again: list[int] = []
    interleaved(device.runs, spec, lambda index, share: again.append(index), device.clock)
    assert again == visited, "the seed decides the order"


def test_what_happens_between_visits_is_not_timed() -> None:
    device = Device({0: 10, 1: 10})

    def slow(index: int, share: float) -> None:
        device.now += 1_000_000

    samples = interleaved(device.runs, MeasureSpec(runs=6), slow, device.clock)
    assert samples[0].latency_ns == [10] * 6
    assert samples[0].running_ns + samples[1].running_ns == 10 * len(device.log)


def test_progress_grows_from_nothing_to_nearly_all() -> None:
    device = Device({0: 10, 1: 10})
    shares: list[float] = []
    interleaved(device.runs, MeasureSpec(runs=30), lambda i, s: shares.append(s), device.clock)
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] < 1


def test_a_slow_episode_spoils_a_row_but_not_an_interleaved_block() -> None:
    """The reason for the default: an episode of 200 runs on a device of four models."""

    def measure(protocol) -> list[float]:
        device = Device(dict.fromkeys(range(4), 100))
        episode = range(20_000, 40_000)

        def disturbed(run):
            def slowed() -> None:
                start = device.now
                run()
                if start in episode:
                    device.now += 100

            return slowed

        runs = {index: disturbed(run) for index, run in device.runs.items()}
        return protocol(runs, device)

    spec = MeasureSpec(runs=150, warmup=0)

    def trimmed(values: list[int]) -> float:
        return sum(sorted(values)[30:-30]) / 90

    row = measure(lambda r, d: [trimmed(sequential(r[i], spec, d.clock).latency_ns) for i in r])
    block = measure(
        lambda r, d: [trimmed(s.latency_ns) for s in interleaved(r, spec, clock=d.clock).values()]
    )
    assert max(row) > 150
    assert max(block) == pytest.approx(100)


# Until the intervals are tight


def noisy(device: Device, model: int, spread_ns: int) -> None:
    """From now on the model takes now longer, now shorter, by ``spread_ns``."""
    steady, draw = device.runs[model], random.Random(model)

    def run() -> None:
        steady()
        device.now += draw.randint(-spread_ns, spread_ns)

    device.runs[model] = run


def test_tight_models_leave_early_and_loose_ones_stay_until_the_cap() -> None:
    device = Device(dict.fromkeys(range(8), 1_000_000))
    noisy(device, 3, 500_000)
    spec = MeasureSpec(runs=100, precision=0.02)
    samples = interleaved(device.runs, spec, clock=device.clock)
    counts = [len(samples[index].latency_ns) for index in range(8)]
    assert counts[3] == 100
    # Those that stay keep the loose one company, so that the device's pace is known.
    assert sorted(counts)[: 8 - PACE_MODELS] == [FIRST_CHECK] * (8 - PACE_MODELS)
    assert counts.count(100) == PACE_MODELS


def test_a_block_of_steady_models_ends_with_the_first_look() -> None:
    device = Device({0: 100, 1: 5_000_000, 2: 20})
    samples = interleaved(device.runs, MeasureSpec(precision=0.02), clock=device.clock)
    assert {len(s.latency_ns) for s in samples.values()} == {FIRST_CHECK}


@pytest.mark.parametrize("seed", range(5))
def test_who_has_fewer_runs_than_the_cap_is_tight_in_the_end(seed: int) -> None:
    """Also those that left early, whose share of the pace is only told later."""
    device = Device(dict.fromkeys(range(8), 1_000_000))
    pace = random.Random(seed)
    for model in device.runs:
        noisy(device, model, 10_000 * (model + 2))
    for model, steady in list(device.runs.items()):

        def run(steady: Callable[[], None] = steady) -> None:
            steady()
            device.now += 400_000 * (device.now // 30_000_000 % 2) + pace.randint(0, 50_000)

        device.runs[model] = run
    spec = MeasureSpec(precision=0.02, warmup=0, seed=seed)
    samples = interleaved(device.runs, spec, clock=device.clock)
    block = estimate_block([s.as_runs() for s in samples.values()], spec.trim, common_pace=True)
    counts = [len(s.latency_ns) for s in samples.values()]
    assert min(counts) < max(counts), "some left early"
    for count, estimate in zip(counts, block.models, strict=True):
        assert count == spec.runs or estimate.interval < spec.precision


def test_one_noisy_model_alone_stops_when_it_is_tight() -> None:
    device = Device({0: 1_000_000})
    noisy(device, 0, 100_000)
    spec = MeasureSpec(runs=10_000, precision=0.01)
    (samples,) = interleaved(device.runs, spec, clock=device.clock).values()
    assert FIRST_CHECK < len(samples.latency_ns) < 1_000
    runs = np.array(samples.latency_ns, dtype=float)[:, None]
    assert relative_interval(runs, spec.trim) < 0.01


def test_a_model_of_twenty_seconds_takes_the_time_it_is_given() -> None:
    device = Device({0: 20_000_000_000})
    spec = MeasureSpec(runs=10_000, precision=0.02, max_block_s=60)
    (samples,) = interleaved(device.runs, spec, clock=device.clock).values()
    assert len(samples.latency_ns) == 3
    assert len(device.log) == 4, "one uncounted run, none once it is known to be slow"


DEFAULT = MeasureSpec(
    runs=100_000,
    runs_per_visit=4,
    warmup=10,
    precision=0.02,
    max_block_s=60,
    min_block_s=1.5,
    min_rounds=MIN_ROUNDS,
    short_visits=True,
)
"""As ``esm-host time`` asks for it."""


@pytest.mark.parametrize(
    ("costs_s", "runs"),
    [
        ([1.0], FIRST_CHECK),
        ([1.6], FIRST_CHECK),
        ([20.0], MIN_ROUNDS),
        ([0.2] * 8, FIRST_CHECK),
        ([2.0] * 8, MIN_ROUNDS),
    ],
)
def test_slow_models_have_an_interval_by_default(costs_s: list[float], runs: int) -> None:
    device = Device({index: round(cost * 1e9) for index, cost in enumerate(costs_s)})
    first_ns = {index: round(cost * 1e9) for index, cost in enumerate(costs_s)}
    samples = interleaved(device.runs, DEFAULT, clock=device.clock, first_run_ns=first_ns)
    assert {len(s.latency_ns) for s in samples.values()} == {runs}
    assert len(device.log) == runs * len(costs_s), "no uncounted run"
    block = estimate_block([s.as_runs() for s in samples.values()], DEFAULT.trim, common_pace=True)
    assert all(model.interval < DEFAULT.precision for model in block.models)


def test_visits_shrink_as_latency_grows() -> None:
    device = Device({0: 1_000_000, 1: 30_000_000, 2: 60_000_000, 3: 300_000_000})
    samples = interleaved(device.runs, DEFAULT, clock=device.clock)
    assert [s.runs_per_visit for s in samples.values()] == [4, 4, 2, 1]
    assert all(len(s.latency_ns) % s.runs_per_visit == 0 for s in samples.values())
    spec = replace(DEFAULT, short_visits=False)
    samples = interleaved(device.runs, spec, clock=device.clock)
    assert {s.runs_per_visit for s in samples.values()} == {4}


def test_a_run_that_is_held_up_does_not_shorten_visits() -> None:
    device = Device({0: 1_000_000})
    steady = device.runs[0]

    def run() -> None:
        steady()
        device.now += 500_000_000 * (len(device.log) in (1, 11))

    samples = interleaved({0: run}, DEFAULT, clock=device.clock)
    assert samples[0].runs_per_visit == 4


def test_the_agents_limit_ends_rounds_before_it_is_reached() -> None:
    device = Device({0: 20_000_000_000})
    (samples,) = interleaved(
        device.runs,
        DEFAULT,
        clock=device.clock,
        first_run_ns={0: 20_000_000_000},
        limit_s=95.0,
    ).values()
    assert len(samples.latency_ns) == 4
    assert device.now < 95e9


def test_the_share_of_a_slow_block_is_that_of_the_time_it_takes() -> None:
    device = Device({0: 20_000_000_000, 1: 20_000_000_000})
    shares: list[float] = []
    first_ns = dict.fromkeys(range(2), 20_000_000_000)
    interleaved(
        device.runs,
        DEFAULT,
        lambda index, share: shares.append(share),
        device.clock,
        first_run_ns=first_ns,
    )
    assert shares == pytest.approx([number / 10 for number in range(10)])


@pytest.mark.parametrize("protocol", ["sequential", "interleaved", "settle", "copies"])
def test_every_inference_is_a_sign_of_life_outside_of_its_time(protocol: str) -> None:
    device = Device({0: 300_000_000})
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(device.now)
        device.now += 7_000

    spec = MeasureSpec(runs=6, runs_per_visit=3, warmup=2)
    if protocol == "sequential":
        took = sequential(device.runs[0], spec, device.clock, tick).latency_ns
    elif protocol == "interleaved":
        took = interleaved(device.runs, spec, clock=device.clock, tick=tick)[0].latency_ns
    elif protocol == "copies":
        took = copies(device.runs[0], device.clock, tick).tolist()
    else:
        settle(device.runs, lambda: None, lambda index, share: tick(), device.clock)
        took = [300_000_000]
    assert set(took) == {300_000_000}
    assert len(ticks) == len(device.log)


def test_settling_ends_with_the_run_that_reaches_five_seconds() -> None:
    device = Device(dict.fromkeys(range(8), 4_000_000_000))
    settle(device.runs, lambda: None, lambda index, share: None, device.clock)
    assert len(device.log) == 2


def test_a_model_of_twenty_microseconds_alone_is_warmed_up_once() -> None:
    device = Device({0: 20_000})
    spec = MeasureSpec(runs=150)
    (samples,) = interleaved(device.runs, spec, clock=device.clock).values()
    assert samples.latency_ns == [20_000] * 150
    assert len(device.log) == 152


def test_slow_models_are_warm_after_one_run() -> None:
    device = Device({0: 30_000_000, 1: 10_000_000})
    samples = interleaved(device.runs, MeasureSpec(runs=10, warmup=4), clock=device.clock)
    assert device.log.count(0) == 10 + 10 * 1
    assert device.log.count(1) == 10 + 10 * 3
    assert samples[0].running_ns == 20 * 30_000_000


def test_a_clock_that_jumps_spoils_one_run_and_no_figure() -> None:
    """Suspended for an hour in the middle: one counted run has it, trimming drops it."""
    device = Device(dict.fromkeys(range(5), 1_000_000))
    jumped = False

    def jump() -> None:
        nonlocal jumped
        device.now += 1_000_000
        if len(device.log) > 100 and not jumped:
            jumped = True
            device.now += 3600 * 10**9
        device.log.append(0)

    device.runs[0] = jump
    samples = interleaved(device.runs, MeasureSpec(runs=30, warmup=0), clock=device.clock)
    assert max(samples[0].latency_ns) > 3000 * 10**9
    estimate = estimate_block([s.as_runs() for s in samples.values()], 0.2, common_pace=True)
    for model in estimate.models:
        assert model.latency_ns == pytest.approx(1_000_000, rel=1e-6)
        assert model.interval < 1e-6


def test_a_clock_that_stands_still_gives_positive_latencies() -> None:
    device = Device({0: 0})
    (samples,) = interleaved(device.runs, MeasureSpec(runs=12), clock=device.clock).values()
    assert samples.latency_ns == [1] * 12


def test_a_device_that_throttles_half_way_is_seen_and_divided_out() -> None:
    device = Device({})
    cost = {index: (index + 1) * 1_000_000 for index in range(6)}
    half = sum(cost.values()) * 60 * 3 // 2

    def model(index: int):
        def run() -> None:
            device.now += cost[index] * (2 if device.now > half else 1)

        return run

    device.runs = {index: model(index) for index in cost}
    samples = interleaved(device.runs, MeasureSpec(runs=60), clock=device.clock)
    estimate = estimate_block([samples[i].as_runs() for i in cost], 0.2, common_pace=True)
    assert estimate.slowdown == pytest.approx(1.0)
    found = np.array([m.latency_ns for m in estimate.models]) / list(cost.values())
    assert found == pytest.approx(found.mean(), rel=0.01)
