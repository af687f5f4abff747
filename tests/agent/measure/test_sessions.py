"""Sessions of a model within a block: how many there are, and what they leave as it was."""

import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from esm_agent.measure.backends import Backend, LoadedModel
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.memory import PeakMemory
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.references import FOLDER, reference_models
from esm_agent.measure.sessions import Job, Sessions
from esm_agent.measure.timing import Samples, interleaved
from esm_agent.measure.worker import Worker
from esm_agent.providers import make_provider
from esm_protos.messages import BlockResult, FailureKind, MeasureSpec, Progress
from esm_protos.session_settings import SessionSettings
from esm_protos.statistics import MIN_ROUNDS


class Device:
    """Models that take a set time on a clock that only they move; sessions take 1 s to make."""

    def __init__(self, *costs_ms: float, fails: tuple[int, ...] = ()) -> None:
        self.now = 0
        self.counts = dict.fromkeys(range(len(costs_ms)), 0)
        self.runs = {index: self._run(index, cost) for index, cost in enumerate(costs_ms)}
        self.fails = fails
        self.shares: list[float] = []

    def _run(self, index: int, cost_ms: float) -> Callable[[], None]:
        def run() -> None:
            self.now += round(cost_ms * 1e6)
            self.counts[index] += 1

        return run

    def renew(self, samples: dict[int, Samples], share: float) -> None:
        self.shares.append(share)
        self.now += 10**9
        for index in list(samples):
            if index in self.fails:
                del samples[index], self.runs[index]
            else:
                samples[index].begin_session()

    def measured(self, spec: MeasureSpec) -> dict[int, Samples]:
        return interleaved(
            self.runs,
            spec,
            lambda index, share: self.shares.append(share),
            lambda: self.now,
            renew=self.renew,
        )


@pytest.mark.parametrize("runs", [24, 40, 150])
@pytest.mark.parametrize("per_visit", [1, 4])
@pytest.mark.parametrize("sessions", [1, 2, 3, 5])
def test_sessions_share_exactly_the_runs(runs: int, per_visit: int, sessions: int) -> None:
    device = Device(1, 2, 3)
    spec = MeasureSpec(runs=runs, runs_per_visit=per_visit, sessions=sessions)
    for samples in device.measured(spec).values():
        counts = samples.session_runs()
        assert len(samples.latency_ns) == runs
        assert len(counts) == (sessions if sessions > 1 else 0)
        assert sum(counts) == (runs if counts else 0)
        assert all(count % per_visit == 0 for count in counts[:-1]), "no visit is cut in two"
        assert max(counts, default=0) - min(counts, default=0) <= 2 * per_visit
    assert device.shares == sorted(device.shares), "progress does not go back"


def test_with_a_precision_sessions_share_the_least_time() -> None:
    device = Device(1, 2)
    spec = MeasureSpec(runs=100_000, precision=0.02, min_block_s=3, sessions=3, warmup=0)
    for samples in device.measured(spec).values():
        counts = samples.session_runs()
        assert len(counts) == 3
        assert min(counts) > 0.8 * max(counts)
    assert device.now < 3.2e9 + 2e9, "making sessions does not count"
    assert device.shares == sorted(device.shares)


def test_more_sessions_follow_while_a_block_goes_on_as_far_as_they_are_cheap() -> None:
    device = Device(1)
    steady = device.runs[0]

    def uneven() -> None:
        steady()
        device.now += 10**5 * (device.counts[0] % 7)

    device.runs[0] = uneven
    spec = MeasureSpec(
        runs=10**6, precision=1e-6, max_block_s=100, min_block_s=1, sessions=2, warmup=0
    )
    counts = device.measured(spec)[0].session_runs()
    assert len(counts) == 2 + 4, "each takes 1 s to make, and is worth 20"
    assert device.measured(replace(spec, sessions=1))[0].session_runs() == ()


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_load_that_takes_longer_than_its_limit_is_a_failure(tmp_path: Path, loaders: int) -> None:
    """However short the limit is; of two at a time, one may only have waited for the other."""
    now = 0

    class Loading(Backend):
        name = "cpu"

        def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
            nonlocal now
            now += round(1e6 * float(model.path.read_text()))
            return LoadedModel(lambda: None)

    models = []
    for name, milliseconds in (("quick", 50), ("slow", 1000)):
        (path := tmp_path / name).write_text(str(milliseconds))
        models.append(UploadedModel(name, path))
    job = Job(MeasureSpec(load_timeout_s=0.1), dict(enumerate(models)), loaders)
    job = job._replace(references=(models[1],))
    sessions = Sessions({"cpu": Loading()}, lambda: now, PeakMemory())
    loaded, failures = sessions.load(job, lambda index, share: None)
    assert [*loaded] == [0]
    assert failures[1].kind is FailureKind.TIMEOUT
    assert failures[1].message == "loading took longer than 0.1 s: give a longer load timeout"
    assert [*sessions.references(job)] == ["slow"], "a reference model has another limit"


def test_sessions_cost_a_slow_model_no_round() -> None:
    """It has as many as without sessions: 5 of 20 s each."""
    spec = MeasureSpec(
        runs=100_000,
        precision=0.02,
        max_block_s=60,
        min_block_s=1.5,
        min_rounds=MIN_ROUNDS,
        sessions=3,
        short_visits=True,
    )
    device = Device(20_000)
    first = interleaved(device.runs, spec, clock=lambda: device.now, first_run_ns={0: 20 * 10**9})
    assert len(first[0].latency_ns) == MIN_ROUNDS
    assert device.counts == {0: MIN_ROUNDS}


def test_a_model_that_cannot_be_opened_again_leaves_and_the_rest_goes_on() -> None:
    device = Device(1, 2, 3, fails=(1,))
    found = device.measured(MeasureSpec(runs=30, sessions=3))
    assert set(found) == {0, 2}
    assert {len(samples.latency_ns) for samples in found.values()} == {30}
    assert device.counts[1] < 50
    alone = Device(1, fails=(0,))
    assert alone.measured(MeasureSpec(runs=30, sessions=3)) == {}


class Counted(Backend):
    """Writes a line for every session; a model ``slow`` takes 0.6 s to load, and one ``fails`` has
    fewer than ``fails_from`` sessions."""

    name = "cpu"

    def __init__(self, log: Path, fails_from: int = 100) -> None:
        self.log = log
        self.fails_from = fails_from

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        text = model.path.read_text()
        with self.log.open("a") as file:
            file.write(text + "\n")
        if text == "slow":
            time.sleep(0.6)
        if text == "fails" and self.log.read_text().split().count(text) >= self.fails_from:
            raise ModelError(FailureKind.OUT_OF_MEMORY, "no room for another session")
        return LoadedModel(lambda: time.sleep(0.001))


def measured(
    tmp_path: Path, worker: Worker, spec: MeasureSpec, *texts: str, peak_memory: bool = False
) -> tuple[BlockResult, list[float]]:
    models, shares = [], []
    for index, text in enumerate(texts):
        path = tmp_path / f"{index}.onnx"
        path.write_text(text)
        models.append(UploadedModel(f"m{index}", path))

    def on_progress(progress: Progress) -> None:
        if progress.state.value == "measuring":
            shares.append(progress.fraction)

    block = UploadedBlock("b", spec, tuple(models), peak_memory=peak_memory)
    try:
        return worker.measure(block, on_progress, lambda: False), shares
    finally:
        worker.stop()


SPEC = MeasureSpec(runs=30, sessions=3)


def test_three_sessions_are_three_and_a_slow_one_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    spec = replace(SPEC, runs=150)
    result, shares = measured(tmp_path, Worker(partial(Counted, log)), spec, "a", "b", "slow")
    assert [m.failure for m in result.measurements] == [None] * 3
    assert [len(m.latency_ns) for m in result.measurements] == [150] * 3
    assert [len(m.session_runs) for m in result.measurements] == [3, 3, 0]
    assert {sum(m.session_runs) for m in result.measurements[:2]} == {150}
    assert sorted(log.read_text().split()) == [*"aaabbb", "slow"]
    assert shares == sorted(shares)


def test_a_failed_session_is_an_outcome(tmp_path: Path) -> None:
    worker = Worker(partial(Counted, tmp_path / "log", 3))
    result, _ = measured(tmp_path, worker, SPEC, "a", "fails", "c")
    first, failed, last = result.measurements
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.OUT_OF_MEMORY
    assert [len(m.latency_ns) for m in (first, failed, last)] == [30, 0, 30]


def test_memory_is_that_of_one_session_and_no_reference() -> None:
    def peak(sessions: int, references: bool) -> int | None:
        worker = Worker(make_provider)
        models = []
        for name in ("arithmetic", "large"):
            path = FOLDER / f"{name}.onnx"
            models.append(UploadedModel(name, path))
        spec = MeasureSpec(runs=20, sessions=sessions, references=references)
        try:
            for number in range(2):  # in the second one references are loaded already
                block = UploadedBlock(f"b{number}", spec, tuple(models), peak_memory=True)
                result = worker.measure(block, lambda progress: None, lambda: False)
        finally:
            worker.stop()
        return result.measurements[1].peak_rss_bytes

    plain, company = peak(1, False), peak(3, True)
    if plain is None or company is None:
        pytest.skip("this system tells no peak of memory")
    assert abs(company - plain) < 12e6


class Small(Backend):
    """A device with room for so many models at a time."""

    name = "cpu"

    def __init__(self, room: int) -> None:
        self.room = room
        self.loaded: weakref.WeakSet[object] = weakref.WeakSet()

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        if len(self.loaded) >= self.room:
            raise MemoryError

        class Run:
            def __call__(self) -> None:
                return

        run = Run()
        self.loaded.add(run)
        return LoadedModel(run)


def test_references_of_earlier_blocks_make_room_for_models(tmp_path: Path) -> None:
    """And models that left make room for references again."""
    models = []
    for index in range(3):
        path = tmp_path / f"{index}.onnx"
        path.write_text(str(index))
        models.append(UploadedModel(f"m{index}", path))
    backend = Small(room=4)
    sessions = Sessions({"cpu": backend}, time.perf_counter_ns, PeakMemory())

    def job(count: int) -> Job:
        asked = dict(enumerate(models[:count]))
        return Job(MeasureSpec(references=True), asked, references=reference_models())

    for count, room in ((1, 3), (3, 1), (1, 3)):
        loaded, failures = sessions.load(job(count), lambda index, share: None)
        assert (len(loaded), failures) == (count, {})
        assert len(sessions.references(job(count))) == room
        del loaded


def test_a_new_session_finds_the_old_one_gone(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("model")
    sessions = Sessions({"cpu": Small(room=1)}, time.perf_counter_ns, PeakMemory())
    job = Job(MeasureSpec(sessions=2), {0: UploadedModel("m", path)})
    loaded, _ = sessions.load(job, lambda index, share: None)
    before = loaded[0].load_ns, loaded[0].first_run_ns
    assert sessions.renew(job, 0, loaded) is None
    assert (loaded[0].load_ns, loaded[0].first_run_ns) == before


def test_other_session_settings_are_another_session(tmp_path: Path) -> None:
    """Models in two blocks in a row share a session only if it was made in the same way."""
    path = tmp_path / "m.onnx"
    path.write_text("m")
    backend = Small(room=99)
    sessions = Sessions({"cpu": backend}, time.perf_counter_ns, PeakMemory())
    made: list[object] = []
    for level in ("all", "basic", "all"):
        spec = MeasureSpec(references=True, session=SessionSettings(level))
        job = Job(spec, {0: UploadedModel("m", path)}, references=reference_models())
        loaded, _ = sessions.load(job, lambda index, share: None)
        made += [loaded[0].run, sessions.references(job)["large"].run]
    assert len({id(each) for each in made}) == len(made)
