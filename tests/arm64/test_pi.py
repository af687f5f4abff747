"""The guide for the Raspberry Pi, followed in a Debian for arm64, and a campaign on it.

Run by ``make test-arm64``, which prints sizes. Latencies mean nothing here: qemu is some hundred
times slower than a processor. What is shown is that the wheels are there and work.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.transport.devices import connect
from esm_models.spaces import load_space
from esm_protos.messages import Block, FailureKind, MeasureSpec, Model
from tests.arm64 import rootfs
from tests.arm64.guide import PI, commands
from tests.helpers import smallest

pytestmark = pytest.mark.arm64

REPOSITORY = Path(__file__).parents[2]
RUNS = 5
MODELS = 10
PROFILE = ["--space", "resnet", "--resolution", "32", "--width-mult", "0.25", "--bins", "1"]
PROFILE += ["--initial", str(MODELS), "--max-models", str(MODELS), "--runs", str(RUNS)]
PROFILE += ["--sampling", "balanced", "--verify", "0"]
PROFILE += ["--references", "1", "--max-remeasurements", "0", "--target-accuracy", "0"]
SLOW_S = 900.0
"""Longest time that anything may take under qemu."""
NOT_FIT = 3
"""The doctor's exit code where a device cannot measure: an emulated one need not."""


@dataclass
class Pi:
    """The root file system with a home of its own, and the agent once it runs."""

    root: Path
    home: Path
    log: Path
    variables: dict[str, str] = field(default_factory=dict)
    agent: subprocess.Popen[bytes] | None = None
    port: int = 0
    name: str = ""
    """What the host calls it."""

    @property
    def user(self) -> Path:
        return self.home / rootfs.USER

    def run(self, line: str) -> str:
        """A command of the guide, to its end; what it said."""
        start = time.monotonic()
        done = subprocess.run(
            rootfs.command(self.root, self.home, line, self.variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SLOW_S,
        )
        print(f"  {time.monotonic() - start:4.0f} s  {line}")
        accepted = (0, NOT_FIT) if line.endswith("doctor") else (0,)
        assert done.returncode in accepted, f"{line}\n{done.stdout}"
        return done.stdout

    def start(self, line: str) -> None:
        """The guide's last command, on a port that is free here, until it says that it is ready."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        line += f" --port {self.port}"
        # Spawned processes inherit it: what any of them imports is in the log.
        variables = self.variables | {"PYTHONPROFILEIMPORTTIME": "1"}
        start = time.monotonic()
        with self.log.open("wb") as log:
            self.agent = subprocess.Popen(
                rootfs.command(self.root, self.home, line, variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        while f"listening on 0.0.0.0:{self.port}" not in self.said():
            assert self.agent.poll() is None, self.said()[-2000:]
            assert time.monotonic() - start < SLOW_S, self.said()[-2000:]
            time.sleep(0.5)
        print(f"  {time.monotonic() - start:4.0f} s  {line}: until it is ready")

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.kill()  # and with it everything in its namespace
            self.agent.wait()

    def imported(self) -> set[str]:
        """Top-level modules that the agent's processes have imported."""
        found = re.findall(r"^import time: +\d+ \| +\d+ \| +([\w.]+)$", self.said(), re.MULTILINE)
        return {name.partition(".")[0] for name in found}

    def resident_mb(self) -> dict[str, float]:
        """Resident memory of the agent's processes, qemu's own share in it, MB."""
        assert self.agent is not None
        processes = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                status = dict(
                    line.split(":", 1) for line in (folder / "status").read_text().splitlines()
                )
                arguments = (folder / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            processes[int(folder.name)] = (int(status["PPid"]), arguments, status.get("VmRSS", "0"))
        below = {self.agent.pid}
        for _ in processes:
            below |= {pid for pid, (parent, _, _) in processes.items() if parent in below}
        return {
            _process_name(arguments): int(resident.split()[0]) * 1024 / 1e6
            for pid, (_, arguments, resident) in processes.items()
            if pid in below and b"/bin/python" in arguments
        }


def paste(line: str, port: int) -> None:
    """What ``esm-agent pair`` printed, typed here: the Pi's loopback is ours, its port is not."""
    program, *words = shlex.split(line)
    assert program == "esm-host"
    words[3] = f"127.0.0.1:{port}"  # devices add NAME ADDRESS
    command = [sys.executable, "-c", "from esm_host.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SLOW_S)
    assert done.returncode == 0, done.stderr
    print(f"\n  {done.stdout.strip() or done.stderr.strip()}")


@pytest.fixture(scope="module")
def pi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pi]:
    """A Pi on which every command of the guide has been run; the last one runs."""
    folder = tmp_path_factory.mktemp("pi")
    start = time.monotonic()
    print()
    try:
        root = rootfs.prepare()
        print(f"  {time.monotonic() - start:4.0f} s  {root}")
        start = time.monotonic()
        wheel = _project_wheel(folder / "dist")
        wheels = _wheels_it_needs(wheel)
    except rootfs.UnavailableError as error:
        pytest.skip(str(error))
    print(f"  {time.monotonic() - start:4.0f} s  {len(list(wheels.iterdir()))} wheels for aarch64")
    home = folder / "home"
    user = rootfs.new_home(home)
    shutil.copy(wheel, user)
    shutil.copytree(wheels, home / "wheels")
    # As --no-index --find-links: the guide's command stays as it is.
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/home/wheels"}
    pi = Pi(root, home, folder / "agent.log", offline)
    *before, serve = commands(PI)
    try:
        said = "".join(pi.run(line) for line in before)
        pi.start(serve)
        (line,) = re.findall(r"^esm-host devices add .*$", said, re.MULTILINE)
        pi.name = shlex.split(line)[3]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ESM_CONFIG", str(folder / "devices.toml"))
            paste(line, pi.port)
            yield pi
    finally:
        pi.stop()
        shutil.rmtree(home, ignore_errors=True)  # what dies may still write


def test_it_says_what_it_is(pi: Pi) -> None:
    with connect(pi.name) as profiler:
        info = profiler.device_info()
    assert info.machine == "aarch64"
    assert "cpu" in info.providers
    print(f"\n  models are confined by: {', '.join(info.isolation)}")
    sizes = _installed_mb(pi.user / "esm")
    largest_first = sorted(sizes.items(), key=lambda item: -item[1])
    idle = pi.resident_mb()
    print(
        f"\n  {info.os}, Python {info.python_version}, {info.runtime}"
        f"\n  site-packages {sum(sizes.values()):.0f} MB, most in {_listed(largest_first[:6])}"
        f"\n  idle, resident, qemu included: {_listed(sorted(idle.items()))}"
    )
    assert len(idle) >= 2, "the server and the process that measures"


def test_a_campaign_measures_ten_subnets(pi: Pi, tmp_path: Path) -> None:
    run = tmp_path / "run"
    program = [sys.executable, "-c", "from esm_host.cli import main; main()", "profile", "--quiet"]
    program += ["--device", pi.name, "--run", str(run), "--timeout", str(SLOW_S)]
    start = time.monotonic()
    done = subprocess.run([*program, *PROFILE], capture_output=True, text=True, timeout=SLOW_S)
    print(f"\n  {time.monotonic() - start:4.0f} s  {MODELS} subnets, {RUNS} runs each")
    assert done.returncode == 0, done.stderr
    store = Store(run / "store.sqlite")
    plan = store.plan()
    references = {a.key for a in plan.pop(REFERENCE_ROUND)}
    measured = store.measurements()
    subnets = [m for m in measured if m.model_id not in references]
    assert len({m.model_id for m in subnets}) == MODELS
    assert all(m.failure is None for m in measured)
    assert all(m.latency_ns.size == RUNS and (m.latency_ns > 0).all() for m in subnets)


def test_what_it_cannot_run_is_a_typed_outcome(pi: Pi) -> None:
    space = load_space("resnet", resolution=32, width_mult=0.25)
    models = (
        Model("good", space.build(smallest(space))),
        Model("broken", b"not a model"),
        Model("unsupported", _model_of("NoSuchOperator")),
    )
    spec = MeasureSpec(runs=RUNS, model_timeout_s=SLOW_S)
    with connect(pi.name) as profiler:
        result = profiler.measure(Block("typed-outcomes", spec, models))
    good, broken, unsupported = result.measurements
    assert good.failure is None
    assert (good.latency_ns > 0).all()
    assert broken.failure is not None
    assert broken.failure.kind is FailureKind.INVALID_MODEL
    assert unsupported.failure is not None
    assert unsupported.failure.kind is FailureKind.UNSUPPORTED_OP


def test_the_agent_has_loaded_neither_torch_nor_onnx(pi: Pi) -> None:
    imported = pi.imported()
    assert {"esm_agent", "grpc", "onnxruntime"} <= imported, "its imports are not in the log"
    assert not {"torch", "onnx"} & imported
    installed = {path.name for path in pi.user.glob("esm/lib/python3*/site-packages/*")}
    assert "onnxruntime" in installed
    assert not {"torch", "onnx"} & installed


def _project_wheel(folder: Path) -> Path:
    _pip("wheel", "--no-deps", "--wheel-dir", folder, REPOSITORY)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _wheels_it_needs(wheel: Path) -> Path:
    """Folder of the aarch64 wheels of what the wheel's own metadata asks for in ``agent``.

    Kept until that changes.
    """
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    asked = sorted(line for line in lines if line.startswith("Requires-Dist:"))
    digest = hashlib.sha256("\n".join(asked).encode()).hexdigest()[:12]
    kept = rootfs.cache_folder() / f"arm64-wheels-{digest}"
    if kept.exists():
        return kept
    unfinished = kept.with_name(f"{kept.name}.{os.getpid()}")
    # What pip on bookworm takes: its glibc is 2.36, its Python 3.11.
    tags = [f"manylinux_2_{minor}_aarch64" for minor in range(36, 16, -1)]
    platforms = [f"--platform={tag}" for tag in [*tags, "manylinux2014_aarch64"]]
    wanted = f"{wheel}[agent]"
    only = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11", *platforms]
    try:
        _pip("download", "--dest", unfinished, *only, wanted)
        (unfinished / wheel.name).unlink()  # the Pi gets it as the guide says
        unfinished.rename(kept)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return kept


def _pip(*arguments: object) -> None:
    """Raises UnavailableError without a network; what pip cannot do with one is a failed test."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SLOW_S,
    )
    if done.returncode == 0:
        return
    if "Retrying (" in done.stdout + done.stderr:  # pip's word for a lost connection
        raise rootfs.UnavailableError("pip reaches no package index: is there a network?")
    pytest.fail(f"pip {arguments[0]}: {done.stderr}")


def _model_of(operator: str) -> bytes:
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def _process_name(arguments: bytes) -> str:
    if b"spawn_main" in arguments:
        return "measuring process"
    return "resource tracker" if b"resource_tracker" in arguments else "server"


def _installed_mb(environment: Path) -> dict[str, float]:
    """Sizes of what lies in a virtual environment's site-packages, MB."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    return {
        entry.name: sum(
            path.stat().st_size for path in (entry, *entry.rglob("*")) if path.is_file()
        )
        / 1e6
        for entry in packages.iterdir()
    }


def _listed(megabytes: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {size:.0f} MB" for name, size in megabytes)
