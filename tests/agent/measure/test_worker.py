"""The measuring process: whatever a model does to it, every model gets an outcome."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import onnx
import pytest
from onnx import TensorProto, helper

from esm_agent.device.telemetry import Telemetry
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.memory import PeakMemory
from esm_agent.measure.process import CELLS, Board, Witness, _measure
from esm_agent.measure.sessions import Job, Sessions
from esm_agent.measure.worker import CancelledError, Worker, WorkerUnavailableError
from esm_agent.providers import make_provider
from esm_protos.estimates import estimate_measured
from esm_protos.messages import (
    BlockResult,
    Case,
    DeviceState,
    FailureKind,
    Input,
    MeasureSpec,
    Progress,
    RunOrder,
)
from tests.agent.fake_backends import (
    BrokenBackend,
    KilledOnceBackend,
    ScriptedBackend,
    ThrottlingBackend,
    ThrottlingTelemetry,
)

Measure = Callable[..., BlockResult]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(ScriptedBackend)
    yield worker
    worker.stop()


@pytest.fixture
def measure(worker: Worker, tmp_path: Path) -> Measure:
    def measure(
        *scripts: str,
        run_order: RunOrder = RunOrder.INTERLEAVED,
        timeout_s: float = 30,
        load_timeout_s: float = 30,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
        runs_per_visit: int = 1,
    ) -> BlockResult:
        models = []
        for index, script in enumerate(scripts):
            path = tmp_path / f"{index}.onnx"
            path.write_text(script)
            models.append(UploadedModel(f"m{index}", path))
        spec = MeasureSpec(
            run_order=run_order,
            runs=6,
            runs_per_visit=runs_per_visit,
            model_timeout_s=timeout_s,
            load_timeout_s=load_timeout_s,
        )
        return worker.measure(UploadedBlock("b", spec, tuple(models)), on_progress, cancelled)

    return measure


def outcomes(result: BlockResult) -> list[FailureKind | None]:
    return [m.failure.kind if m.failure else None for m in result.measurements]


@pytest.mark.parametrize("run_order", RunOrder)
def test_every_model_is_measured_in_the_blocks_order(measure: Measure, run_order: RunOrder) -> None:
    result = measure("ok", "ok", "ok", run_order=run_order)
    assert [m.model_id for m in result.measurements] == ["m0", "m1", "m2"]
    assert all(len(m.latency_ns) == len(m.start_ns) == 6 for m in result.measurements)
    assert 0 < result.running_ns <= result.busy_ns
    starts = sorted(start for m in result.measurements for start in m.start_ns.tolist())
    assert starts[0] >= 0
    assert len(set(starts)) == 18, "starts order the runs of the whole block"


@pytest.mark.parametrize("run_order", RunOrder)
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("invalid", FailureKind.INVALID_MODEL),
        ("memory", FailureKind.OUT_OF_MEMORY),
        ("crash", FailureKind.CRASH),
    ],
)
def test_a_bad_model_fails_alone(
    measure: Measure, run_order: RunOrder, script: str, kind: FailureKind
) -> None:
    result = measure("ok", script, "ok", run_order=run_order)
    assert outcomes(result) == [None, kind, None]
    assert len(result.measurements[2].latency_ns) == 6


@pytest.mark.parametrize("run_order", RunOrder)
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("untyped", "KeyError: 'scripted'"),
        ("raises 1", "the first run failed: indices out of bounds"),
        ("raises 2", "a later run failed: indices out of bounds"),
        ("raises 4", "a later run failed: indices out of bounds"),
    ],
)
def test_an_exception_is_an_outcome_in_its_own_words(
    worker: Worker, measure: Measure, run_order: RunOrder, script: str, words: str
) -> None:
    measure("ok")
    pid = worker.pid
    result = measure("ok", script, "ok", run_order=run_order)
    assert outcomes(result) == [None, FailureKind.INVALID_MODEL, None]
    assert result.measurements[1].failure.message == words
    assert [len(result.measurements[i].latency_ns) for i in (0, 2)] == [6, 6]
    assert worker.pid == pid, "the process goes on"


def test_a_model_that_hangs_times_out_and_the_rest_is_measured(measure: Measure) -> None:
    result = measure("ok", "hang", "ok", timeout_s=1)
    assert outcomes(result) == [None, FailureKind.TIMEOUT, None]


@pytest.mark.parametrize("run_order", RunOrder)
def test_the_time_out_is_of_one_inference(measure: Measure, run_order: RunOrder) -> None:
    """A model whose runs together take longer than it."""
    result = measure("sleep 0.4", run_order=run_order, timeout_s=0.9, runs_per_visit=6)
    assert outcomes(result) == [None]


def test_a_model_that_times_out_says_at_what(measure: Measure) -> None:
    (hung,) = measure("hang", timeout_s=0.5).measurements
    assert hung.failure is not None
    assert hung.failure.message == "one inference took longer than 0.5 s: give a longer timeout"


@pytest.mark.parametrize("run_order", RunOrder)
def test_loading_has_a_time_out_of_its_own(measure: Measure, run_order: RunOrder) -> None:
    result = measure("ok", "loads 1.5", run_order=run_order, timeout_s=0.5)
    assert outcomes(result) == [None, None]
    result = measure("ok", "loads 3600", run_order=run_order, load_timeout_s=0.5)
    assert outcomes(result) == [None, FailureKind.TIMEOUT]
    failure = result.measurements[1].failure
    assert failure is not None
    assert failure.message == "loading took longer than 0.5 s: give a longer load timeout"


def test_a_slow_model_is_run_once_before_its_rounds(worker: Worker, tmp_path: Path) -> None:
    log = tmp_path / "runs"
    model = tmp_path / "model.onnx"
    model.write_text(f"slow {log}")
    spec = MeasureSpec(
        runs=100, runs_per_visit=4, warmup=10, max_block_s=0.1, min_rounds=5, short_visits=True
    )
    block = UploadedBlock("b", spec, (UploadedModel("m", model),), peak_memory=True)
    (measured,) = worker.measure(block, lambda progress: None, lambda: False).measurements
    assert measured.latency_ns.size == 5
    assert measured.runs_per_visit == 1
    assert log.read_text().count("run") == 6


def test_every_model_may_be_bad(measure: Measure) -> None:
    kinds = outcomes(measure("crash", "invalid", "crash"))
    assert kinds == [FailureKind.CRASH, FailureKind.INVALID_MODEL, FailureKind.CRASH]


def test_a_process_killed_from_outside_costs_no_model(measure: Measure, tmp_path: Path) -> None:
    result = measure("ok", f"crash once {tmp_path / 'killed'}", "ok")
    assert (tmp_path / "killed").exists()
    assert outcomes(result) == [None, None, None]


def test_cancelling_stops_a_running_model_and_the_next_block_is_measured(measure: Measure) -> None:
    seen: list[Progress] = []
    with pytest.raises(CancelledError):
        measure("hang", on_progress=seen.append, cancelled=lambda: len(seen) > 1)
    assert outcomes(measure("ok")) == [None]


def test_progress_names_the_state(measure: Measure) -> None:
    seen: list[Progress] = []
    measure("sleep 0.1", "ok", on_progress=seen.append)
    assert seen
    assert all(0 <= progress.fraction <= 1 for progress in seen)


def test_a_model_that_kills_the_process_while_it_loads_is_found_among_those_beside_it(
    measure: Measure,
) -> None:
    assert outcomes(measure("ok", "ok", "dies", "ok", "sleep 0")) == [
        None,
        None,
        FailureKind.CRASH,
        None,
        None,
    ]


def test_what_blocks_share_is_loaded_once_more_at_most(measure: Measure, tmp_path: Path) -> None:
    """The first two blocks show that they share it; from then on it stays."""
    log = tmp_path / "loads"
    for number in range(5):
        assert outcomes(measure(f"log {log}", f"sleep 0.00{number}")) == [None, None]
    assert log.read_text().count("loaded") == 2


def test_the_same_model_in_another_case_is_loaded_again(worker: Worker, tmp_path: Path) -> None:
    log = tmp_path / "loads"
    model, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    model.write_text(f"log {log}")
    for number, threads in enumerate((1, 1, 1, 2, 2, 2)):
        other.write_text(f"sleep 0.00{number}")
        models = (
            UploadedModel("m", model, Case(threads=threads)),
            UploadedModel("other", other),
        )
        block = UploadedBlock("b", MeasureSpec(runs=2), models)
        assert outcomes(worker.measure(block, lambda progress: None, lambda: False)) == [None] * 2
    assert log.read_text().count("loaded") == 4, "twice each, until it is known to be shared"


def test_a_scalar_in_bfloat16_is_measured(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.BFLOAT16, []) for name in "xy"]
    identity = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([identity], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    worker = Worker(make_provider)
    try:
        spec = MeasureSpec(runs=6)
        block = UploadedBlock("b", spec, (UploadedModel("m", path),))
        result = worker.measure(block, lambda progress: None, lambda: False)
    finally:
        worker.stop()
    (measurement,) = result.measurements
    assert measurement.failure is None
    assert measurement.inputs == (Input("x", "bfloat16", ()),)


def test_the_device_is_watched_before_during_and_after(measure: Measure) -> None:
    result = measure("sleep 0.3", "ok")
    times = [state.at_ns for state in result.states]
    assert len(times) >= 3
    assert times == sorted(times)
    assert times[0] < 0 < times[-1]
    assert all(state.own_s is not None for state in result.states)


def test_a_board_that_throttles_half_way_is_caught_in_the_act(tmp_path: Path) -> None:
    """On a clock of its own: a busy machine would be slow all the time."""
    board, spec, models = ThrottlingBackend(), MeasureSpec(runs=100, warmup=0), {}
    for index in range(4):
        path = tmp_path / f"{index}.onnx"
        path.write_text(str(index))
        models[index] = UploadedModel(f"m{index}", path)

    def clock() -> int:
        return board.now_ns

    sessions = Sessions({"cpu": board}, clock, PeakMemory())
    telemetry = cast(Telemetry, ThrottlingTelemetry())
    result = _measure(sessions, telemetry, Job(spec, models), Board([0] * CELLS), (), clock)
    clocks = [state.clock_mhz for state in result.states[1:-1]]
    assert {(1500.0,), (940.0,)} == set(clocks)
    block = estimate_measured([*result.measurements.values()], spec)
    assert block.slowdown > 0.3


class Counting:
    """Telemetry that only tells the time."""

    def state(self, at_ns: int, quick: bool = False) -> DeviceState:
        return DeviceState(at_ns)


def test_a_day_of_watching_is_still_a_small_message() -> None:
    clock = iter(range(0, 10 * 86_400 * 10**9, 250_000_000))
    witness = Witness(Counting(), lambda: next(clock))
    for _ in range(4 * 86_400):
        witness.look()
    times = [state.at_ns for state in witness.states(0)]
    assert 50 < len(times) <= 102
    assert times[0] == 0
    assert times == sorted(times)
    assert max(b - a for a, b in pairwise(times)) < times[-1] / 40


def test_a_runtime_that_is_missing_is_an_error_with_the_cure() -> None:
    with pytest.raises(WorkerUnavailableError, match=r"pip install '\.\[agent\]'"):
        Worker(BrokenBackend).start()


def test_a_process_that_is_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    worker = Worker(partial(KilledOnceBackend, tmp_path / "killed"))
    try:
        assert [each.name for each in worker.start().providers] == ["cpu"]
    finally:
        worker.stop()
