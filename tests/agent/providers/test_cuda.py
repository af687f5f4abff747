"""The CUDA provider, on a runtime that takes the processor for a GPU."""

import os
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from esm_agent.device.telemetry import Telemetry
from esm_agent.errors import ProviderMissingError
from esm_agent.measure import timing
from esm_agent.measure.backends import (
    DeviceModel,
    ModelError,
    first_run,
)
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.worker import Worker, WorkerUnavailableError
from esm_agent.providers import make_provider
from esm_agent.providers.base import DeviceLostError
from esm_agent.providers.cpu import CpuProvider
from esm_agent.providers.placement import placement, profiled_nodes
from esm_agent.serving.server import AgentServer
from esm_models.spaces import load_space
from esm_protos.messages import BlockResult, FailureKind, MeasureSpec, RunOrder
from tests.agent import fake_cuda
from tests.agent.fake_cuda import CPU, PROVIDER, FakeRuntime, proved
from tests.agent.providers.shape_model import write_shape_model
from tests.helpers import smallest

SPEC = MeasureSpec(provider="cuda", seed=3, runs=4)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Two nodes on data, and one that works out a shape."""
    return write_shape_model(tmp_path / "model.onnx", "concat")


def loaded(
    path: Path, spec: MeasureSpec = SPEC, cpu_ops: Sequence[str] = ()
) -> tuple[DeviceModel, FakeRuntime]:
    """With a log that begins after the backend has proved itself."""
    runtime = FakeRuntime()
    cuda = proved(1, runtime)
    runtime.cpu_ops = cpu_ops
    for kept in (runtime.log, runtime.settings, runtime.options, runtime.placed):
        kept.clear()
    return cuda.load(UploadedModel("m", path), spec), runtime


# What is timed


def test_a_timed_run_ends_when_the_device_has_and_copies_nothing(model: Path) -> None:
    device, runtime = loaded(model)
    assert runtime.log == ["wait for inputs"], "inputs are placed once, before any run"
    runtime.log.clear()
    ticks = iter(range(1000))

    def clock() -> int:
        runtime.log.append("clock")
        return next(ticks)

    timing.sequential(device.run, MeasureSpec(runs=3, warmup=2), clock)
    run = ["run", "wait for outputs"]
    assert runtime.log == ["clock", *run, "clock"] * 5


def test_copies_are_timed_by_themselves(model: Path) -> None:
    device, runtime = loaded(model)
    runtime.log.clear()
    assert len(timing.copies(device.copy_in)) == 10
    assert set(runtime.log) == {"copy in", "wait for inputs"}
    assert runtime.log[-2:] == ["copy in", "wait for inputs"], "the clock is read after the wait"
    runtime.log.clear()
    assert len(timing.copies(device.copy_out)) == 10
    assert runtime.log == ["copy out"] * 2 * 12, "two outputs, each time"


def test_all_buffers_lie_on_the_chosen_gpu(model: Path) -> None:
    _, runtime = loaded(model)
    assert runtime.placed == [("cuda", 1)] * 3


def test_a_model_gives_what_it_gives_on_the_processor(tmp_path: Path) -> None:
    space = load_space("resnet", resolution=32, width_mult=0.25)
    path = tmp_path / "model.onnx"
    path.write_bytes(space.build(smallest(space)))
    device, _ = loaded(path)
    device.run()
    on_cpu = CpuProvider().load(UploadedModel("m", path), SPEC)
    on_cpu.run()
    expected = on_cpu.outputs()[0].numpy()
    np.testing.assert_array_equal(device.copy_out()[0], expected)
    device.copy_in()
    device.run()
    np.testing.assert_array_equal(device.copy_out()[0], expected)


@pytest.mark.parametrize(
    "number",
    [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN],
    ids=["bfloat16", "float8e4m3fn"],
)
@pytest.mark.parametrize("dims", [[], [3]], ids=str)
def test_types_that_numpy_lacks_are_bound_by_their_bits(
    tmp_path: Path, number: int, dims: list[int]
) -> None:
    values = [helper.make_tensor_value_info(name, number, dims) for name in "xy"]
    identity = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([identity], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 21)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    device, runtime = loaded(path)
    assert set(runtime.placed) == {("cuda", 1)}
    device.copy_in()
    device.run()
    np.testing.assert_array_equal(device.copy_out()[0], device.feed.arrays["x"])


# Settings


@pytest.mark.parametrize(("tf32", "graph"), [(False, False), (True, False), (False, True)])
def test_whatever_changes_latencies_is_stated(model: Path, tf32: bool, graph: bool) -> None:
    spec = MeasureSpec(
        provider="cuda",
        provider_options={"tf32": str(int(tf32)), "cuda_graph": str(int(graph))},
        threads=2,
    )
    _, runtime = loaded(model, spec)
    profiled, timed = runtime.settings
    assert timed == {
        "device_id": "1",
        "use_tf32": str(int(tf32)),
        "enable_cuda_graph": str(int(graph)),
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "1",
        "do_copy_in_default_stream": "1",
        "arena_extend_strategy": "kSameAsRequested",
    }
    assert profiled["enable_cuda_graph"] == "0", "a replayed graph has no nodes to tell of"
    assert [options.enable_profiling for options in runtime.options] == [True, False]
    assert [options.intra_op_num_threads for options in runtime.options] == [2, 2]
    assert runtime.options[1].graph_optimization_level.name == "ORT_ENABLE_ALL"


def test_gpus_are_counted_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    runtime = FakeRuntime()
    proved(3, runtime)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert {settings["device_id"] for settings in runtime.settings} == {"3"}


# Where nodes ran


def test_nodes_are_counted_where_they_ran(model: Path) -> None:
    device, _ = loaded(model)
    assert (device.ran_on, device.fallback) == (((PROVIDER, 4),), ())


def test_a_model_that_falls_back_is_refused_with_its_nodes(model: Path) -> None:
    with pytest.raises(
        ModelError, match=r"1 of 4 nodes did not run on CUDA: exp \(Exp\);"
    ) as caught:
        loaded(model, cpu_ops=["Exp"])
    assert caught.value.failure.kind is FailureKind.UNSUPPORTED_OP
    assert "allow fallback to measure" in str(caught.value)


def test_a_long_list_of_nodes_is_cut(tmp_path: Path) -> None:
    space = load_space("resnet", resolution=32, width_mult=0.25)
    path = tmp_path / "model.onnx"
    path.write_bytes(space.build(smallest(space)))
    with pytest.raises(ModelError, match=r"CUDA: ([^,]+, ){4}[^,]+ and \d+ more;"):
        loaded(path, cpu_ops=["Conv", "FusedConv"])


def test_a_model_may_fall_back_where_it_is_allowed(model: Path) -> None:
    spec = MeasureSpec(provider="cuda", allow_fallback=True)
    device, _ = loaded(model, spec, cpu_ops=["Exp"])
    assert (device.ran_on, device.fallback) == (((PROVIDER, 3), (CPU, 1)), ("exp",))
    device.run()


def test_arithmetic_on_shapes_is_no_fallback(model: Path) -> None:
    device, _ = loaded(model, cpu_ops=["Concat"])
    assert (device.ran_on, device.fallback) == (((PROVIDER, 3), (CPU, 1)), ())


def node(name: str, op: str, provider: str, tensors: list[dict[str, list[int]]]) -> dict:
    arguments = {"op_name": op, "provider": provider, "node_index": "1"}
    arguments |= {"input_type_shape": tensors, "output_type_shape": tensors}  # type: ignore[dict-item]
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": arguments}


def test_a_profile_is_read_for_nodes_alone() -> None:
    small, large, real = {"int64": [4]}, {"int64": [101]}, {"float": [4]}
    nodes, shapes = profiled_nodes(
        [
            {"cat": "Session", "name": "model_run", "args": {}},
            {"cat": "Node", "name": "a_fence_before", "args": {"op_name": "Conv"}},
            node("a", "Conv", PROVIDER, [real]),
            node("a", "Conv", PROVIDER, [real]),  # the second passage of a loop
            node("to host", "MemcpyToHost", PROVIDER, [real]),
            node("b", "Mul", CPU, [small]),
            node("c", "Mul", CPU, [large]),
            node("d", "Mul", CPU, [small, real]),
            node("e", "Constant", CPU, []),
        ]
    )
    ran_on, fallback = placement(nodes, {PROVIDER}, shapes)
    assert ran_on == ((CPU, 4), (PROVIDER, 1))
    assert [node.label for node in fallback] == ["c", "d", "e"]
    on_cpu = [node for node in nodes if node.provider == CPU]
    assert placement(on_cpu, {PROVIDER}, shapes).fallback == tuple(on_cpu), "none is on a GPU"


# What goes wrong


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"built": False}, r"pip install '\.\[agent-cuda\]'"),
        ({"loads": False}, "GPU 0: the CUDA provider did not load"),
        ({"error": "CUDA failure 101: invalid device ordinal"}, "invalid device ordinal"),
        ({"error": "CUDA failure 719: unspecified launch failure"}, "unspecified launch"),
    ],
)
def test_a_provider_that_does_not_work_is_missing(how: dict, words: str) -> None:
    with pytest.raises(ProviderMissingError, match=words):
        proved(0, FakeRuntime(**how))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 4", FailureKind.OUT_OF_MEMORY),
        ("CUDA failure 2: out of memory ; GPU=0", FailureKind.OUT_OF_MEMORY),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", FailureKind.OUT_OF_MEMORY),
        ("This session cannot use the graph capture feature as requested by the user as all "
         "compute graph nodes have not been partitioned to the CUDAExecutionProvider",
         FailureKind.UNSUPPORTED_OP),
        ("CUDNN failure 9: CUDNN_STATUS_BAD_PARAM", FailureKind.INVALID_INPUT),
    ],
)  # fmt: skip
def test_errors_have_their_outcomes(model: Path, error: str, kind: FailureKind) -> None:
    device, runtime = loaded(model)
    runtime.error = error
    with pytest.raises(ModelError) as caught:
        first_run(device)
    assert caught.value.failure.kind is kind


def test_no_except_keeps_a_process_whose_gpu_is_lost(model: Path) -> None:
    device, runtime = loaded(model)
    runtime.error = "CUDA failure 700: an illegal memory access was encountered"
    with pytest.raises(DeviceLostError):
        first_run(device)
    assert not issubclass(DeviceLostError, Exception)


def test_an_output_that_cannot_lie_on_a_device_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="output y is not a tensor of numbers: seq"):
        loaded(path)


# In the measuring process


def measure(worker: Worker, spec: MeasureSpec, *paths: Path) -> BlockResult:
    models = [UploadedModel(path.stem, path) for path in paths]
    return worker.measure(
        UploadedBlock("b", spec, tuple(models)), lambda progress: None, lambda: False
    )


@pytest.mark.parametrize("run_order", RunOrder)
def test_one_process_serves_both_providers(
    model: Path, tmp_path: Path, run_order: RunOrder
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    worker = Worker(make_provider, fake_cuda.SteadyGpu, make_others=(fake_cuda.working,))
    try:
        hello = worker.start()
        assert [each.name for each in hello.providers] == ["cpu", "cuda"]
        assert (hello.missing, hello.gpu) == ({}, True)
        on_gpu, failed = measure(
            worker, MeasureSpec(provider="cuda", runs=4, run_order=run_order), model, bad
        ).measurements
        (on_cpu,) = measure(worker, MeasureSpec(runs=4, run_order=run_order), model).measurements
    finally:
        worker.stop()
    assert failed.failure is not None
    assert failed.failure.kind is FailureKind.INVALID_MODEL
    assert len(on_gpu.latency_ns) == len(on_cpu.latency_ns) == 4
    assert on_gpu.ran_on == ((PROVIDER, 4),)
    assert len(on_gpu.copy_in_ns) == len(on_gpu.copy_out_ns) == 10
    assert (on_cpu.ran_on, on_cpu.copy_in_ns.size, on_cpu.copy_out_ns.size) == (((CPU, 4),), 0, 0)


def test_a_provider_that_does_not_load_is_not_announced(model: Path, capfd) -> None:
    worker = Worker(make_provider, Telemetry, make_others=(fake_cuda.not_loading,))
    try:
        hello = worker.start()
        (measurement,) = measure(worker, SPEC, model).measurements
    finally:
        worker.stop()
    assert [each.name for each in hello.providers] == ["cpu"]
    assert "did not load" in hello.missing[0]
    assert measurement.failure is not None, "nothing else runs in its place"
    assert "cuda has stopped working" in measurement.failure.message
    assert capfd.readouterr().out == "", "stdout is where the agent says its address"


def test_an_agent_that_was_given_a_gpu_must_have_it() -> None:
    with pytest.raises(WorkerUnavailableError, match=r"--gpu 0: .*pip install"):
        AgentServer("127.0.0.1", 0, gpu=0)


def test_factories_reach_a_spawned_process() -> None:
    for factory in (partial(make_provider, "cuda", 1), partial(Telemetry, gpu=1)):
        again = pickle.loads(pickle.dumps(factory))
        assert (again.args, again.keywords) == (factory.args, factory.keywords)


# Clocks


class Device:
    """A clock that models advance, and what NVML says of the GPU's, in turn."""

    def __init__(self, clocks_mhz: list[float | None]) -> None:
        self.now_ns = 0
        self.clocks_mhz = iter(clocks_mhz)
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        self.now_ns += 10_000_000

    def clock(self) -> int:
        return self.now_ns


def settle(device: Device, run: Callable[[], None] | None = None) -> float:
    timing.settle(
        {0: run or device.run}, lambda: next(device.clocks_mhz), lambda i, s: None, device.clock
    )
    return device.now_ns / 1e9


def test_models_run_until_the_clock_stays() -> None:
    assert settle(Device([345.0, 1200.0, 1980.0, 1965.0, 1980.0])) == pytest.approx(1.25)


def test_a_clock_that_never_stays_is_not_waited_for() -> None:
    assert settle(Device([1000.0, 2000.0] * 20)) == pytest.approx(5.0)


def test_without_a_clock_the_duration_of_a_round_tells() -> None:
    device = Device([None] * 40)
    warm_up = iter([100_000_000, 60_000_000, 30_000_000])

    def run() -> None:
        device.runs += 1
        device.now_ns += next(warm_up, 25_000_000)

    assert settle(device, run) > 0.8
    assert device.runs > 30
