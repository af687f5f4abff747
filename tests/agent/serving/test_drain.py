"""An agent that stops finishes what it began, and a campaign goes on with the one that follows."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from esm_agent.serving.server import AgentServer
from esm_host.dataset.store import Store
from esm_host.errors import NotNowError, UnreachableError
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import Block, MeasureSpec, Model
from tests.helpers import ARITHMETIC

DATA = ARITHMETIC.read_bytes()
LONG = Block("long", MeasureSpec(runs=1_000_000), (Model("m", DATA),))
SECONDS = Block("seconds", MeasureSpec(runs=1_000_000, max_block_s=3.0), (Model("m", DATA),))
SHORT = Block("short", MeasureSpec(runs=5), (Model("m", DATA),))

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def agent() -> Iterator[AgentServer]:
    server = AgentServer("127.0.0.1", 0)
    yield server
    server.stop()


@pytest.fixture
def address(agent: AgentServer) -> str:
    return f"127.0.0.1:{agent.port}"


def health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
        return status


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_draining(profiler: RemoteProfiler) -> bool:
    return profiler.device_info().occupancy.draining


def wait_until_measuring(profiler: RemoteProfiler) -> None:
    until(lambda: profiler.device_info().occupancy.holder is not None)
    time.sleep(0.5)


def test_the_running_block_is_finished_and_no_other_begun(agent: AgentServer, address: str) -> None:
    assert [health(address, each) for each in ("", "esm.v1.Profiler")] == [SERVING] * 2
    with RemoteProfiler(address) as first, RemoteProfiler(address) as second:
        running = first.submit(SECONDS)
        wait_until_measuring(first)
        waiting = first.submit(SHORT)
        in_time: list[bool] = []
        drain = threading.Thread(target=lambda: in_time.append(agent.drain(60)))
        drain.start()
        until(lambda: is_draining(first))
        assert [health(address, each) for each in ("", "esm.v1.Profiler")] == [NOT_SERVING] * 2
        with pytest.raises(NotNowError):
            waiting.result()
        with pytest.raises(NotNowError):
            second.reserve("time")
        assert first.reserve("time").ahead == 0, "a lease must outlive its running block"
        with pytest.raises(NotNowError):
            first.measure(SHORT)
        assert running.result().block_id == "seconds"
        drain.join(timeout=60)
        assert in_time == [True]


def test_a_block_that_takes_too_long_is_handed_back(agent: AgentServer, address: str) -> None:
    with RemoteProfiler(address) as profiler:
        running = profiler.submit(LONG)
        wait_until_measuring(profiler)
        assert not agent.drain(0.1)
        agent.stop()
        with pytest.raises(NotNowError):
            running.result()


@contextlib.contextmanager
def serve(port: int, log: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A program of its own, ready."""
    command = ["-m", "esm_agent.cli", "serve", "--port", str(port), "--log-format", "json"]
    with log.open("a") as file:
        agent = subprocess.Popen(
            [sys.executable, *command, *options], stdout=subprocess.PIPE, stderr=file, text=True
        )
    assert agent.stdout is not None
    try:
        assert "listening" in agent.stdout.readline(), log.read_text()
        yield agent
    finally:
        agent.kill()
        agent.wait()
        agent.stdout.close()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def events(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_sigterm_lets_the_running_block_end(port: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serve(port, log) as agent, RemoteProfiler(f"127.0.0.1:{port}") as profiler:
        running = profiler.submit(SECONDS)
        wait_until_measuring(profiler)
        agent.send_signal(signal.SIGTERM)
        assert running.result().block_id == "seconds"
        assert agent.wait(timeout=60) == 0
    assert [e["event"] for e in events(log)][-3:] == ["draining", "block measured", "stopped"]


def test_what_takes_longer_than_the_drain_is_handed_back(port: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        serve(port, log, "--drain", "0.2") as agent,
        RemoteProfiler(f"127.0.0.1:{port}") as profiler,
    ):
        running = profiler.submit(LONG)
        wait_until_measuring(profiler)
        agent.send_signal(signal.SIGTERM)
        with pytest.raises(NotNowError):
            running.result()
        assert agent.wait(timeout=60) == 0
    (ended,) = [e for e in events(log) if str(e["event"]).startswith("block")]
    assert (ended["event"], ended["block_id"]) == ("block handed back", "long")


def test_a_second_signal_ends_at_once(port: int, tmp_path: Path) -> None:
    with (
        serve(port, tmp_path / "log", "--drain", "600") as agent,
        RemoteProfiler(f"127.0.0.1:{port}") as profiler,
    ):
        running = profiler.submit(LONG)
        wait_until_measuring(profiler)
        agent.send_signal(signal.SIGINT)
        until(lambda: is_draining(profiler))
        agent.send_signal(signal.SIGINT)
        assert agent.wait(timeout=60) == 128 + signal.SIGINT
        with pytest.raises(UnreachableError):
            running.result()


@pytest.mark.faults
def test_a_campaign_goes_on_with_the_next_agent(port: int, tmp_path: Path) -> None:
    run, log, said = tmp_path / "run", tmp_path / "log", tmp_path / "said"
    command = [sys.executable, "-c", "from esm_host.cli import main; main()", "profile"]
    command += ["--device", f"127.0.0.1:{port}", "--run", str(run), "--space", "resnet"]
    command += ["--resolution", "32", "--width-mult", "0.25", "--bins", "2", "--seed", "1"]
    # More than it can measure meanwhile: it is interrupted.
    command += ["--initial", "2000", "--max-models", "2000", "--target-accuracy", "100"]
    command += ["--sampling", "balanced"]
    command += ["--runs", "40", "--block-size", "4", "--max-remeasurements", "0"]

    def reported() -> int:
        return len(re.findall(r"\d+/2000 models measured", said.read_text()))

    def until_reported(blocks: int) -> None:
        until(lambda: reported() >= blocks or host.poll() is not None)
        assert host.poll() is None, said.read_text()

    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(serve(port, log))
        with said.open("w") as file:
            host = subprocess.Popen(command, stdout=file, stderr=file)
        stack.callback(host.kill)
        until_reported(1)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(timeout=60) == 0
        until(lambda: "Waiting for the device" in said.read_text() or host.poll() is not None)
        assert host.poll() is None, f"it should wait:\n{said.read_text()}"
        until_drained = [str(e["block_id"]) for e in events(log) if e["event"] == "block measured"]
        assert events(log)[-1]["event"] == "stopped"
        stack.enter_context(serve(port, log))
        until_reported(reported() + 2)
        host.send_signal(signal.SIGINT)
        assert host.wait(timeout=120) == 130, said.read_text()

    measured = [str(e["block_id"]) for e in events(log) if e["event"] == "block measured"]
    stored = [block.block_id for block in Store(run / "store.sqlite").blocks()]
    assert len(set(measured)) == len(measured), "each block once"
    (_probe, *until_drained), (_, *measured) = until_drained, measured
    assert stored[: len(until_drained)] == until_drained, "none measured in vain"
    assert measured[: len(stored)] == stored
    assert len(stored) >= reported() > len(until_drained)
