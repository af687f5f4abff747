"""Malformed requests, uploads and models, by the thousand, against a real agent.

Each ends in a gRPC status or a typed outcome of its model; the agent lives on, with nothing in its
memory or its log. The long version is run by ``make test-faults`` and prints its counts.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc
from tests.faults import malformed

SEED = 0
MODELS_PER_BLOCK = 25
# Three times what was seen (allocators keep some); 3 KB lost by each input would exceed it.
RSS_BOUND_BYTES = 30_000_000
_SERVICE = "/esm.v1.Profiler"
_DEADLINE_S = 120.0  # of a call; one that takes so long has failed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads memory use under /proc")


class Agent:
    """``esm-agent serve`` as a program, and a raw client of it."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "agent.log"
        command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
        command += ["--memory-limit", "2G", "--max-block-time", "20"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().decode().split()[-1]
        self.channel = grpc.insecure_channel(address)
        self.stub = profiler_pb2_grpc.ProfilerStub(self.channel)
        self._closed = threading.Event()
        self._renewing = threading.Thread(target=self._renew)
        self._renew_once()
        self._renewing.start()

    def _renew_once(self) -> None:
        for lease_id in ("models", "uploads"):
            request = pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=lease_id)
            self.stub.Lease(request, timeout=_DEADLINE_S)

    def _renew(self) -> None:
        while not self._closed.wait(5):
            self._renew_once()

    def unary(self, method: str, request: bytes) -> str:
        call = self.channel.unary_unary(f"{_SERVICE}/{method}")
        return self._status(lambda: [call(request, timeout=_DEADLINE_S)])

    def upload(self, messages: list[bytes]) -> str:
        call = self.channel.stream_stream(f"{_SERVICE}/MeasureBlock")
        return self._status(lambda: list(call(iter(messages), timeout=_DEADLINE_S)))

    @staticmethod
    def _status(call: Any) -> str:
        try:
            call()
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise AssertionError(f"{error.code()}: {error.details()}") from error
            return str(error.code().name)
        return "OK"

    def measure(self, block: Block) -> list[str]:
        """An outcome for each model."""
        requests = convert.block_to_requests(block, "models")
        events = list(self.stub.MeasureBlock(requests, timeout=_DEADLINE_S))
        results = [convert.measurement_from_pb(e.result) for e in events if e.HasField("result")]
        assert [r.model_id for r in results] == [m.model_id for m in block.models]
        assert events[-1].done.block_id == block.block_id
        return [r.failure.kind.value if r.failure else "measured" for r in results]

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def close(self) -> None:
        self._closed.set()
        self._renewing.join()
        self.channel.close()
        self.process.terminate()
        self.process.communicate(timeout=60)


@contextmanager
def running(folder: Path) -> Iterator[Agent]:
    agent = Agent(folder)
    try:
        yield agent
    finally:
        agent.close()


def drawn(kind: str, index: int) -> random.Random:
    """The same for each input, whatever came before it."""
    return random.Random(f"{SEED}/{kind}/{index}")


def send_requests(agent: Agent, kind: str, numbers: range) -> Counter[str]:
    counts: Counter[str] = Counter()
    for index in numbers:
        rng = drawn(kind, index)
        try:
            if kind == "unary":
                counts[agent.unary(*malformed.unary_request(rng))] += 1
            else:
                counts[agent.upload(malformed.upload("uploads", rng))] += 1
        except AssertionError as error:
            raise AssertionError(f"{kind} input {index}: {error}") from error
    return counts


def send_models(agent: Agent, numbers: range) -> Counter[str]:
    counts: Counter[str] = Counter()
    spec = MeasureSpec(runs=1, warmup=0, model_timeout_s=3, load_timeout_s=3)
    for start in numbers[::MODELS_PER_BLOCK]:
        block = range(start, min(start + MODELS_PER_BLOCK, numbers.stop))
        models = tuple(Model(f"m{i}", malformed.model(drawn("model", i))) for i in block)
        try:
            counts.update(agent.measure(Block(f"models {start}", spec, models)))
        except (AssertionError, grpc.RpcError) as error:
            raise AssertionError(f"models {block}: {error}") from error
    return counts


def endure(agent: Agent, unary: int, uploads: int, models: int) -> dict[str, Counter[str]]:
    """Sends so many of each, models beside the others."""

    def others() -> tuple[Counter[str], Counter[str]]:
        return (
            send_requests(agent, "unary", range(unary)),
            send_requests(agent, "upload", range(uploads)),
        )

    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(others)
        of_models = send_models(agent, range(models))
        of_unary, of_uploads = beside.result()
    return {"unary": of_unary, "uploads": of_uploads, "models": of_models}


def good_block(name: str) -> Block:
    models = tuple(Model(f"m{i}", data) for i, data in enumerate(set(malformed.good_models())))
    return Block(name, MeasureSpec(runs=3), models)


def check_alive_and_well(agent: Agent) -> None:
    assert agent.process.poll() is None, "the agent itself died"
    assert set(agent.measure(good_block("good"))) == {"measured"}
    log = agent.log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]


def test_some_malformed_inputs(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        counts = endure(agent, unary=100, uploads=100, models=150)
        check_alive_and_well(agent)
    assert counts["unary"]["INVALID_ARGUMENT"] > 30
    assert all(counts[kind]["INTERNAL"] == 0 for kind in counts)
    assert counts["uploads"]["INVALID_ARGUMENT"] > 30
    assert counts["models"]["invalid_model"] > 50
    assert counts["models"]["measured"] > 5, "else models are mutated beyond recognition"


@pytest.mark.faults
def test_ten_thousand_malformed_inputs(tmp_path: Path) -> None:
    with running(tmp_path) as agent:
        endure(agent, unary=100, uploads=200, models=100)  # warm-up
        check_alive_and_well(agent)
        before = agent.rss_bytes()
        began = time.monotonic()
        counts = endure(agent, unary=2500, uploads=3000, models=4500)
        took_s = time.monotonic() - began
        check_alive_and_well(agent)
        after = agent.rss_bytes()
    total = sum(each.total() for each in counts.values())
    print(
        f"\n{total} malformed inputs in {took_s:.0f} s; the agent's memory "
        f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB"
    )
    for kind, each in counts.items():
        print(f"  {kind}: {', '.join(f'{n} {what}' for what, n in each.most_common())}")
    assert total == 10_000
    assert after - before < RSS_BOUND_BYTES
