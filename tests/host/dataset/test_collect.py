"""Collecting: references in every block, quality control, drift removed, nothing measured twice."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.errors import DeviceError, MismatchError
from esm_host.evaluation.verdict import Verdict
from esm_host.transport.base import OnProgress, Pending
from esm_host.transport.fake import FakeProfiler
from esm_models.cost import memory_bytes
from esm_protos.messages import (
    Block,
    BlockResult,
    Failure,
    FailureKind,
    MeasureSpec,
    Model,
    RunOrder,
)
from tests.host.fake_campaign import SPACE, Log, assemble, latency


def plan(store, count: int = 40, round_number: int = 0):
    from esm_host.sampling.balanced import BalancedSampler
    from esm_host.sampling.bins import DepthBins

    sampler = BalancedSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 4))
    seen = {a.key for planned in store.plan().values() for a in planned}
    drawn = sampler.sample(count, np.random.default_rng(abs(round_number)), exclude=seen)
    store.add_plan(round_number, drawn)
    return drawn


def test_every_block_holds_all_references_and_every_model_is_measured_once(tmp_path: Path) -> None:
    profiler = FakeProfiler(latency)
    store, collector, _ = assemble(tmp_path, profiler, Log())
    planned = plan(store)
    quality = collector.collect(0)
    assert (quality.passed, quality.remeasured_blocks) == (True, 0)
    references = {a.key for a in store.plan()[REFERENCE_ROUND]}
    for block in profiler.blocks:
        ids = [model.model_id for model in block.models]
        assert references <= set(ids)
        assert len(ids) == len(set(ids)) == 14
    counts = Counter(m.model_id for block in profiler.blocks for m in block.models)
    assert all(counts[a.key] == 1 for a in planned)
    collector.collect(0)
    assert len(profiler.blocks) == 4, "collecting again measures nothing"


def test_the_devices_pace_is_divided_out(tmp_path: Path) -> None:
    profiler = FakeProfiler(latency, pace=lambda number: [1, 1.5, 0.8, 1][number % 4])
    store, collector, _ = assemble(tmp_path, profiler, Log())
    planned = plan(store)
    assert collector.collect(0).passed
    dataset = Measurements(store, MeasureSpec(runs=12)).dataset()
    assert dataset.architectures == planned
    truth = [latency(Model(a.key, SPACE.build(a))) for a in planned]
    np.testing.assert_allclose(dataset.latency_ms, truth, rtol=1e-4)


def test_in_a_row_the_pace_stays_in_and_fails_the_block(tmp_path: Path) -> None:
    profiler = FakeProfiler(latency, pace=lambda number: 1.5 if number == 2 else 1.0)
    spec = MeasureSpec(runs=12, run_order=RunOrder.SEQUENTIAL)
    store, collector, _ = assemble(tmp_path, profiler, Log(), spec=spec)
    planned = plan(store)
    quality = collector.collect(0)
    assert (quality.passed, quality.remeasured_blocks) == (True, 1)
    truth = [latency(Model(a.key, SPACE.build(a))) for a in planned]
    np.testing.assert_allclose(Measurements(store, spec).dataset().latency_ms, truth, rtol=1e-4)


def test_anchors_tell_the_pace_of_a_block_and_keep_their_own_figures(tmp_path: Path) -> None:
    slow: set[str] = set()
    profiler = FakeProfiler(lambda model: latency(model) * (1.3 if model.model_id in slow else 1))
    store, collector, _ = assemble(tmp_path, profiler, Log())
    planned, later = plan(store), []
    collector.collect(0)
    measurements = Measurements(store, MeasureSpec(runs=12))
    before = measurements.dataset().latency_ms
    for round_number, anchors in ((-2, 3), (-3, 2)):
        fresh = plan(store, 10, round_number)
        along = planned[:anchors]
        slow |= {a.key for a in [*fresh, *along]}  # of the references none
        collector.collect(round_number, lambda pending, along=along: along)
        assert {a.key for a in along} <= {m.model_id for m in profiler.blocks[-1].models}
        later += fresh
    dataset = measurements.dataset()
    figures = {
        a.key: value for a, value in zip(dataset.architectures, dataset.latency_ms, strict=True)
    }
    truth = [latency(Model(a.key, SPACE.build(a))) for a in later]
    np.testing.assert_allclose([figures[a.key] for a in later[:10]], truth[:10], rtol=1e-4)
    # Fewer than three are not believed.
    slowed = 1.3 * np.array(truth[10:])
    np.testing.assert_allclose([figures[a.key] for a in later[10:]], slowed, rtol=1e-4)
    np.testing.assert_array_equal([figures[a.key] for a in planned], before)
    names = measurements.figures().verdicts
    assert names.count("reference") == len(store.plan()[REFERENCE_ROUND])
    assert "" not in names


class Straying:
    """One reference is off by a fifth in chosen blocks."""

    def __init__(self, *blocks: int) -> None:
        self.bad_blocks = blocks
        self.reference = ""
        self.profiler = FakeProfiler(self.latency)

    def latency(self, model: Model) -> float:
        stray = (
            len(self.profiler.blocks) - 1 in self.bad_blocks and model.model_id == self.reference
        )
        return latency(model) * (1.2 if stray else 1)


def test_a_block_whose_reference_strays_is_measured_again(tmp_path: Path) -> None:
    device = Straying(1)
    log = Log()
    store, collector, _ = assemble(tmp_path, device.profiler, log)
    device.reference = store.plan()[REFERENCE_ROUND][0].key
    plan(store)
    quality = collector.collect(0)
    assert (quality.passed, quality.remeasured_blocks, log.remeasured) == (True, 1, 1)
    assert quality.worst_reference_deviation < 0.03
    bad, again = device.profiler.blocks[1], device.profiler.blocks[4]
    assert [m.model_id for m in bad.models] == [m.model_id for m in again.models]
    assert bad.block_id != again.block_id
    assert Measurements(store, MeasureSpec(runs=12)).dataset().verdict_counts()["stable"] == 40


def test_a_block_that_keeps_failing_is_kept_and_marked(tmp_path: Path) -> None:
    device = Straying(1, 4, 5)
    store, collector, _ = assemble(tmp_path, device.profiler, Log(), max_remeasurements=2)
    device.reference = store.plan()[REFERENCE_ROUND][0].key
    plan(store)
    quality = collector.collect(0)
    assert not quality.passed
    assert quality.remeasured_blocks == 2
    assert quality.worst_reference_deviation > 0.03
    assert len(device.profiler.blocks) == 6
    dataset = Measurements(store, MeasureSpec(runs=12)).dataset()
    assert len(dataset) == 40
    assert dataset.verdict_counts() == {"stable": 30, "noisy": 10, "unresolved": 0, "throttled": 0}
    noisy = [j for j in dataset.judgements if j.verdict is Verdict.NOISY]
    assert all(j.reasons[0].startswith("references off by 9.5 %") for j in noisy)
    assert len(dataset.only({Verdict.STABLE})) == 30


@pytest.mark.parametrize(
    ("kind", "blocks"),
    [
        (FailureKind.INVALID_MODEL, 4),
        (FailureKind.INVALID_INPUT, 4),
        (FailureKind.OUT_OF_MEMORY, 6),
    ],
)
def test_a_model_that_fails_is_recorded_and_tried_again_where_that_may_help(
    tmp_path: Path, kind: FailureKind, blocks: int
) -> None:
    bad_key = ""

    def sometimes(model: Model) -> float | Failure:
        if model.model_id == bad_key:
            return Failure(kind, "it failed")
        return latency(model)

    profiler = FakeProfiler(sometimes)
    store, collector, _ = assemble(tmp_path, profiler, Log())
    planned = plan(store)
    bad_key = planned[3].key
    assert collector.collect(0).passed
    dataset = Measurements(store, MeasureSpec(runs=12)).dataset()
    assert len(dataset) == 39
    assert bad_key not in {a.key for a in dataset.architectures}
    assert len(profiler.blocks) == blocks
    assert sum(m.model_id == bad_key for b in profiler.blocks for m in b.models) == blocks - 3


def test_a_reference_that_cannot_be_measured_ends_the_campaign(tmp_path: Path) -> None:
    def fails(model: Model) -> float | Failure:
        if model.model_id == store.plan()[REFERENCE_ROUND][0].key:
            return Failure(FailureKind.UNSUPPORTED_OP, "no such operator")
        return latency(model)

    store, collector, _ = assemble(tmp_path, FakeProfiler(fails), Log())
    plan(store)
    with pytest.raises(DeviceError, match=r"reference model.*no such operator.*seed"):
        collector.collect(0)


def test_a_reference_that_fails_now_and_then_costs_its_block_and_is_said(tmp_path: Path) -> None:
    """Out of three attempts at the second block none has all its references."""

    def sometimes(model: Model) -> float | Failure:
        reference = model.model_id == store.plan()[REFERENCE_ROUND][0].key
        if reference and len(profiler.blocks) - 1 in (1, 4, 5):
            return Failure(FailureKind.TIMEOUT, "no answer")
        return latency(model)

    profiler = FakeProfiler(sometimes)
    store, collector, _ = assemble(tmp_path, profiler, Log())
    plan(store)
    quality = collector.collect(0)
    assert not quality.passed
    assert quality.remeasured_blocks == 2
    dataset = Measurements(store, MeasureSpec(runs=12)).dataset()
    assert dataset.verdict_counts()["noisy"] == 10
    noisy = next(j for j in dataset.judgements if j.verdict is Verdict.NOISY)
    assert noisy.reasons == ("a reference failed",)
    assert np.isfinite(dataset.latency_ms).all()


def test_blocks_of_one_model(tmp_path: Path) -> None:
    profiler = FakeProfiler(latency, pace=lambda number: [1, 1.3, 0.9][number % 3])
    store, collector, _ = assemble(tmp_path, profiler, Log(), block_size=1)
    planned = plan(store, 6)
    assert collector.collect(0).passed
    assert [len(block.models) for block in profiler.blocks] == [5] * 6
    truth = [latency(Model(a.key, SPACE.build(a))) for a in planned]
    dataset = Measurements(store, MeasureSpec(runs=12)).dataset()
    # The scale is a block's in the middle: paces have no absolute one.
    np.testing.assert_allclose(dataset.latency_ms / truth, dataset.latency_ms[0] / truth[0], 1e-4)


class Orderly(FakeProfiler):
    """Remembers when blocks were sent and when they were measured."""

    def __init__(self) -> None:
        super().__init__(latency)
        self.log: list[tuple[str, str]] = []

    def submit(self, block: Block) -> Pending:
        self.log.append(("sent", block.block_id))
        return super().submit(block)

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        result = super().answer(block, on_progress)
        self.log.append(("measured", block.block_id))
        return result


def test_the_next_block_is_on_the_device_before_one_is_measured(tmp_path: Path) -> None:
    device = Orderly()
    store, collector, _ = assemble(tmp_path, device, Log())
    plan(store)
    collector.collect(0)
    first, second, third, last = (block.block_id for block in device.blocks)
    assert device.log == [
        ("sent", first),
        ("sent", second),
        ("measured", first),
        ("sent", third),
        ("measured", second),
        ("sent", last),
        ("measured", third),
        ("measured", last),
    ]


def test_a_block_holds_what_fits_into_half_of_the_devices_memory(tmp_path: Path) -> None:
    device = FakeProfiler(latency, memory_bytes=700_000_000)
    store, collector, _ = assemble(tmp_path, device, Log(), block_size=20)
    planned = plan(store)
    assert collector.collect(0).passed
    assert len(device.blocks) > 2
    for block in device.blocks:
        assert sum(memory_bytes(model.data) for model in block.models) <= 350_000_000
    ids = [m.model_id for block in device.blocks for m in block.models]
    assert all(ids.count(a.key) == 1 for a in planned)


def test_a_device_without_room_for_one_model_says_so(tmp_path: Path) -> None:
    device = FakeProfiler(latency, memory_bytes=60_000_000)
    store, collector, _ = assemble(tmp_path, device, Log())
    plan(store)
    with pytest.raises(DeviceError, match=r"has 60 MB for models.*end other programs"):
        collector.collect(0)
    assert device.blocks == []


@pytest.mark.parametrize("broken_off_after", [1, 2, 3])
def test_blocks_are_judged_by_the_whole_round_however_it_was_broken_off(
    tmp_path: Path, broken_off_after: int
) -> None:
    """The first block's reference strays; alone, nothing would show it."""
    device = Straying(0)
    log = Log()
    store, collector, _ = assemble(tmp_path, device.profiler, log)
    device.reference = store.plan()[REFERENCE_ROUND][0].key
    plan(store)

    def break_off() -> None:
        if len(log.blocks) == broken_off_after:
            raise KeyboardInterrupt

    log.on_block_do = break_off
    with pytest.raises(KeyboardInterrupt):
        collector.collect(0)
    _, collector, _ = assemble(tmp_path, device.profiler, Log())
    quality = collector.collect(0)
    assert (quality.passed, quality.remeasured_blocks) == (True, 1)
    assert len(device.profiler.blocks) == 5


def test_a_device_that_measures_nothing_ends_the_campaign_with_its_words(tmp_path: Path) -> None:
    profiler = FakeProfiler(lambda model: Failure(FailureKind.UNSUPPORTED_OP, "no Conv here"))
    store, collector, _ = assemble(tmp_path, profiler, Log())
    plan(store)
    with pytest.raises(DeviceError, match=r"none of 14 models.*unsupported_op: no Conv here"):
        collector.collect(0)


def test_another_device_may_not_go_on_with_a_store(tmp_path: Path) -> None:
    store, collector, _ = assemble(tmp_path, FakeProfiler(latency), Log())
    plan(store)
    collector.collect(0)
    plan(store, 10, round_number=1)
    other = FakeProfiler(latency, hostname="other")
    _, collector, _ = assemble(tmp_path, other, Log())
    with pytest.raises(MismatchError, match=r"hostname fake -> other.*another run"):
        collector.collect(1)
    assert len(store.blocks()) == 4
