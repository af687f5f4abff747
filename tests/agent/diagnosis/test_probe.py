"""The doctor's probe: how many runs it asks for, and what it makes of them."""

import numpy as np
import pytest

from esm_agent.diagnosis.probe import check_probe_s, noise, run_probe
from esm_agent.measure.block import UploadedBlock
from esm_agent.measure.timing import interleaved
from esm_models.reference_models import stale_models
from esm_protos.messages import BlockResult, FailureKind, Measurement


class Device:
    """Measures by a formula: ``latency_ns(time)`` of every run, runs one after the other."""

    def __init__(self, latency_ns=lambda ns: 1_000_000, fails: bool = False) -> None:
        self.blocks: list[UploadedBlock] = []
        self.latency_ns = latency_ns
        self.fails = fails

    def measure(self, block: UploadedBlock) -> BlockResult:
        self.blocks.append(block)
        now = 0

        def run() -> None:
            nonlocal now
            now += int(self.latency_ns(now))

        runs = dict.fromkeys(range(len(block.models)), run)
        samples = interleaved(runs, block.spec, clock=lambda: now)
        measurements = tuple(
            Measurement.failed(model.model_id, FailureKind.CRASH, "scripted")
            if self.fails
            else samples[index].measurement(model.model_id, 0, 0, 0)
            for index, model in enumerate(block.models)
        )
        return BlockResult(block.block_id, measurements, now, now)


def test_the_committed_models_are_fresh() -> None:
    assert stale_models() == [], "run `make references`"


@pytest.mark.parametrize("latency_ms", [0.5, 3, 40])
def test_takes_about_as_long_as_asked(latency_ms: float) -> None:
    device = Device(lambda ns: latency_ms * 1e6)
    result = run_probe(device.measure, probe_s=5)
    assert result.busy_ns / 1e9 == pytest.approx(5, rel=0.2)
    (probe,) = device.blocks
    assert len(probe.models) >= 4
    assert all(model.path.is_file() for model in probe.models)


def test_a_very_slow_device_is_still_asked_once() -> None:
    device = Device(lambda ns: 2e9)
    run_probe(device.measure, probe_s=0.5)
    assert len(device.blocks) == 1


def test_models_that_fail_are_not_timed() -> None:
    device = Device(fails=True)
    assert all(m.failure for m in run_probe(device.measure, 5).measurements)
    assert len(device.blocks) == 1


def test_a_steady_device_has_no_spread() -> None:
    found = noise(run_probe(Device().measure, 3))
    assert found.spread == found.span == 0
    assert {*found.model_spreads.values(), *found.intervals.values()} == {0}


def test_a_pace_that_changes_is_spread_but_hardly_noise() -> None:
    """Slower by a fifth in every other second: common to all models, so it is divided out."""
    found = noise(run_probe(Device(lambda ns: 1e6 * (1 + 0.2 * (ns // 10**9 % 2))).measure, 6))
    assert found.spread == pytest.approx(0.1, rel=0.2)
    assert found.span == pytest.approx(0.2, abs=0.01)
    assert max(found.intervals.values()) < 0.01


def test_noise_of_single_runs_is_no_spread() -> None:
    rng = np.random.default_rng(0)
    found = noise(run_probe(Device(lambda ns: rng.normal(1e6, 2e5)).measure, 5))
    assert found.spread is not None
    assert found.spread < 0.03
    assert all(0.001 < interval < 0.05 for interval in found.intervals.values())


def test_a_short_probe_tells_no_spread() -> None:
    found = noise(run_probe(Device().measure, 0.9))
    assert found.spread is found.span is None


@pytest.mark.parametrize("seconds", [0, -1, 601, float("nan")])
def test_durations_that_make_no_sense_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"give 0\.1 to 600 seconds"):
        check_probe_s(seconds)
