"""Campaigns with the agent's reference models: latencies at the device's usual pace."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from esm_agent.measure.references import reference_models
from esm_host import Settings, load_run
from esm_host.campaign.folder import RunFolder
from esm_host.dataset.lanes import Batch, SharedBatches
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.dataset.table import Dataset
from esm_host.transport.base import OnProgress
from esm_host.transport.fake import REFERENCES, FakeProfiler
from esm_host.workflows.profile import run_campaign
from esm_models.architecture import Architecture
from esm_protos.graphs import weight_bytes
from esm_protos.messages import (
    Block,
    BlockResult,
    FailureKind,
    Measurement,
    MeasureSpec,
    Model,
)
from tests.host.cli.test_cli import QUICK, esm_host
from tests.host.dataset.test_collect import plan
from tests.host.fake_campaign import SPACE, Log, assemble, latency
from tests.host.report.conftest import written

SPEC = MeasureSpec(runs=12, references=True)

pytestmark = pytest.mark.usefixtures("numbered", "undrawn")


def weights(model: Model) -> int:
    """4 to 40 MB, by chance."""
    share = hashlib.sha256(model.model_id.encode()).digest()[0] / 255
    return int(4e6 * 10**share)


def streaming(model: Model) -> float:
    """Networks whose weights cost a good part of their time."""
    return weights(model) / 1.2e7 + latency(model) / 10


def wandering(number: int) -> float:
    """Memory 10 % slower and faster than usual by turns that last some blocks."""
    return float(np.exp(0.1 * np.sin(0.9 * number)))


def varied(*now: float) -> Callable[[int], float]:
    """A pace that has varied by 8 % about 1, and what it is now, block by block."""
    return lambda number: [1, 0.92, 1, 1.08][number % 4] if number < 0 else now[number % len(now)]


def device(of_model: Callable[[Model], float] = streaming, **options) -> FakeProfiler:
    """A device that remembers many hours."""
    return FakeProfiler(
        of_model, **{"weight_bytes": weights, "past": 200, "noise": 0.005, **options}
    )


def truth(planned: list[Architecture], of: Callable[[Model], float] = streaming) -> np.ndarray:
    return np.array([of(Model(a.key, SPACE.build(a))) for a in planned])


def errors(dataset: Dataset) -> np.ndarray:
    return np.abs(dataset.latency_ms / truth(dataset.architectures) - 1)


def test_memory_that_wanders_is_taken_out(tmp_path: Path) -> None:
    store, collector, _ = assemble(tmp_path, device(memory_pace=wandering), Log(), spec=SPEC)
    plan(store, 80)
    collector.collect(0)
    ours = errors(Measurements(store, SPEC).dataset())
    raw = errors(Measurements(store, SPEC, raw=True).dataset())
    assert np.median(ours) < 0.01
    assert ours.max() < 0.03
    assert np.median(raw) > 3 * np.median(ours)


def test_without_the_agents_models_only_the_common_pace_is(tmp_path: Path) -> None:
    """What a campaign of the version before makes of such a device."""
    plain = replace(SPEC, references=False)
    store, collector, _ = assemble(tmp_path, device(memory_pace=wandering), Log(), spec=plain)
    plan(store, 80)
    collector.collect(0)
    assert np.quantile(errors(Measurements(store, plain).dataset()), 0.9) > 0.01
    assert not any(result.references or result.usual for result in store.results())
    assert not Measurements(store, plain).table().agent[0]


def test_the_fake_has_the_agents_models() -> None:
    shipped = {model.model_id: weight_bytes(model.path) for model in reference_models()}
    assert {each.name: each.weight_bytes for each in REFERENCES} == shipped


def test_a_fake_that_is_started_again_remembers_as_much() -> None:
    """Else what a campaign comes to depends on when it was interrupted."""
    fake = FakeProfiler(latency)
    blocks = [Block(name, SPEC, (Model("m", b"x"),)) for name in "abc"]
    remembered = [fake.measure(block).usual.to_json() for block in blocks]
    assert remembered[0] == remembered[1] == remembered[2]


def test_a_pace_of_everything_is_taken_out(tmp_path: Path) -> None:
    """Not the campaign's median counts, but the device's usual pace."""
    profiler = device(latency, pace=varied(1.3, 1.1))
    store, collector, _ = assemble(tmp_path, profiler, Log(), spec=SPEC)
    plan(store)
    assert collector.collect(0).passed
    measurements = Measurements(store, SPEC)
    dataset = measurements.dataset()
    np.testing.assert_allclose(dataset.latency_ms, truth(dataset.architectures, latency), rtol=0.02)
    factors = measurements.table().quality.factors
    np.testing.assert_allclose(factors, np.tile([1.3, 1.1], 2), rtol=0.02)
    figures = measurements.figures()
    np.testing.assert_allclose(figures.latency_ms, truth(figures.architectures, latency), rtol=0.02)


def test_blocks_that_come_later_change_nothing_but_what_is_usual(tmp_path: Path) -> None:
    """Read block by block or all at once, a campaign comes to the same."""
    store, collector, _ = assemble(
        tmp_path, device(memory_pace=wandering, past=2), Log(), spec=SPEC
    )
    step_by_step = Measurements(store, SPEC)
    for number in range(3):
        plan(store, 20, number)
        collector.collect(number)
        kept, fresh = step_by_step.figures(), Measurements(store, SPEC).figures()
        np.testing.assert_array_equal(kept.latency_ms, fresh.latency_ms)
        np.testing.assert_array_equal(kept.interval, fresh.interval)


@pytest.mark.parametrize("raw", [False, True])
def test_reasons_have_the_interval_of_their_row(tmp_path: Path, raw: bool) -> None:
    """Also when later blocks tell more of the usual pace than when the verdict was stored."""
    spec = replace(SPEC, precision=0.004, long_visits=4)
    forgetful = device(past=1, noise=0.02, memory_pace=wandering)
    store, collector, _ = assemble(tmp_path, forgetful, Log(), spec=spec)
    for number in range(3):
        plan(store, 20, number)
        collector.collect(number)
    dataset = Measurements(store, spec, raw).dataset()
    told = [
        (reason, f"±{100 * interval:.1f} %")
        for judgement, interval in zip(dataset.judgements, dataset.interval, strict=True)
        for reason in judgement.reasons
        if reason.startswith("interval")
    ]
    assert len(told) > 30
    assert [reason for reason, interval in told if interval not in reason] == []
    stored = {reason for each in store.verdicts().values() for reason in each.reasons}
    assert not {reason for reason, _ in told} <= stored


def test_sessions_that_differ_are_in_the_intervals(tmp_path: Path) -> None:
    spec = replace(SPEC, sessions=3)
    store, collector, _ = assemble(tmp_path, device(latency, session_spread=0.02), Log(), spec=spec)
    plan(store)
    collector.collect(0)
    assert {len(m.session_runs) for m in store.measurements()} == {3}
    dataset = Measurements(store, spec).dataset()
    error = dataset.latency_ms / truth(dataset.architectures, latency) - 1
    assert np.mean(np.abs(error) < dataset.interval) > 0.8


def test_a_reference_that_strays_fails_its_block_and_moves_no_other_figure(tmp_path: Path) -> None:
    astray = ""

    def of_model(model: Model) -> float:
        strays = model.model_id == astray and len(profiler.blocks) == 2
        return latency(model) * (1.25 if strays else 1)

    profiler = device(of_model)
    log = Log()
    store, collector, _ = assemble(tmp_path, profiler, log, spec=SPEC)
    astray = store.plan()[REFERENCE_ROUND][0].key
    plan(store)
    assert collector.collect(0).passed
    assert log.remeasured == 1
    assert [block.passed for block in store.blocks()] == [True, False, True, True, True]
    table = Measurements(store, SPEC).table()
    others = [a for a in store.plan()[0] if a.key in table.models[1]]
    found = [table.models[1][a.key].latency_ms for a in others]
    np.testing.assert_allclose(found, truth(others, latency), rtol=0.02)
    assert len(others) == 10


class Forgetful(FakeProfiler):
    """In its second block the agent's reference models fail, and it remembers nothing."""

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        result = super().answer(block, on_progress)
        if len(self.blocks) == 2:
            failed = tuple(
                Measurement.failed(each.model_id, FailureKind.OUT_OF_MEMORY, "no room")
                for each in result.references
            )
            return replace(result, references=failed, usual=None)
        return replace(result, usual=None)


def test_a_block_whose_agents_models_failed_is_told_by_the_campaigns(tmp_path: Path) -> None:
    profiler = Forgetful(latency, pace=lambda number: 1.2 if number == 1 else 1.0)
    store, collector, _ = assemble(tmp_path, profiler, Log(), spec=SPEC)
    planned = plan(store)
    assert collector.collect(0).passed
    dataset = Measurements(store, SPEC).dataset()
    np.testing.assert_allclose(dataset.latency_ms, truth(planned, latency), rtol=0.01)
    failures = [each.failure for each in store.results()[1].references]
    assert [failure.message for failure in failures if failure] == ["no room"] * 4


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices of a group take its blocks in turn, whichever would be faster."""
    turn, take = threading.Condition(), SharedBatches.take

    def taken(self: SharedBatches, device: str, wait: bool) -> Batch | None:
        order: list[str] = vars(self).setdefault("order", ["pi-1", "pi-2", "pi-3"])
        with turn:
            assert turn.wait_for(lambda: device not in order or order[0] == device, timeout=60)
            batch = take(self, device, wait=False)
            if device in order:
                order.remove(device)
            if batch is not None:
                order.append(device)
            turn.notify_all()
        return batch

    monkeypatch.setattr(SharedBatches, "take", taken)


def test_devices_of_a_group_have_paces_of_their_own(tmp_path: Path, in_turn: None) -> None:
    """One is slowed down throughout, the next is slower than it by nature."""
    devices = {
        "pi-1": device(hostname="pi-1", pace=varied(1.2)),
        "pi-2": device(hostname="pi-2", pace=lambda number: 1.04, memory_pace=wandering),
        "pi-3": device(hostname="pi-3"),
    }
    store, collector, _ = assemble(tmp_path, devices, Log(), spec=SPEC, block_size=5)
    plan(store, 60)
    assert collector.collect(0).passed
    measurements = Measurements(store, SPEC)
    ours = errors(measurements.dataset())
    assert np.median(ours) < 0.015
    assert ours.max() < 0.03
    levels = dict(
        zip(
            [block.device for block in measurements.table().blocks],
            measurements.table().quality.levels,
            strict=True,
        )
    )
    assert levels.get("pi-2", 1.04) == pytest.approx(1.04, abs=0.02)
    assert levels.get("pi-1", 1.0) == pytest.approx(1.0, abs=0.01)


def test_anchors_tell_what_no_reference_model_feels(tmp_path: Path) -> None:
    slow: set[str] = set()
    profiler = device(lambda model: latency(model) * (1.3 if model.model_id in slow else 1))
    store, collector, _ = assemble(tmp_path, profiler, Log(), spec=SPEC)
    planned = plan(store)
    collector.collect(0)
    fresh = plan(store, 10, -2)
    along = planned[:4]
    slow |= {a.key for a in [*fresh, *along]}
    collector.collect(-2, lambda pending: along)
    measurements = Measurements(store, SPEC)
    figures = measurements.figures()
    np.testing.assert_allclose(figures.latency_ms, truth(figures.architectures, latency), rtol=0.02)
    assert measurements.table().quality.factors[-1] == pytest.approx(1.3, abs=0.01)
    assert store.blocks()[-1].passed, "references that were not slowed down do not stray"


def begun(path: Path, *options: str) -> None:
    given = ("--target-accuracy", 1, "--predictor", "ridge", *options)
    result = esm_host("profile", *QUICK, "--run", path, *given)
    assert result.exit_code == 0, result.output


def test_new_campaigns_ask_for_the_agents_models(fake: FakeProfiler, tmp_path: Path) -> None:
    begun(tmp_path / "run")
    probe, *blocks = fake.blocks
    assert len(probe.models) == 2
    assert all(block.spec.references for block in blocks)
    settings = load_run(tmp_path / "run").settings
    assert settings.references == 4, "of the campaign itself"
    assert settings.spec.references
    assert len(load_run(tmp_path / "run").paces()) == 4 * len(blocks)
    (tmp_path / "row").mkdir()
    begun(tmp_path / "row" / "run", "--protocol", "sequential")
    assert not fake.blocks[-1].spec.references


def test_a_folder_of_the_version_before_reads_and_resumes_as_it_did(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    settings = Settings(
        *("fake", "resnet", 32, 0.25), initial=20, max_models=20, bins=2, block_size=5,
        predictor="ridge", target_accuracy_percent=1, verify=0, spec=MeasureSpec(runs=5),
    )  # fmt: skip
    run_campaign(settings, RunFolder(path))
    before = load_run(path).measurements()
    _as_the_version_before_wrote_it(path)
    run = load_run(path)
    assert not run.settings.spec.references
    pd.testing.assert_frame_equal(run.measurements(), before)
    assert run.paces().empty
    assert "divided by the pace of its block" in written(path, tmp_path / "r.html").read_text()
    resume = ("profile", "--run", path, "--resume", "--references", 4, "--max-models", 30)
    result = esm_host(*resume, "--target-accuracy", 100)
    assert result.exit_code == 3, result.output
    assert not any(block.spec.references for block in fake.blocks)
    assert len(load_run(path).measurements()) == 30


def _as_the_version_before_wrote_it(path: Path) -> None:
    file = path / "settings.json"
    settings = json.loads(file.read_text())
    del settings["raw"], settings["spec"]["references"], settings["spec"]["sessions"]
    file.write_text(json.dumps(settings))
    with closing(sqlite3.connect(path / "store.sqlite")) as connection, connection:
        query = "SELECT value FROM facts WHERE key = 'campaign'"
        facts = json.loads(connection.execute(query).fetchone()[0])
        del facts["agent_references"], facts["sessions"]
        change = "UPDATE facts SET value = ? WHERE key = 'campaign'"
        connection.execute(change, (json.dumps(facts),))


def test_a_campaign_can_be_reported_as_measured(fake: FakeProfiler, tmp_path: Path) -> None:
    fake._pace = lambda number: [1.0, 1.2][number % 2]
    path = tmp_path / "run"
    begun(path, "--raw")
    raw = load_run(path).measurements()
    np.testing.assert_array_equal(raw["latency_ms"], raw["raw_ms"])
    assert load_run(path).settings.raw
    assert esm_host("profile", "--run", path, "--resume", "--no-raw").exit_code == 0
    usual = load_run(path).measurements()
    np.testing.assert_array_equal(usual["raw_ms"], raw["raw_ms"])
    assert not np.allclose(usual["latency_ms"], raw["latency_ms"], rtol=0.02)
