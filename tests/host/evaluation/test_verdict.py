"""Verdicts: from what was measured and from what devices say of themselves."""

import math

import numpy as np
import pytest

from esm_host.arguments import on_command_line
from esm_host.evaluation.verdict import (
    Judgement,
    Verdict,
    block_evidence,
    describe_shift,
    judge_again,
    judge_number,
    reference_evidence,
    runs_evidence,
    sessions_evidence,
    threads_evidence,
)
from esm_protos.estimates import Parts
from esm_protos.messages import DeviceState, GpuState
from esm_protos.paces import Shift


def states(*changes: dict, seconds: float = 10.0) -> list[DeviceState]:
    """Before, during and after a block."""
    step = round(seconds / (len(changes) - 1) * 1e9)
    return [DeviceState(at_ns=index * step, **change) for index, change in enumerate(changes)]


def only(evidence: list[tuple[Verdict, str]]) -> tuple[Verdict, str]:
    (entry,) = evidence
    return entry


def test_a_quiet_device_gives_no_reason() -> None:
    quiet = {"clock_mhz": (1500.0, 600.0), "busy_s": 1.0, "own_s": 1.0, "stolen_s": 0.0}
    busy = quiet | {"busy_s": 11.2, "own_s": 11.0}
    assert block_evidence(states(quiet, quiet, busy), 0.0) == []
    assert judge_number(0.01, 0.02, []).verdict is Verdict.STABLE


def test_a_device_that_tells_nothing_is_not_blamed() -> None:
    assert block_evidence(states({}, {}, {}), 0.0) == []
    assert block_evidence([], 0.0) == []


def test_a_clock_that_falls_is_throttling() -> None:
    fast, slow = {"clock_mhz": (600.0, 1500.0)}, {"clock_mhz": (1000.0, 600.0)}
    verdict, reason = only(block_evidence(states(fast, fast, slow, slow), 0.0))
    assert verdict is Verdict.THROTTLED
    assert reason == "clock fell 33 % (1500 to 1000 MHz)"


def test_clocks_of_an_idle_device_before_and_after_do_not_count() -> None:
    idle, fast = {"clock_mhz": (600.0,)}, {"clock_mhz": (1500.0,)}
    assert block_evidence(states(idle, fast, fast, idle), 0.0) == []


@pytest.mark.parametrize(
    ("bits", "text"),
    [(0b0001, "under-voltage"), (0b0100, "throttled"), (0b1000, "soft temperature limit")],
)
def test_what_a_raspberry_pi_reports(bits: int, text: str) -> None:
    verdict, reason = only(block_evidence(states({}, {"pi_throttled": bits}, {}), 0.0))
    assert (verdict, reason) == (Verdict.THROTTLED, f"the board reports {text}")


def test_what_a_raspberry_pi_remembers_from_earlier_does_not_count() -> None:
    assert block_evidence(states({"pi_throttled": 0x50000}, {"pi_throttled": 0x50000}), 0.0) == []


def test_counters_count_what_happened_during_the_block() -> None:
    before = {"throttle_events": 7, "stolen_s": 100.0, "swapped_pages": 5, "busy_s": 50.0}
    before |= {"own_s": 9.0}
    assert block_evidence(states(before, before), 0.0) == []
    after = {"throttle_events": 9, "stolen_s": 101.0, "swapped_pages": 8, "busy_s": 69.0}
    after |= {"own_s": 19.0}
    found = block_evidence(states(before, after), 0.0)
    assert found == [
        (Verdict.THROTTLED, "2 thermal throttling events"),
        (Verdict.NOISY, "10 % of a processor stolen by the hypervisor"),
        (Verdict.NOISY, "other programs used 0.9 processors"),
        (Verdict.NOISY, "3 pages swapped"),
    ]


def test_a_gpu_that_says_why() -> None:
    hot = GpuState("H100", clock_mhz=1980.0, throttle_reasons=("hw_thermal_slowdown",))
    slow = GpuState("H100", clock_mhz=990.0)
    found = block_evidence(states({}, {"gpus": (hot,)}, {"gpus": (slow,)}, {}), 0.0)
    assert found == [
        (Verdict.THROTTLED, "GPU clock fell 50 % (1980 to 990 MHz)"),
        (Verdict.THROTTLED, "the GPU reports hw_thermal_slowdown"),
    ]


def test_a_gpu_whose_clock_was_locked_is_not_throttled() -> None:
    locked = GpuState("T4", clock_mhz=1590.0, throttle_reasons=("applications_clocks_setting",))
    assert block_evidence(states({}, {"gpus": (locked,)}, {"gpus": (locked,)}, {}), 0.0) == []


def test_a_device_that_slows_down_without_saying_why_is_noisy() -> None:
    assert only(block_evidence([], 0.4)) == (
        Verdict.NOISY,
        "the device became 40 % slower during the block",
    )


def test_references_that_stray() -> None:
    assert reference_evidence(0.02, 0.03) == []
    assert only(reference_evidence(0.05, 0.03)) == (
        Verdict.NOISY,
        "references off by 5.0 %, tolerated 3 %",
    )
    assert only(reference_evidence(math.inf, 0.03))[1] == "a reference failed"


def test_the_worst_reason_names_the_verdict_and_all_are_told() -> None:
    evidence = [(Verdict.NOISY, "noise"), (Verdict.THROTTLED, "heat")]
    judgement = judge_number(0.031, 0.02, evidence)
    assert judgement.verdict is Verdict.THROTTLED
    assert judgement.reasons == ("heat", "interval too wide: ±3.1 %, requested ±2 %", "noise")
    assert judge_number(0.031, 0.02, evidence[:1]).verdict is Verdict.UNRESOLVED


def test_too_few_rounds_are_unresolved() -> None:
    judgement = judge_number(math.inf, 0.0, [])
    assert judgement.verdict is Verdict.UNRESOLVED
    assert judgement.reasons == ("too few runs for an interval, which needs 5 visits or more",)


def test_without_a_precision_nobody_asked_for_one() -> None:
    judgement = judge_number(0.031, 0.0, [])
    assert judgement.reasons == ("interval too wide: ±3.1 %, default ±2 %",)


def quota(at_ns: int, periods: int, throttled: int, stopped_s: float) -> DeviceState:
    return DeviceState(
        at_ns,
        cpu_periods=periods,
        cpu_throttled_periods=throttled,
        cpu_throttled_s=stopped_s,
    )


def test_a_cpu_quota_that_stops_the_block_is_throttling() -> None:
    found = block_evidence([quota(-10, 100, 50, 1.0), quota(10**9, 276, 213, 15.5)], 0.0)
    assert found == [
        (
            Verdict.THROTTLED,
            "its control group's CPU quota stopped it in 93 % of the periods (163 of 176, 14.5 s): "
            "raise the quota",
        )
    ]


def test_a_quota_that_stopped_only_loading_does_not_count() -> None:
    states = [quota(-9, 100, 0, 0.0), quota(-1, 200, 90, 9.0), quota(10**9, 400, 91, 9.1)]
    assert block_evidence(states, 0.0) == []


@pytest.mark.parametrize(
    ("threads", "processors", "text"),
    [
        (2, 2, None),
        (2, 1.5, "2 threads on 1.5 processors: give at most 1"),
        (1, 0.1, "1 thread on 0.1 processors: raise its CPU quota"),
        (8, 1, "8 threads on 1 processor: give at most 1"),
    ],
)
def test_more_threads_than_processors_warn(
    threads: int, processors: float, text: str | None
) -> None:
    judgement = judge_number(0.01, 0.02, threads_evidence(threads, processors))
    assert judgement.verdict is Verdict.STABLE
    assert judgement.reasons == (() if text is None else (text,))


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([[100] * 50], None),
        ([[100] * 30 + [190] * 20], "23 % below"),
        ([[100] * 20 + [190] * 30], "19 % above"),
        ([[100] * 50, [100] * 30 + [190] * 20], "23 % below"),
        ([[100] * 12 + [190] * 7], None),  # too few
    ],
)
def test_runs_of_two_speeds_are_noisy(blocks: list[list[int]], text: str | None) -> None:
    found = runs_evidence([(np.array(runs), 0.0) for runs in blocks], 0.2)
    assert runs_evidence([(np.array(runs), 0.5) for runs in blocks], 0.2) == [], "it became slow"
    if text is None:
        assert found == []
        return
    verdict, reason = only(found)
    assert verdict is Verdict.NOISY
    assert reason == f"the runs have more than one speed: their median is {text} their trimmed mean"


SLOW = Shift(value=math.log(1.14), passing=0.01, lasting=0.01, memory=math.log(1.13))


@pytest.mark.parametrize(
    ("parts", "shift", "text"),
    [
        (
            Parts(runs=0.03, sessions=0.01, pace=0.02, moments=50),
            None,
            "±3.1 %, requested ±2 %; more runs would help: give a longer --max-time",
        ),
        (
            Parts(runs=0.01, sessions=0.018, pace=0.01, moments=50),
            None,
            "±3.1 %, requested ±2 %; sessions differ, which leaves ±1.8 %: give more --sessions",
        ),
        (
            Parts(runs=0.01, sessions=0.01, pace=0.03, history=0.01, moments=50),
            SLOW,
            "±3.1 %, requested ±2 %; this device is 14 % slower than usual for this model (mostly "
            "its memory), and corrected to ±3.0 %: time again later, or give --spread 10m",
        ),
        (
            Parts(runs=0.01, sessions=0.01, pace=0.03, moments=50),
            Shift(0.01, 0.01, 0.01, 0.0),
            "±3.1 %, requested ±2 %; the current pace of the device is known to ±3.0 %: time "
            "again later, or give --spread 10m",
        ),
        (
            Parts(runs=0.01, pace=0.03, history=0.03),
            None,
            ", requested ±2 %: this device has no history yet; time again later, or give "
            "--spread 1h",
        ),
        (
            Parts(runs=0.01, pace=0.03, history=0.01, moments=1),
            SLOW,
            ", requested ±2 %: the history of this device has only 1 moment; time again "
            "later, or give --spread 1h",
        ),
        (
            Parts(runs=0.30, pace=0.25, history=0.25),
            None,
            "±3.1 %, requested ±2 %; more runs would help: give a longer --max-time; besides, this "
            "device has no history yet; time again later, or give --spread 1h",
        ),
        (
            Parts(runs=0.0, blocks=0.03, history=0.01, moments=9),
            SLOW,
            "±3.1 %, requested ±2 %; blocks differ, which leaves ±3.0 %: give a longer --spread",
        ),
        (
            Parts(runs=0.0, blocks=0.01, history=0.03, moments=9),
            None,
            ", requested ±2 %: the history of this device has only 9 moments; time again "
            "later, or give --spread 1h",
        ),
    ],
)
def test_a_reason_names_what_makes_an_interval_wide(
    parts: Parts, shift: Shift | None, text: str
) -> None:
    judgement = judge_number(0.031, 0.02, [], parts, shift)
    assert judgement.verdict is Verdict.UNRESOLVED
    (reason,) = judgement.reasons
    told = on_command_line(reason)
    assert told.startswith("interval too wide")
    assert told.endswith(text)
    assert judge_number(0.019, 0.02, [], parts, shift).verdict is Verdict.STABLE


def test_more_sessions_do_not_help_a_model_that_loads_slowly() -> None:
    parts = Parts(runs=0.01, sessions=0.018, pace=0.01, moments=50)
    (reason,) = judge_number(0.031, 0.02, [], parts, slow_load=True).reasons
    told = on_command_line(reason)
    assert told.endswith("give a longer --spread, whose blocks open new ones")
    assert "--sessions" not in told
    judgement = judge_number(0.01, 0.02, sessions_evidence(4, 0.93))
    assert judgement.verdict is Verdict.STABLE
    (warning,) = map(on_command_line, judgement.reasons)
    assert warning.startswith("one session in a block, not 4: a model that takes more than 0.5 s")
    assert sessions_evidence(4, 0.0) == sessions_evidence(1, 0.93) == []


def test_with_runs_that_were_asked_for_more_of_them_help() -> None:
    (reason,) = judge_number(0.031, 0.0, [], Parts(runs=0.031)).reasons
    assert on_command_line(reason).endswith("default ±2 %; more runs would help: give more --runs")


def test_a_model_with_the_maximum_of_runs_needs_a_higher_maximum() -> None:
    judgement = judge_number(0.031, 0.02, [], Parts(runs=0.031), all_runs=True)
    (reason,) = map(on_command_line, judgement.reasons)
    assert reason.endswith("requested ±2 %; more runs would help: give more --max-runs")


def test_what_is_unusual_is_told_in_words() -> None:
    of_memory = "this device is 14 % slower than usual for this model (mostly its memory)"
    assert describe_shift(SLOW) == of_memory
    for error in (0.01, 0.1):
        fast = Shift(-0.11, error, 0.0, 0.0)
        assert describe_shift(fast) == "this device is 10 % faster than usual for this model"
    for value in (0.04, -0.04, 0.0):
        assert describe_shift(Shift(value, 0.001, 0.0, 0.0)) is None


def test_a_history_that_cannot_be_kept_is_named() -> None:
    parts = Parts(runs=0.01, pace=0.03, history=0.03)
    (reason,) = judge_number(0.031, 0.02, [], parts, None, "/state/h: No space left").reasons
    assert "history cannot be kept (/state/h: No space left)" in reason
    assert "time again later" not in reason


def test_what_disturbed_a_device_is_told_from_what_is_merely_not_known() -> None:
    assert not judge_number(0.031, 0.02, []).disturbed
    assert judge_number(0.031, 0.02, [(Verdict.NOISY, "noise")]).disturbed


def test_a_verdict_follows_its_interval() -> None:
    block = [(Verdict.STABLE, "2 threads on 1 processor"), (Verdict.NOISY, "7 pages swapped")]
    off = "references off by 4.0 %, tolerated 3 %"
    wide = judge_number(0.05, 0.02, [*block, (Verdict.NOISY, off)])
    narrow = judge_again(wide, 0.01, 0.02, block, 0.012)
    assert narrow.verdict is Verdict.NOISY
    assert narrow.reasons == ("7 pages swapped", off, "2 threads on 1 processor")
    assert judge_again(narrow, 0.03, 0.02, block, 0.041).reasons == (
        "interval too wide: ±4.1 %, requested ±2 %",
        *narrow.reasons,
    )
    few = judge_number(math.inf, 0.02, block[:1])
    assert judge_again(few, 0.01, 0.02, block, 0.01) == Judgement(
        Verdict.STABLE, ("2 threads on 1 processor",)
    )
