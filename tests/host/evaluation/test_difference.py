"""Ratios of latencies: what drifts along with both models cancels, and intervals hold."""

import math

import numpy as np
import pytest

from esm_host.evaluation.difference import Ratio, Runs, paired_ratio, unpaired_ratio
from esm_protos.estimates import estimate_measured, ratio_shift
from esm_protos.messages import Block, MeasureSpec, Model
from esm_protos.paces import Paces, Reading
from esm_protos.statistics import relative_interval, trimmed_mean
from tests.host.paced import BIG_MS, LADDER, SMALL_MS, PacedProfiler

TRIM, PER_VISIT = 0.2, 4
RATIO = 1.05


def block(
    rng: np.random.Generator, rounds: int = 40, drift: float = 0.3, ratio: float = RATIO
) -> tuple[Runs, Runs]:
    """Two models visited in random order on a device whose pace wanders by some ``drift``."""
    base = {"one": ratio * 1e6, "other": 1e6}
    taken = {name: ([], []) for name in base}
    now, pace = 0.0, 0.0
    for _ in range(rounds):
        for name in rng.permutation(list(base)):
            pace = 0.95 * pace + drift * math.sqrt(1 - 0.95**2) * rng.standard_normal()
            for _ in range(PER_VISIT):
                outlier = 2.0 if rng.random() < 0.03 else 1.0
                took = base[name] * math.exp(pace + 0.02 * rng.standard_normal()) * outlier
                taken[name][0].append(round(took))
                taken[name][1].append(round(now))
                now += took
    one, other = (
        Runs(np.array(runs), np.array(starts), PER_VISIT) for runs, starts in taken.values()
    )
    return one, other


def unpaired(one: Runs, other: Runs) -> Ratio:
    numbers = []
    for runs in (one, other):
        visits = runs.latency_ns.reshape(-1, PER_VISIT).astype(float)
        numbers += [trimmed_mean(runs.latency_ns, TRIM), relative_interval(visits, TRIM)]
    return unpaired_ratio(*numbers)


def test_a_common_drift_cancels_in_pairs() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(20):
        one, other = block(rng)
        paired, apart = paired_ratio(one, other, TRIM), unpaired(one, other)
        assert paired.paired
        assert not apart.paired
        widths.append(apart.half_width / paired.half_width)
    assert np.median(widths) > 2


@pytest.mark.parametrize(("rounds", "drift"), [(12, 0.1), (40, 0.0), (40, 0.1), (100, 0.3)])
def test_the_interval_of_pairs_holds_the_truth(rounds: int, drift: float) -> None:
    """In about 95 of 100 cases: fewer than 91 or more than 99 of 300 are beyond chance."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        low, high = paired_ratio(*block(rng, rounds, drift), TRIM).interval
        held += low <= RATIO <= high
    assert 0.91 <= held / 300 <= 0.99


def test_equal_models_are_seldom_called_different() -> None:
    rng = np.random.default_rng(2)
    called = sum(paired_ratio(*block(rng, ratio=1.0), TRIM).different for _ in range(200))
    assert called <= 20, "5 % of 200, and twice that by chance"


def test_a_model_that_left_early_is_matched_with_what_ran_beside_it() -> None:
    """The device becomes three times as slow after the first model is done."""
    rng = np.random.default_rng(3)
    one, other = block(rng, rounds=60, drift=0.0)
    slow = other.start_ns > one.start_ns[30 * PER_VISIT]
    other = Runs(np.where(slow, 3 * other.latency_ns, other.latency_ns), other.start_ns, PER_VISIT)
    early = Runs(one.latency_ns[: 30 * PER_VISIT], one.start_ns[: 30 * PER_VISIT], PER_VISIT)
    for ratio, truth in (
        (paired_ratio(early, other, TRIM), RATIO),
        (paired_ratio(other, early, TRIM), 1 / RATIO),
    ):
        assert ratio.value == pytest.approx(truth, rel=0.01)
        assert ratio.different


def test_a_ratio_and_its_inverse_say_the_same() -> None:
    one, other = block(np.random.default_rng(4))
    there, back = (paired_ratio(*pair, TRIM) for pair in ((one, other), (other, one)))
    assert there.value == pytest.approx(1 / back.value)
    assert there.interval == pytest.approx((1 / back.interval[1], 1 / back.interval[0]))


@pytest.mark.parametrize("runs", [1, 4, 19])
def test_too_few_runs_have_a_ratio_and_no_interval(runs: int) -> None:
    one, other = block(np.random.default_rng(5), rounds=10)
    few = Runs(one.latency_ns[:runs], one.start_ns[:runs], PER_VISIT)
    for ratio in (
        paired_ratio(few, other, TRIM),
        paired_ratio(few, few, TRIM),
        unpaired_ratio(2.0, math.inf, 1.0, 0.01),
    ):
        assert ratio.value > 0
        assert ratio.interval is ratio.half_width is None
        assert not ratio.different


def test_numbers_measured_apart() -> None:
    ratio = unpaired_ratio(3.0, 0.03, 2.0, 0.04)
    assert ratio.value == pytest.approx(1.5)
    assert ratio.interval == pytest.approx((1.5 * math.exp(-0.05), 1.5 * math.exp(0.05)))
    assert ratio.different
    assert not unpaired_ratio(2.09, 0.03, 2.0, 0.04).different


def paces(memory: float, moments: int = 50) -> Paces:
    """Of a block in which memory is slower by some logarithm."""
    readings = [
        Reading(
            name,
            weight_bytes,
            1e6 * usual_ms * (math.exp(memory) if name in ("large", "beyond") else 1),
            0.002,
        )
        for name, (weight_bytes, usual_ms) in LADDER.items()
    ]
    return Paces(readings, PacedProfiler(moments=moments).usual())


BIG, SMALL = (LADDER["large"][0], 1e6 * BIG_MS), (0, 1e6 * SMALL_MS)


def test_models_that_feel_the_device_alike_differ_by_little() -> None:
    """What is not known of the paces cancels, as far as both feel it."""
    slow = paces(math.log(1.14))
    alone = slow.shift(*BIG)
    alike, unlike = slow.difference(BIG, BIG), slow.difference(BIG, SMALL)
    assert alike.value == 0
    assert unlike.value == pytest.approx(alone.value - slow.shift(*SMALL).value)
    assert unlike.value > 0.5 * math.log(1.14)
    assert alike.error < alone.error
    assert alike.error < unlike.error
    assert 0 <= unlike.shared <= unlike.lasting <= unlike.error
    there, back = slow.difference(BIG, SMALL), slow.difference(SMALL, BIG)
    assert there.value == -back.value
    assert there.error == pytest.approx(back.error)


def test_without_references_nothing_is_known_of_a_difference() -> None:
    assert Paces([], None).difference(BIG, SMALL).value == 0
    unknown = paces(math.log(1.14), moments=0)
    new = Paces(unknown._rungs, None).difference(BIG, SMALL)
    assert new.value == 0
    assert new.error > unknown.difference(BIG, BIG).error


def test_a_ratio_of_a_block_is_brought_to_the_usual_pace() -> None:
    """Memory is slower by 14 % in one block, and as usual in the other."""
    device = PacedProfiler(lambda number: math.log(1.14) * number)
    spec = MeasureSpec(runs=200, runs_per_visit=4, references=True)
    models = tuple(Model(name, b"") for name in ("big", "small"))
    ratios = []
    for number in range(2):
        result = device.measure(Block(str(number), spec, models))
        estimate = estimate_measured(result.measurements, spec, result.references, result.usual)
        raw = paired_ratio(*(Runs.of(m, spec) for m in result.measurements), TRIM)
        known = zip((m.weight_bytes for m in result.measurements), estimate.models, strict=True)
        shift = ratio_shift(estimate.paces, *known)
        ratio = raw.at_usual(shift.value, shift.half)
        ratios.append(ratio.value)
        truth = BIG_MS / SMALL_MS
        assert ratio.interval[0] < truth < ratio.interval[1]
        assert ratio.half_width > raw.half_width
        assert raw.value == pytest.approx(truth * (1.14 if number else 1), rel=0.01)
    assert ratios[0] == pytest.approx(ratios[1], rel=0.05)


def test_a_ratio_without_an_interval_stays_without_one() -> None:
    ratio = Ratio(2.0, None, True).at_usual(math.log(2), 0.1)
    assert ratio.value == pytest.approx(1.0)
    assert ratio.interval is None


@pytest.mark.parametrize("half", [1e3, 1e18])
def test_a_ratio_of_which_nothing_is_known_has_finite_ends(half: float) -> None:
    ratio = Ratio(2.0, (1.9, 2.1), True).at_usual(0.0, half)
    assert ratio.interval is not None
    low, high = ratio.interval
    assert 0 < low < 1e-6
    assert 1e6 < high < math.inf
