"""The agent's reference models: how much of a block they take, and what they never cost it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esm_agent.measure.backends import LoadedModel
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.history import HistoryFile
from esm_agent.measure.outcomes import ModelError
from esm_agent.measure.references import FOLDER, ReferenceVisits, reference_models
from esm_agent.measure.timing import interleaved
from esm_agent.measure.worker import CancelledError, Worker
from esm_agent.providers import make_provider
from esm_agent.providers.cpu import CpuProvider
from esm_protos.messages import BlockResult, FailureKind, Limits, MeasureSpec, Progress

NAMES = {"arithmetic", "middle", "large", "beyond"}
MS = 1_000_000


class Device:
    """Models that take a set time on a clock that only they move."""

    def __init__(self) -> None:
        self.now = 0
        self.ran: list[str] = []

    def model(self, name: str, cost_ns: int, fails_at: int = 0) -> Callable[[], None]:
        def run() -> None:
            self.now += cost_ns
            self.ran.append(name)
            if self.ran.count(name) == fails_at:
                raise RuntimeError("no more")

        return run

    def company(self, costs_ns: dict[str, int], fails_at: int = 0) -> ReferenceVisits:
        runs = {name: self.model(name, cost, fails_at) for name, cost in costs_ns.items()}
        return ReferenceVisits(runs, lambda: self.now, lambda: None, costs_ns)

    def block(self, company: ReferenceVisits, cost_ns: int, seconds: float) -> int:
        """Run a block of one model; return the time that the references took of it."""
        spent = 0
        while self.now < seconds * 1e9:
            self.now += cost_ns
            before = self.now
            company.visit()
            spent += self.now - before
        return spent


costs = st.integers(2 * MS, 200 * MS)


@settings(max_examples=20)
@given(st.dictionaries(st.sampled_from(sorted(NAMES)), costs, min_size=1), costs)
def test_references_take_a_tenth_of_a_block(costs_ns: dict[str, int], own_ns: int) -> None:
    device = Device()
    company = device.company(costs_ns)
    spent = device.block(company, own_ns, 60)
    visit_ns = max(costs_ns.values()) * 22
    assert 0.1 * device.now - own_ns <= spent <= 0.1 * device.now + visit_ns
    assert {name for name, samples in company.samples.items() if samples.latency_ns} == {*costs_ns}


def test_a_reference_that_is_very_slow_does_not_take_more() -> None:
    device = Device()
    company = device.company({"arithmetic": MS, "beyond": 900 * MS})
    spent = device.block(company, 3 * MS, 60)
    assert spent < 0.12 * device.now
    assert len(company.samples["beyond"].latency_ns) >= 3
    assert len(company.samples["arithmetic"].latency_ns) >= 20


def test_one_that_fails_leaves_and_the_others_stay() -> None:
    device = Device()
    company = device.company({"arithmetic": MS, "beyond": MS})
    company._runs["beyond"] = device.model("beyond", MS, fails_at=30)
    device.block(company, MS, 5)
    company.complete()
    assert set(company.samples) == {"arithmetic"}
    assert len(company.samples["arithmetic"].latency_ns) > 50
    device = Device()
    alone = device.company({"beyond": MS}, fails_at=1)
    device.block(alone, MS, 1)
    alone.complete()
    assert alone.samples == {}
    assert not alone.visit()


def test_a_short_block_is_completed_to_an_interval() -> None:
    device = Device()
    company = device.company({"arithmetic": MS, "middle": MS, "large": 2 * MS, "beyond": 8 * MS})
    company.complete()
    for samples in company.samples.values():
        assert len(samples.latency_ns) == 5 * samples.runs_per_visit
    before = device.now
    company.complete()
    assert device.now == before


@pytest.mark.parametrize(("limit_s", "most_s"), [(60.0, 3.0), (1.0, 2.0), (0.0, 0.0), (-5.0, 0.0)])
def test_completing_takes_no_more_than_it_may(limit_s: float, most_s: float) -> None:
    """On a device that is 200 times slower than others."""
    device = Device()
    company = device.company(dict.fromkeys(NAMES, 900 * MS))
    company.complete(limit_s)
    assert device.now <= most_s * 1e9


def test_completing_a_long_block_takes_a_share_of_it() -> None:
    device = Device()
    company = device.company(dict.fromkeys(NAMES, 900 * MS))
    device.now += 40 * 10**9
    company.complete()
    assert 5e9 < device.now - 40e9 < 11e9


def test_models_are_warmed_up_again_after_references() -> None:
    device = Device()
    company = device.company({"beyond": 5 * MS})
    spec = MeasureSpec(runs=200, warmup=3)
    runs = {0: device.model("own", MS)}
    interleaved(runs, spec, lambda index, share: company.visit(), lambda: device.now)
    visits = sum(pair == ("beyond", "own") for pair in pairwise(device.ran))
    assert visits > 1
    assert device.ran.count("own") == 200 + 3 * (1 + visits)


class References(CpuProvider):
    """The runtime, but for some reference models, which fail, hang or die as told.

    Args:
        what: ``memory``, ``fails``, ``hang``, ``dies``, ``dies loading``, or nothing.
        who: names of the reference models.
    """

    def __init__(self, what: str, *who: str) -> None:
        super().__init__()
        self.what, self.who = what, who

    def load(self, model: UploadedModel, spec: MeasureSpec) -> LoadedModel:
        loaded = super().load(model, spec)
        if model.path.parent != FOLDER or model.path.stem not in self.who:
            return loaded
        if self.what == "memory":
            raise ModelError(FailureKind.OUT_OF_MEMORY, "scripted")
        if self.what == "dies loading":
            os.kill(os.getpid(), signal.SIGKILL)
        runs = 0

        def run() -> None:
            nonlocal runs
            runs += 1
            if self.what == "slow":
                time.sleep(1.1)
            if runs > 3 and self.what == "hang":
                time.sleep(600)
            if runs > 3 and self.what == "dies":
                os.kill(os.getpid(), signal.SIGSEGV)
            if runs > 3 and self.what == "fails":
                raise RuntimeError("scripted")
            loaded.run()

        return replace(loaded, run=run)


SPEC = MeasureSpec(runs=40, runs_per_visit=4, references=True)


def block(tmp_path: Path, spec: MeasureSpec = SPEC, models: int = 2) -> UploadedBlock:
    uploaded = []
    for index in range(models):
        path = tmp_path / f"{index}.onnx"
        path.write_bytes((FOLDER / "arithmetic.onnx").read_bytes())
        uploaded.append(UploadedModel(f"m{index}", path))
    return UploadedBlock("b", spec, tuple(uploaded))


def measured(
    worker: Worker, block: UploadedBlock, on_progress: Callable[[Progress], None] = lambda p: None
) -> BlockResult:
    try:
        return worker.measure(block, on_progress, lambda: False)
    finally:
        worker.stop()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(make_provider)
    yield worker
    worker.stop()


def test_a_block_has_references_if_they_are_asked_for(worker: Worker, tmp_path: Path) -> None:
    with_them = worker.measure(block(tmp_path), lambda p: None, lambda: False)
    assert {m.model_id for m in with_them.references} == NAMES
    sizes = {m.model_id: m.weight_bytes for m in with_them.references}
    assert sorted(sizes, key=sizes.__getitem__) == ["arithmetic", "middle", "large", "beyond"]
    assert all(len(m.latency_ns) >= 5 * m.runs_per_visit for m in with_them.references)
    assert all(m.weight_bytes > 0 for m in with_them.measurements)
    assert with_them.usual is None
    none = block(tmp_path, replace(SPEC, references=False))
    without = worker.measure(none, lambda p: None, lambda: False)
    assert without.references == ()


@pytest.mark.parametrize(
    ("what", "who", "left"),
    [
        ("memory", ("beyond", "large"), {"arithmetic", "middle"}),
        ("fails", ("beyond",), {"arithmetic", "middle", "large"}),
        ("slow", ("beyond",), {"arithmetic", "middle", "large"}),
        ("dies", ("beyond",), set()),
        pytest.param("dies loading", ("beyond",), set(), marks=pytest.mark.faults),
        pytest.param("hang", ("middle",), set(), marks=pytest.mark.faults),
    ],
)
def test_what_references_do_costs_no_model(
    tmp_path: Path, what: str, who: tuple[str, ...], left: set[str]
) -> None:
    worker = Worker(partial(References, what, *who))
    result = measured(worker, block(tmp_path, replace(SPEC, model_timeout_s=2)))
    assert [m.failure for m in result.measurements] == [None, None]
    assert [len(m.latency_ns) for m in result.measurements] == [40, 40]
    assert {m.model_id for m in result.references} == left
    assert bool(result.references_problem) is not bool(left), "why there are none"


def test_why_no_reference_was_timed_is_told(tmp_path: Path) -> None:
    result = measured(Worker(partial(References, "memory", *NAMES)), block(tmp_path))
    assert result.references == ()
    assert result.references_problem == "scripted"


def test_a_block_can_be_cancelled_while_references_run(tmp_path: Path) -> None:
    worker = Worker(partial(References, "hang", *NAMES))
    began = time.monotonic()
    try:
        with pytest.raises(CancelledError):
            worker.measure(block(tmp_path), lambda p: None, lambda: time.monotonic() > began + 2)
    finally:
        worker.stop()


def test_the_blocks_limit_holds_with_references_and_sessions(tmp_path: Path) -> None:
    spec = replace(SPEC, runs=100_000, precision=1e-6, min_block_s=1, sessions=3)
    limits = Limits(2**40, 100, max_block_s=4)
    began = time.monotonic()
    result = measured(Worker(make_provider, limits=limits), block(tmp_path, spec))
    assert time.monotonic() - began < 15
    assert [m.failure for m in result.measurements] == [None, None]
    assert all(len(m.session_runs) >= 3 for m in result.measurements)
    assert result.references


def test_what_a_block_measured_is_usual_in_the_next(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.jsonl")
    worker = Worker(make_provider, history=file)
    try:
        first = worker.measure(block(tmp_path), lambda p: None, lambda: False)
        second = worker.measure(block(tmp_path), lambda p: None, lambda: False)
    finally:
        worker.stop()
    assert first.usual is None
    assert second.usual is not None
    assert set(second.usual.references) == NAMES
    assert second.usual.moments == 1
    (remembered,) = file.records()
    assert remembered.conditions["threads"] == "1"


def test_a_short_history_ends_no_block_that_is_reported_as_measured(tmp_path: Path) -> None:
    worker = Worker(make_provider, history=HistoryFile(tmp_path / "history.jsonl"))
    precise = block(tmp_path, replace(SPEC, runs=400, precision=1e-9))
    try:
        worker.measure(block(tmp_path), lambda p: None, lambda: False)
        result = worker.measure(replace(precise, raw=True), lambda p: None, lambda: False)
    finally:
        worker.stop()
    assert [len(m.latency_ns) for m in result.measurements] == [400, 400]


def test_what_is_no_file_costs_the_history_and_no_block(tmp_path: Path) -> None:
    result = measured(
        Worker(make_provider, history=HistoryFile(Path("/dev/full"))), block(tmp_path)
    )
    assert [m.failure for m in result.measurements] == [None, None]
    assert {m.model_id for m in result.references} == NAMES
    assert result.history_problem == "/dev/full: not a regular file"


def test_references_come_by_name() -> None:
    assert {model.model_id for model in reference_models()} == NAMES
