"""Peak memory of a model, from a process that has others too."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.memory import PeakMemory
from esm_agent.measure.worker import Worker
from esm_agent.providers import make_provider
from esm_protos.messages import BlockResult, MeasureSpec, RunOrder

MB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system keeps a peak")


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(make_provider)
    yield worker
    worker.stop()


def gemm(path: Path, megabytes: int) -> UploadedModel:
    """One layer with so many MB of weights."""
    rows, columns = 1024, megabytes * 256
    weight = numpy_helper.from_array(np.full((rows, columns), 0.01, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    path.write_bytes(data)
    return UploadedModel(path.stem, path)


def measured(
    worker: Worker,
    *models: UploadedModel,
    peak_memory: bool = True,
    run_order: RunOrder = RunOrder.INTERLEAVED,
) -> BlockResult:
    spec = MeasureSpec(runs=2, warmup=0, run_order=run_order)
    block = UploadedBlock("b", spec, models, peak_memory=peak_memory)
    return worker.measure(block, lambda progress: None, lambda: False)


def peaks(result: BlockResult) -> list[int]:
    return [m.peak_rss_bytes or 0 for m in result.measurements]


@linux
@pytest.mark.parametrize("run_order", RunOrder)
def test_a_model_takes_its_weights_and_not_its_neighbours(
    worker: Worker, tmp_path: Path, run_order: RunOrder
) -> None:
    models = [gemm(tmp_path / f"{i}.onnx", size) for i, size in enumerate((1, 64, 2, 64))]
    small, large, other, again = peaks(measured(worker, *models, run_order=run_order))
    assert small > 10 * MB, "the runtime itself counts"
    assert other < small + 32 * MB
    # Whoever comes first brings in some MB of the runtime's own code.
    for peak in (large, again):
        assert 54 * MB < peak - small < 4 * 64 * MB


@linux
def test_the_runtimes_code_counts_for_whoever_comes_later_too(tmp_path: Path) -> None:
    worker = Worker(make_provider)  # no model has brought in code of the runtime yet
    try:
        first, second, third = peaks(
            measured(worker, *(gemm(tmp_path / f"{i}.onnx", 1) for i in range(3)))
        )
    finally:
        worker.stop()
    assert abs(first - second) < 5 * MB
    assert abs(first - third) < 5 * MB


@linux
def test_what_stays_loaded_keeps_its_figure(worker: Worker, tmp_path: Path) -> None:
    shared = gemm(tmp_path / "shared.onnx", 16)
    found = [
        peaks(measured(worker, shared, gemm(tmp_path / f"{number}.onnx", number)))
        for number in (1, 2, 3)
    ]
    assert found[2][0] == found[1][0] > 16 * MB, "from the third block on it is not loaded again"


@linux
def test_a_figure_does_not_depend_on_what_was_loaded_before(tmp_path: Path) -> None:
    models = [gemm(tmp_path / f"{size}.onnx", size) for size in (30, 5, 17, 9, 24, 3)]
    worker = Worker(make_provider)
    try:
        measured(worker, *models)  # brings in the runtime's code
        found = []
        for shift in range(1, 5):
            order = [*models[shift:], *models[:shift]]
            own = dict(
                zip((m.model_id for m in order), peaks(measured(worker, *order)), strict=True)
            )
            measured(worker, gemm(tmp_path / "other.onnx", shift))  # so that none stays loaded
            found.append([own[model.model_id] for model in models])
    finally:
        worker.stop()
    spread = np.ptp(np.array(found), axis=0)
    assert (spread < MB).all()


@linux
def test_it_is_told_only_where_it_was_asked_for(worker: Worker, tmp_path: Path) -> None:
    model = gemm(tmp_path / "model.onnx", 1)
    assert peaks(measured(worker, model, peak_memory=False)) == [0]
    assert peaks(measured(worker, model)) != [0], "also of what is loaded already"


def folder(tmp_path: Path, rss: int, hwm: int, clear_refs: bool = True) -> Path:
    (tmp_path / "status").write_text(f"Name:\tx\nVmHWM:\t  {hwm} kB\nVmRSS:\t {rss} kB\n")
    if clear_refs:
        (tmp_path / "clear_refs").touch()
    return tmp_path


def test_the_peak_is_that_of_a_process_with_this_model_alone(tmp_path: Path) -> None:
    memory = PeakMemory(folder(tmp_path, 10_000, 20_000))
    folder(tmp_path, 50_000, 50_000)
    memory.begin()
    assert (tmp_path / "clear_refs").read_text() == "5"
    folder(tmp_path, 60_000, 80_000)
    assert memory.peak_bytes() == (80_000 - 50_000 + 10_000) * 1024


def test_code_that_earlier_models_brought_in_counts(tmp_path: Path) -> None:
    def mapped(code_kib: int) -> None:
        (tmp_path / "smaps").write_text(
            f"7f00-7f10 r-xp 00000000 08:01 42    /lib/runtime.so.1\nRss:    {code_kib} kB\n"
            "7f20-7f30 rw-p 00000000 00:00 0     [heap]\nRss:     9000 kB\n"
        )

    mapped(1_000)
    memory = PeakMemory(folder(tmp_path, 10_000, 20_000))
    mapped(4_000)
    folder(tmp_path, 50_000, 50_000)
    memory.begin()
    folder(tmp_path, 60_000, 80_000)
    assert memory.peak_bytes() == (80_000 - 50_000 + 10_000 + 3_000) * 1024


def test_an_emulator_that_resets_nothing_tells_nothing(tmp_path: Path) -> None:
    memory = PeakMemory(folder(tmp_path, 10_000, 20_000))
    memory.begin()
    folder(tmp_path, 60_000, 80_000)
    assert memory.peak_bytes() is None


def test_a_system_without_the_files_tells_nothing(tmp_path: Path) -> None:
    memory = PeakMemory(tmp_path / "proc")
    memory.begin()
    assert memory.peak_bytes() is None
