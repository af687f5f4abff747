"""Estimates of a campaign's device time, before it begins and from its blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esm_host.campaign.estimate import Estimate, estimate, estimate_of_blocks
from esm_host.cli.live import Live
from esm_host.dataset.store import Store
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Block, BlockResult
from tests.host.fake_campaign import SETTINGS, SPACE, Log, assemble, latency

EXACT = replace(SETTINGS, spec=replace(SETTINGS.spec, runs=30, precision=0.0))
PRECISE = replace(SETTINGS, spec=replace(SETTINGS.spec, runs=30, precision=0.02))


def test_runs_that_agree_give_one_number() -> None:
    told = estimate(FakeProfiler(latency), SPACE, EXACT, 40)
    assert told is not None
    assert told.model_low_s == pytest.approx(told.model_s)
    assert told.least_ms < told.most_ms


class Delays(FakeProfiler):
    """A device whose other programs delay all runs of the first model but one."""

    def measure(self, block: Block, *arguments: Any) -> BlockResult:
        result = super().measure(block, *arguments)
        first, *others = result.measurements
        delayed = first.latency_ns + 100_000_000
        delayed[3] = first.latency_ns[3]
        return replace(result, measurements=(replace(first, latency_ns=delayed), *others))


def test_delays_do_not_turn_the_networks_round() -> None:
    told = estimate(Delays(latency), SPACE, EXACT, 40)
    quiet = estimate(FakeProfiler(latency), SPACE, EXACT, 40)
    assert told is not None
    assert quiet is not None
    assert (told.least_ms, told.most_ms) == pytest.approx((quiet.least_ms, quiet.most_ms))


def test_runs_that_scatter_give_a_range() -> None:
    told = estimate(FakeProfiler(latency, noise=0.3), SPACE, EXACT, 40)
    assert told is not None
    assert told.model_low_s < 0.8 * told.model_s


def test_models_that_may_end_early_give_a_range() -> None:
    told = estimate(FakeProfiler(latency), SPACE, PRECISE, 40)
    assert told is not None
    assert 2 * told.model_low_s < told.model_s


class Loads(FakeProfiler):
    """A device that takes 7 s for every block besides the runs."""

    def measure(self, block: Block, *arguments: Any) -> BlockResult:
        result = super().measure(block, *arguments)
        return replace(result, busy_ns=result.busy_ns + 7_000_000_000)


@pytest.mark.parametrize(("first", "size"), [(40, 10), (5, 5)])
def test_what_a_block_takes_besides_its_runs_is_shared_by_its_models(first: int, size: int) -> None:
    assert EXACT.block_size == 10
    quick = estimate(FakeProfiler(latency), SPACE, EXACT, first)
    told = estimate(Loads(latency), SPACE, EXACT, first)
    assert quick is not None
    assert told is not None
    assert told.model_s - quick.model_s == pytest.approx(7 / size, rel=0.01)
    assert told.model_low_s - quick.model_low_s == pytest.approx(7 / size, rel=0.01)


def test_blocks_give_what_they_cost(tmp_path: Path) -> None:
    assert estimate_of_blocks(Store(tmp_path / "store.sqlite"), SETTINGS) is None
    store, _, loop = assemble(tmp_path, FakeProfiler(latency), Log(), max_models=60)
    loop.run()
    told = estimate_of_blocks(store, SETTINGS)
    assert told is not None
    assert told.is_measured
    busy_s = sum(block.busy_ns for block in store.blocks()) / 1e9
    models = sum(len(planned) for number, planned in store.plan().items() if number >= 0)
    assert told.model_s == told.model_low_s == pytest.approx(busy_s / models)


def test_estimates_are_said_to_be_rough_until_blocks_are_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = Live(quiet=False)
    live.on_estimate(Estimate(0.5, 2.0, 2.0, 1.0))
    live.on_round(0, 30)
    live._block_began -= 80
    live.on_block("a", 10, 20)
    live.on_round(1, 5)
    said = capsys.readouterr().err
    assert "takes about 0.5 ms, the largest 2 ms; 20 models take about 20 s to 40 s" in said
    assert "round 0: 30 architectures, about 30 s to 60 s" in said
    assert "the first 10 models took 80 s" in said
    assert "round 1: 5 architectures, about 40 s" in said


def test_the_rounds_of_a_resumed_campaign_are_estimated_by_its_blocks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = Live(quiet=False)
    live.on_estimate(Estimate(0.5, 2.0, 3.0, 3.0, is_measured=True))
    live.on_round(2, 20)
    assert capsys.readouterr().err.splitlines() == ["round 2: 20 architectures, about 60 s"]
