"""What confines the measuring process, seen from inside a real one."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from esm_agent.device.facts import usable_cpus
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.sandbox import MIN_MEMORY_BYTES, Confinement, default_memory_bytes
from esm_agent.measure.worker import Worker
from esm_agent.providers import make_provider
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import BlockResult, Failure, FailureKind, Limits, MeasureSpec, RunOrder
from tests.agent.fake_backends import InspectingBackend, ScriptedBackend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="confined on Linux only")


def weightless(rows: int) -> bytes:
    """A square matrix product whose weights the device draws."""
    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[rows, rows], data_location=TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="weightless")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, rows])],
        [weight],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def measured(worker: Worker, folder: Path, *models: bytes, **settings) -> BlockResult:
    files = []
    for index, data in enumerate(models):
        path = folder / f"{index}.onnx"
        path.write_bytes(data)
        files.append(UploadedModel(f"m{index}", path))
    spec = MeasureSpec(**{"runs": 4, **settings})
    return worker.measure(
        UploadedBlock("b", spec, tuple(files)), lambda progress: None, lambda: False
    )


def outcomes(result: BlockResult) -> list[FailureKind | None]:
    return [m.failure.kind if m.failure else None for m in result.measurements]


class Inspected:
    """A confined process that answers questions about itself; a model is a question."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tmp = folder / "tmp"
        self.cpu = usable_cpus()[-1]
        self.worker = Worker(
            InspectingBackend, confinement=Confinement(2**30, (self.cpu,), self.tmp)
        )
        self.hello = self.worker.start()

    def ask(self, expression: str) -> str:
        answer = measured(self.worker, self.folder, expression.encode()).measurements[0].failure
        assert answer is not None
        return answer.message


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inspected]:
    inspected = Inspected(tmp_path_factory.mktemp("inside"))
    yield inspected
    inspected.worker.stop()


def test_says_what_took_effect(inside: Inspected) -> None:
    assert set(inside.hello.isolation) == {"memory", "cores", "network", "cpus", "tmp"}


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"])
def test_has_no_network(inside: Inspected, family: str) -> None:
    ask = f"socket.socket(socket.{family}, socket.SOCK_RAW)"
    assert inside.ask(ask).startswith("PermissionError")
    assert inside.ask("socket.socket(socket.AF_UNIX)").startswith("<socket.socket")


def test_threads_that_were_there_before_have_no_network_either(inside: Inspected) -> None:
    states = inside.ask(
        "sorted({line for task in pathlib.Path('/proc/self/task').iterdir() for line in "
        "(task / 'status').read_text().splitlines() if line.startswith(('Seccomp:', 'NoNew'))})"
    )
    assert states == r"['NoNewPrivs:\t1', 'Seccomp:\t2']"


def test_has_its_processors_memory_and_no_cores(inside: Inspected) -> None:
    assert inside.ask("os.sched_getaffinity(0)") == str({inside.cpu})
    assert inside.ask("resource.getrlimit(resource.RLIMIT_DATA)") == str((2**30, 2**30))
    assert inside.ask("resource.getrlimit(resource.RLIMIT_CORE)") == str((1, 1))
    assert inside.ask("bytearray(2**30)").startswith("MemoryError")


def test_the_next_process_finds_an_empty_folder(inside: Inspected) -> None:
    assert inside.ask("os.getcwd()") == inside.ask("tempfile.gettempdir()") == repr(str(inside.tmp))
    inside.ask("pathlib.Path('left').touch()")
    assert (inside.tmp / "left").exists()
    inside.worker.stop()
    assert inside.ask("os.listdir()") == "[]"


@pytest.mark.parametrize("run_order", RunOrder)
def test_a_model_that_exceeds_the_memory_fails_alone(tmp_path: Path, run_order: RunOrder) -> None:
    """Weights of 4 GB, and of 256 MB that are there twice for a moment, under 512 MB."""
    worker = Worker(make_provider, confinement=Confinement(512 << 20))
    try:
        models = [weightless(rows) for rows in (64, 32_768, 32, 8_192, 16)]
        result = measured(worker, tmp_path, *models, run_order=run_order)
        assert outcomes(result) == [
            None,
            FailureKind.OUT_OF_MEMORY,
            None,
            FailureKind.OUT_OF_MEMORY,
            None,
        ]
        assert all(m.latency_ns.size == 4 for m in result.measurements[::2])
        pid = worker.pid
        assert outcomes(measured(worker, tmp_path, models[0])) == [None]
        assert worker.pid == pid, "it was not even started again"
    finally:
        worker.stop()


def killed(folder: Path) -> Failure:
    """Return the failure of a model that the system kills, after one that is measured."""
    worker = Worker(ScriptedBackend)
    try:
        well, failed = measured(worker, folder, b"ok", b"killed").measurements
    finally:
        worker.stop()
    assert well.failure is None
    assert failed.failure is not None
    return failed.failure


def test_what_the_system_kills_twice_may_have_wanted_memory(tmp_path: Path) -> None:
    failure = killed(tmp_path)
    assert failure.kind is FailureKind.CRASH
    assert "SIGKILL: the device's memory may have run out" in failure.message


def test_what_the_kernel_kills_for_memory_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = itertools.count()
    monkeypatch.setattr("esm_agent.measure.worker.oom_kills", lambda: next(kills))
    failure = killed(tmp_path)
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert "GB" in failure.message
    assert "the kernel killed the measuring process" in failure.message


def test_weights_above_the_limit_are_out_of_memory_before_they_are_drawn(tmp_path: Path) -> None:
    worker = Worker(make_provider, limits=Limits(10**6, 8, max_memory_bytes=100_000))
    try:
        result = measured(worker, tmp_path, weightless(64), weightless(1000))
    finally:
        worker.stop()
    failure = result.measurements[1].failure
    assert failure is not None
    assert failure.kind is FailureKind.OUT_OF_MEMORY
    assert "0.0001 GB that a model may use on this device" in failure.message


def test_a_block_that_takes_too_long_is_broken_off(tmp_path: Path) -> None:
    """None of its models is silent for long, but all together are."""
    worker = Worker(make_provider, limits=Limits(10**6, 8, max_block_s=1.5))
    try:
        worker.start()
        result = measured(worker, tmp_path, *[weightless(64)] * 8, runs=1_000_000)
        assert outcomes(result) == [FailureKind.TIMEOUT] * 8
        failure = result.measurements[0].failure
        assert failure is not None
        assert "limit of 1.5 s" in failure.message
        assert "--max-block-time" in failure.message
        assert outcomes(measured(worker, tmp_path, weightless(64))) == [None]
    finally:
        worker.stop()


def test_a_block_until_it_is_precise_keeps_what_was_measured_before_the_limit(
    tmp_path: Path,
) -> None:
    worker = Worker(make_provider, limits=Limits(10**6, 8, max_block_s=1.5))
    try:
        worker.start()
        result = measured(worker, tmp_path, weightless(64), runs=1_000_000, precision=1e-9)
    finally:
        worker.stop()
    assert outcomes(result) == [None]


@pytest.mark.parametrize(
    ("memory_limit", "size"),
    [("512M", 512 << 20), ("1.5g", 3 << 29), ("2 GiB", 2 << 30), ("1000000000", 10**9)],
)
def test_sizes_are_read_as_they_are_written(memory_limit: str, size: int) -> None:
    assert Confinement.parse(memory_limit, None) == Confinement(size)


@pytest.mark.parametrize("memory_limit", ["", "much", "2X", "-1G", str(MIN_MEMORY_BYTES - 1)])
def test_other_sizes_are_refused(memory_limit: str) -> None:
    with pytest.raises(ValueError, match=r"--memory-limit .*: give"):
        Confinement.parse(memory_limit, None)


@pytest.mark.parametrize("cpus", ["", "a", "4095"])
def test_processors_that_are_not_there_are_refused(cpus: str) -> None:
    with pytest.raises(ValueError, match=r"--cpus .*: choose from"):
        Confinement.parse(None, cpus)


def test_most_of_the_memory_by_default() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert Confinement.parse(None, None).memory_bytes == default_memory_bytes()
    assert 0.7 * total < default_memory_bytes() < 0.8 * total


def serve(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "esm_agent.cli", "serve", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--memory-limit", "1"), "256M"),
        (("--cpus", "x"), "--cpus x"),
        (("--max-block-time", "0"), ""),
    ],
)
def test_the_command_refuses_nonsense(options: tuple[str, ...], word: str) -> None:
    done = serve("--port", "0", *options)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_confines_and_says_so() -> None:
    cpu = usable_cpus()[-1]
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
    command += ["--cpus", str(cpu), "--memory-limit", "1G", "--max-block-time", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        try:
            assert agent.stdout is not None
            with RemoteProfiler(agent.stdout.readline().split()[-1]) as profiler:
                info = profiler.device_info()
                affinity = {
                    finding.check: finding.text for finding in profiler.diagnose(0.1).findings
                }["affinity"]
            others = os.sched_getaffinity(agent.pid)
        finally:
            agent.terminate()
    assert set(info.isolation) == {"memory", "cores", "network", "cpus", "tmp"}
    assert (info.limits.max_memory_bytes, info.limits.max_block_s) == (2**30, 100)
    assert info.cpu_count == 1
    assert affinity.startswith("may use 1 of ")
    assert others == (set(usable_cpus()) - {cpu} or {cpu})
