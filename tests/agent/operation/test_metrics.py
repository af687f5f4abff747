"""Counters for monitoring, as a monitor reads them."""

import builtins
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.worker import Worker
from esm_agent.operation.metrics import MetricsError, PrometheusMetrics
from esm_agent.providers import make_provider
from esm_agent.serving.server import AgentServer
from esm_agent.serving.slot import Slot
from esm_host.errors import NotNowError
from esm_host.transport.lease import Lease
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import Block, BlockResult, MeasureSpec, Model
from tests.helpers import ARITHMETIC

BLOCK = Block(
    "b", MeasureSpec(runs=3), (Model("good", ARITHMETIC.read_bytes()), Model("bad", b"no model"))
)


@pytest.fixture
def metrics() -> Iterator[PrometheusMetrics]:
    metrics = PrometheusMetrics("127.0.0.1", 0)
    yield metrics
    metrics.stop()


def scrape(metrics: PrometheusMetrics) -> dict[str, float]:
    url = f"http://127.0.0.1:{metrics.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_counts_what_happens(metrics: PrometheusMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = AgentServer("127.0.0.1", 0, lease_expiry_s=3.0, metrics=metrics)
    try:
        before = scrape(metrics)
        assert before['esm_agent_blocks_total{outcome="measured"}'] == 0
        assert before['esm_agent_models_total{outcome="crash"}'] == 0
        assert before["esm_agent_queue_length"] == 0
        with RemoteProfiler(f"127.0.0.1:{agent.port}") as profiler:
            result = profiler.measure(BLOCK)
            assert scrape(metrics)["esm_agent_queue_length"] == 1
            monkeypatch.setattr(Lease, "_beat", lambda self: None)
            with RemoteProfiler(f"127.0.0.1:{agent.port}") as silent:
                running = silent.submit(Block("b", MeasureSpec(runs=1_000_000), BLOCK.models[:1]))
                with pytest.raises(NotNowError):
                    running.result()
        deadline = time.monotonic() + 30  # its client hears of it first
        while 'esm_agent_blocks_total{outcome="dropped"}' not in (after := scrape(metrics)):
            assert time.monotonic() < deadline
    finally:
        agent.stop()
    assert after['esm_agent_blocks_total{outcome="measured"}'] == 1
    assert after['esm_agent_blocks_total{outcome="dropped"}'] == 1
    assert after['esm_agent_models_total{outcome="ok"}'] == 1
    assert after['esm_agent_models_total{outcome="invalid_model"}'] == 1
    assert after["esm_agent_busy_seconds_total"] == pytest.approx(result.busy_ns / 1e9)
    assert after["esm_agent_leases_expired_total"] == 1
    agent_bytes = after['esm_agent_resident_memory_bytes{process="agent"}']
    assert 1e6 < agent_bytes < 1e11


def test_counts_refusals_by_code(metrics: PrometheusMetrics) -> None:
    agent = AgentServer("127.0.0.1", 0, metrics=metrics)
    try:
        with RemoteProfiler(f"127.0.0.1:{agent.port}") as profiler:
            spec = MeasureSpec(provider="nonesuch")
            with pytest.raises(Exception, match="nonesuch"):
                profiler.measure(Block("b", spec, BLOCK.models))
        assert scrape(metrics)['esm_agent_refusals_total{code="FAILED_PRECONDITION"}'] == 1
    finally:
        agent.stop()


def test_the_worker_rests_without_leases_and_restarts_are_counted() -> None:
    slot = Slot(Worker(make_provider), rest_s=0.2)
    slot.start()
    try:
        first = slot.readings()
        assert first.worker_pid is not None
        wait_for(slot, None)
        slot.renew("a", "ada", "test", "anyone", wait=True)
        assert measured(slot).measurements[0].failure is None
        second = slot.readings()
        assert second.worker_pid not in (None, first.worker_pid)
        assert second.worker_restarts == 0, "a rest is no accident"
        os.kill(second.worker_pid or 0, 9)
        assert measured(slot).measurements[0].failure is None
        third = slot.readings()
        assert (third.queue_length, third.worker_restarts) == (1, 1)
        slot.release("a", "anyone")
        wait_for(slot, None)
    finally:
        slot.stop()


def measured(slot: Slot) -> BlockResult:
    block = UploadedBlock("b", MeasureSpec(runs=2), (UploadedModel("m", ARITHMETIC),))
    ticket = slot.submit(block, "a", "anyone")
    *_, result = ticket.events()
    slot.close(ticket)
    assert isinstance(result, BlockResult)
    return result


def wait_for(slot: Slot, pid: int | None) -> None:
    deadline = time.monotonic() + 30
    while slot.readings().worker_pid != pid:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_taken_port_is_an_error_with_the_cure() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(MetricsError, match="choose another --metrics-port"):
            PrometheusMetrics("127.0.0.1", taken.getsockname()[1])


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "prometheus_client":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MetricsError, match=r"pip install '\.\[metrics\]'"):
        PrometheusMetrics("127.0.0.1", 0)


def test_costs_nothing_where_it_is_off() -> None:
    program = (
        "import sys, esm_agent.cli, esm_agent.serving.server, esm_agent.operation.metrics;"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_agent_serves_them() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
    agent = subprocess.Popen(
        [*command, "--metrics-port", str(port)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert agent.stdout is not None
        assert "listening" in agent.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'esm_agent_resident_memory_bytes{process="worker"}' in text
    finally:
        agent.kill()
        agent.wait()
        assert agent.stdout is not None
        agent.stdout.close()
