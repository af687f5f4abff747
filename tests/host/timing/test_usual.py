"""``esm-host time`` on devices that remember how fast they usually are, raw, and over minutes."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import esm_host
from esm_host.cli.app import app
from esm_host.cli.progress import DeviceLines
from esm_host.cli.timing_table import _ratio as shown_ratio
from esm_host.errors import UnreachableError, UsageError
from esm_host.evaluation.difference import Ratio
from esm_host.evaluation.verdict import Verdict
from esm_host.search.latency import measured_at_most
from esm_host.timing.result import Result as TimingResult
from esm_host.timing.spread import (
    block_starts,
    parse_duration,
    pool,
    pool_evidence,
    pool_ratios,
)
from esm_host.transport import devices
from esm_host.transport.base import OnProgress
from esm_protos.estimates import Estimate, Parts
from esm_protos.messages import Block, BlockResult, Measurement, MeasureSpec
from tests.host.paced import BIG_MS, SMALL_MS, PacedProfiler

SLOW = math.log(1.14)
BARE = b"\x08\x08\x3a\x00"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESM_DEVICE", raising=False)
    paths = [Path("big.onnx"), Path("small.onnx")]
    for number, path in enumerate(paths):
        path.write_bytes(BARE + bytes([0x20, number]))
    return paths


def timed(
    monkeypatch: pytest.MonkeyPatch, profiler: PacedProfiler, models: list[Path], *options: object
) -> Result:
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    texts = [str(value) for value in ("time", *models, "--runs", 200, *options)]
    return CliRunner().invoke(app, texts)


def results(result: Result) -> tuple[dict[str, Any], dict[str, Any]]:
    assert result.exit_code in (0, 3), result.output
    one, other = json.loads(result.stdout)["results"]
    return one, other


def test_latencies_are_at_the_usual_pace(
    monkeypatch: pytest.MonkeyPatch, models: list[Path]
) -> None:
    """Memory is slower by 14 % than usual: the model with many weights feels it."""
    slow = PacedProfiler(lambda number: SLOW)
    result = timed(monkeypatch, slow, models, "--json", "-")
    large, small = results(result)
    assert large["raw_ms"] == pytest.approx(1.14 * BIG_MS, rel=0.01)
    assert large["trimmed_mean_ms"] == pytest.approx(BIG_MS, rel=0.04)
    assert large["shift_percent"] == pytest.approx(14, abs=4)
    low, high = large["ci95_ms"]
    assert low < BIG_MS < high
    assert large["block_ci95_percent"] < large["ci95_percent"]
    assert small["raw_ms"] == pytest.approx(SMALL_MS, rel=0.01)
    assert small["trimmed_mean_ms"] == pytest.approx(SMALL_MS, rel=0.02)
    assert abs(small["shift_percent"]) < 3
    device = json.loads(result.stdout)["context"]["devices"]["local"]
    assert device["usual"]["moments"] == 200
    assert {reference["name"] for reference in device["references"]} == set(
        device["usual"]["references"]
    )


def test_a_line_under_the_result_says_what_is_unusual(
    monkeypatch: pytest.MonkeyPatch, models: list[Path]
) -> None:
    shown = timed(monkeypatch, PacedProfiler(lambda number: SLOW), models).stdout.splitlines()
    (place,) = [n for n, line in enumerate(shown) if "than usual" in line]
    large, _ = results(
        timed(monkeypatch, PacedProfiler(lambda number: SLOW), models, "--json", "-")
    )
    assert shown[place] == (
        f"  this device is {large['shift_percent']:.0f} % slower than usual for this model (mostly "
        "its memory)"
    )
    assert shown[place - 2].startswith("big.onnx")
    usual = timed(monkeypatch, PacedProfiler(), models).stdout
    assert "than usual" not in usual


def test_why_nothing_is_remembered_and_no_reference_was_timed_is_told(
    monkeypatch: pytest.MonkeyPatch, models: list[Path]
) -> None:
    class Poor(PacedProfiler):
        def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
            result = super().answer(block, on_progress)
            return replace(result, **lacking)

    lacking = {"references": (), "references_problem": "one inference of them took 2.0 s"}
    warned = timed(monkeypatch, Poor(), models).stderr
    assert "no reference models (one inference of them took 2.0 s), so" in warned
    assert "update" not in warned
    lacking = {"usual": None, "history_problem": "/state/h: Is a directory"}
    warned = timed(monkeypatch, Poor(), models).stderr
    assert "history cannot be kept (/state/h: Is a directory)" in warned


def test_latencies_as_measured_say_so(monkeypatch: pytest.MonkeyPatch, models: list[Path]) -> None:
    note = "latency as measured, not at the device's usual pace"
    assert note not in timed(monkeypatch, PacedProfiler(), models).stdout
    assert note in timed(monkeypatch, PacedProfiler(), models, "--raw").stdout
    assert note in timed(monkeypatch, PacedProfiler(moments=0), models).stdout
    in_a_row = timed(monkeypatch, PacedProfiler(), models, "--protocol", "sequential")
    assert note in in_a_row.stdout


def test_ratios_are_at_the_usual_pace_too(
    monkeypatch: pytest.MonkeyPatch, models: list[Path]
) -> None:
    data = json.loads(
        timed(monkeypatch, PacedProfiler(lambda number: SLOW), models, "--json", "-").stdout
    )
    (comparison,) = data["comparisons"]
    big, small = (entry["trimmed_mean_ms"] for entry in data["results"])
    assert comparison["paired"]
    assert comparison["ratio"] == pytest.approx(big / small, rel=0.01)
    low, high = comparison["ci95"]
    assert low < BIG_MS / SMALL_MS < high


def test_raw_is_as_measured(monkeypatch: pytest.MonkeyPatch, models: list[Path]) -> None:
    slow = PacedProfiler(lambda number: SLOW)
    usual = timed(monkeypatch, slow, models, "--json", "-")
    raw = timed(monkeypatch, slow, models, "--raw", "--json", "-")
    assert slow.blocks[-1].spec.references, "they are kept all the same"
    asked = [block.raw for block in slow.blocks]
    assert asked == [False, True], "the agent goes on to the precision of what is reported"
    data = json.loads(raw.stdout)
    assert data["context"]["raw"] is True
    assert json.loads(usual.stdout)["context"]["raw"] is False
    for entry, other in zip(data["results"], results(usual), strict=True):
        assert entry["trimmed_mean_ms"] == pytest.approx(entry["raw_ms"], rel=1e-6)
        assert entry["ci95_percent"] == entry["block_ci95_percent"]
        assert entry["ci95_percent"] < other["ci95_percent"]
    (comparison,) = data["comparisons"]
    assert comparison["ratio"] == pytest.approx(1.14 * BIG_MS / SMALL_MS, rel=0.01)


def test_a_first_timing_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, models: list[Path]
) -> None:
    new = PacedProfiler(moments=0)
    monkeypatch.setattr(devices, "connect", lambda device: new)
    result = CliRunner().invoke(app, ["time", *map(str, models), "--max-runs", "200", "--quiet"])
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        "warning: big.onnx and 1 more: unresolved: interval too wide, requested ±2 %: this device "
        "has no history yet; time again later, or give --spread 1h"
    ]
    large, _ = results(timed(monkeypatch, new, models, "--json", "-"))
    assert large["shift_percent"] is None
    assert large["trimmed_mean_ms"] == pytest.approx(large["raw_ms"], rel=1e-6)
    said = timed(monkeypatch, PacedProfiler(moments=2), models).stderr
    assert "the history of this device has only 2 moments" in said


# Spread over minutes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Clock, s, that only waiting advances."""
    now = [0.0]

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if timeout is None:
                return super().wait()
            now[0] += timeout
            return self.is_set()

    names = {"Barrier": threading.Barrier, "Thread": threading.Thread, "Event": Event}
    monkeypatch.setattr("esm_host.timing.run.threading", SimpleNamespace(**names))
    monkeypatch.setattr("esm_host.timing.run.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("1h", 3600), ("1.5 m", 90), (12, 12.0)]
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "1d", "-3s", "0s", "1000h", "nan", -1.0])
def test_what_is_no_duration(text: str | float) -> None:
    with pytest.raises(UsageError, match="such as 30s, 10m or 1h"):
        parse_duration(text)


@pytest.mark.parametrize(("seconds", "count"), [(0, 1), (1, 3), (300, 5), (600, 10), (36000, 10)])
def test_blocks_are_spread_evenly(seconds: float, count: int) -> None:
    starts = block_starts(seconds)
    assert len(starts) == count
    assert starts[0] == 0
    assert np.ptp(np.diff([*starts, seconds])) == pytest.approx(0, abs=1e-9) or count == 1


def test_a_spread_timing_pools_its_blocks(
    monkeypatch: pytest.MonkeyPatch, models: list[Path], clock: list[float]
) -> None:
    held: list[str] = []

    class Watched(PacedProfiler):
        def reserve(self, *arguments: Any) -> Any:
            held.append("taken")
            clock[0] += 10
            return super().reserve(*arguments)

        def close(self) -> None:
            held.append("free")

    device = Watched(lambda number: SLOW * (number - 1))
    result = timed(monkeypatch, device, models, "--spread", "3m", "--json", "-")
    assert held == ["taken", "free"] * 3, "others can use the device between blocks"
    assert "local: 1 of 3 blocks done, the next one in 50 s" in result.stderr
    data = json.loads(result.stdout)
    entry = data["results"][0]
    assert data["context"]["spread_s"] == 180
    assert [block["runs"] for block in entry["blocks"]] == [200] * 3
    assert len(entry["samples_ms"]) == len(entry["starts_ms"]) == entry["runs"] == 600
    assert sum(entry["session_runs"]) == 600
    assert np.all(np.diff(entry["starts_ms"]) > 0)
    own = [block["trimmed_mean_ms"] for block in entry["blocks"]]
    assert entry["trimmed_mean_ms"] == pytest.approx(math.exp(np.mean(np.log(own))))
    assert entry["trimmed_mean_ms"] == pytest.approx(BIG_MS, rel=0.03)
    raws = [block["raw_ms"] / BIG_MS for block in entry["blocks"]]
    assert raws == pytest.approx([1 / 1.14, 1, 1.14], rel=0.01)
    place = data["context"]["devices"]["local"]
    assert place["block_starts_s"] == [0, 60, 120]
    assert {reference["block"] for reference in place["references"]} == {0, 1, 2}
    (comparison,) = data["comparisons"]
    assert comparison["paired"]
    assert comparison["ratio"] == pytest.approx(BIG_MS / SMALL_MS, rel=0.05)
    one, *others = device.blocks
    assert one.peak_memory
    assert not any(block.peak_memory for block in others), "once is enough"


@pytest.mark.usefixtures("clock")
def test_raw_blocks_that_differ_make_a_wide_interval(
    monkeypatch: pytest.MonkeyPatch, models: list[Path]
) -> None:
    device = PacedProfiler(lambda number: SLOW * number)
    result = timed(monkeypatch, device, models, "--spread", "3m", "--raw", "--json", "-")
    large, small = results(result)
    assert large["ci95_percent"] > 10 > small["ci95_percent"]
    assert "blocks differ, which leaves" in large["warnings"][0]


@pytest.mark.usefixtures("clock")
def test_a_model_that_fails_in_one_block_has_failed(
    monkeypatch: pytest.MonkeyPatch, models: list[Path]
) -> None:
    from dataclasses import replace

    from esm_protos.messages import FailureKind, Measurement

    device = PacedProfiler()
    answer = device.answer

    def failing(*arguments: Any) -> Any:
        result = answer(*arguments)
        if len(device.blocks) < 2:
            return result
        first, *rest = result.measurements
        broken = Measurement.failed(first.model_id, FailureKind.CRASH, "it crashed")
        return replace(result, measurements=(broken, *rest))

    monkeypatch.setattr(device, "answer", failing)
    result = timed(monkeypatch, device, models, "--spread", "3m", "--json", "-")
    assert result.exit_code == 1
    broken, fine = json.loads(result.stdout)["results"]
    assert broken["failure"]["kind"] == "crash"
    assert fine["trimmed_mean_ms"] > 0


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("blocks", "code"), [(2, 69), (3, 1)])
def test_blocks_before_a_device_is_gone_are_kept(
    monkeypatch: pytest.MonkeyPatch, models: list[Path], blocks: int, code: int
) -> None:
    device = PacedProfiler()
    answer = device.answer

    def gone(*arguments: Any) -> Any:
        if len(device.blocks) == blocks:
            raise UnreachableError("no agent answers")
        return answer(*arguments)

    monkeypatch.setattr(device, "answer", gone)
    result = timed(monkeypatch, device, models, "--spread", "5m", "--json", "-")
    assert result.exit_code == code
    assert "no agent answers" in result.stderr
    if code == 1:
        data = json.loads(result.stdout)
        assert [len(entry["blocks"]) for entry in data["results"]] == [3, 3]
        assert data["context"]["devices"]["local"]["error"] == "no agent answers"


@pytest.mark.parametrize("names", [["a"], ["a", "b"]])
def test_an_interrupt_ends_the_waiting_at_once(
    monkeypatch: pytest.MonkeyPatch, models: list[Path], names: list[str]
) -> None:
    def wait(lines: DeviceLines, device: str, *arguments: object) -> None:
        if device == "a":
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(DeviceLines, "wait", wait)
    monkeypatch.setattr(devices, "connect", {n: PacedProfiler() for n in names}.__getitem__)
    monkeypatch.setattr("esm_host.timing.run.check_distinct", lambda devices: None)
    chosen = [word for name in names for word in ("--device", name)]
    began = time.monotonic()
    result = CliRunner().invoke(
        app, ["time", str(models[0]), *chosen, "--runs", "20", "--spread", "1m", "--json", "-"]
    )
    signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    data = json.loads(result.stdout)
    assert [len(entry["blocks"]) for entry in data["results"]] == [1] * len(names)
    assert all(device["interrupted"] for device in data["context"]["devices"].values())
    assert time.monotonic() - began < 15


def test_pooling_shares_what_blocks_have_in_common() -> None:
    alike = [Estimate(1e6, 1e6, Parts(0.01, pace=0.05, history=0.03, moments=9))] * 4
    pooled = pool(alike)
    assert pooled.latency_ns == pytest.approx(1e6)
    assert pooled.interval == pytest.approx(0.03), "equal blocks do not make history better known"
    few = pool([*alike[:3], Estimate(1e6, 1e6, Parts(math.inf))])
    assert math.isinf(few.interval)
    ratios = [Ratio(2.0, (1.9, 2.1), True)] * 3
    assert pool_ratios(ratios, 0.01).interval == pytest.approx(
        (2 * math.exp(-0.01), 2 * math.exp(0.01))
    )
    assert pool_ratios([*ratios, Ratio(2.0, None, True)], 0.01).interval is None


@pytest.mark.parametrize("latencies_ms", [(1.0, 1.1, 2.2), (1.0, 3.0, 27.0)])
def test_no_end_of_an_interval_is_below_zero(latencies_ms: tuple[float, ...]) -> None:
    """Blocks, or runs, that differ widely."""
    estimate = pool([Estimate(1e6 * ms, 1e6 * ms, Parts(0.01)) for ms in latencies_ms])
    measured = Measurement("m", np.array([1_000_000]), np.zeros(1, dtype=np.int64))
    result = TimingResult("d", MeasureSpec(), SimpleNamespace(items=1), measured, estimate, None)
    low, high = result.numbers["ci95_ms"]
    latency_ms = result.numbers["trimmed_mean_ms"]
    assert 0 < low < latency_ms < high
    assert math.log(high / low) == pytest.approx(2 * estimate.interval)
    at_least, at_most = (measured_at_most(latency_ms, estimate.interval, p) for p in (0.025, 0.975))
    assert (at_least, at_most) == pytest.approx((low, high))


def test_a_wide_ratio_is_shown_by_its_ends() -> None:
    assert shown_ratio(Ratio(8.0, (8 / 6, 48.0), False)) == "8.00x (1.33 to 48.00)"
    assert shown_ratio(Ratio(1.3, (1.27, 1.331), True)) == "1.30x ± 0.03"


def test_what_disturbed_several_blocks_is_said_once() -> None:
    def busy(processors: float) -> tuple[Verdict, str]:
        return Verdict.NOISY, f"other programs used {processors} processors"

    swapped = (Verdict.NOISY, "3 pages swapped")
    assert pool_evidence([[busy(1.5), swapped]]) == [busy(1.5), swapped]
    assert pool_evidence([[busy(1.5)], [], [busy(0.7), swapped]]) == [
        (Verdict.NOISY, "other programs used 1.5 processors (in 2 of 3 blocks)"),
        (Verdict.NOISY, "3 pages swapped (in 1 of 3 blocks)"),
    ]


def test_intervals_of_blocks_hold_the_truth() -> None:
    """Blocks that differ by 5 %, and nothing else: in about 95 of 100 cases."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        taken = [
            Estimate(1e6 * math.exp(0.05 * each), 1e6, Parts(0.01)) for each in rng.normal(size=5)
        ]
        pooled = pool(taken)
        held += abs(math.log(pooled.latency_ns / 1e6)) < pooled.interval
    assert 0.91 <= held / 400 <= 0.99


def test_from_python_with_a_real_agent(tmp_path: Path) -> None:
    from esm_models.spaces import load_space
    from tests.helpers import smallest

    space = load_space("resnet", resolution=32, width_mult=0.25)
    model = {"net": space.build(smallest(space))}
    timing = esm_host.time(model, runs=40, sessions=3, spread="0.1s")
    (entry,) = timing.data["results"]
    assert [len(block["session_runs"]) for block in entry["blocks"]] == [3, 3, 3]
    paces = timing.paces()
    assert set(paces["block"]) == {0, 1, 2}
    assert len(set(paces["reference"])) > 2
    assert paces["slower_percent"].notna().all()
    with pytest.raises(UsageError, match="spread 5x: give a duration"):
        esm_host.time(model, spread="5x")
