"""Endurance of an agent and a host: memory, descriptors and threads over thousands of blocks.

    python -m benchmarks.soak [--blocks 10000] [--connects 2000] [--json FILE]

A real ``esm-agent serve --tls`` on this machine measures small blocks for hosts that connect,
measure some blocks and disconnect, four at a time. Every fifth block has a file in the agent's
cache, every tenth fails, and beside every tenth connection another host takes a lease, offers a
file, sends a block and vanishes without a word. Ends with 1 if the last third of the readings lies
above the first third by more than ``BOUNDS``. Needs Linux (10 minutes for 10,000 blocks).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from onnx import TensorProto, helper

from esm_host.errors import EsmError
from esm_host.transport.access import Access, fetch_certificate, pinned
from esm_host.transport.remote import RemoteProfiler
from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, File, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc

HOSTS = 4
READINGS = 60
"""Number of readings over the whole run, of which ten rows are printed."""
ROWS = 10
SPEC = MeasureSpec(runs=3, warmup=0, model_timeout_s=10, load_timeout_s=10)


class Reading(NamedTuple):
    """Memory, descriptors and threads of a process at one moment."""

    rss_mb: float
    descriptors: int
    threads: int


BOUNDS = Reading(rss_mb=8.0, descriptors=8, threads=8)
"""Largest allowed growth: increase from the median of the first third to that of the last.

Of 10,000 blocks, 8 MB are 1.2 KB a block.
"""


def reading(pid: int) -> Reading:
    folder = Path(f"/proc/{pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    return Reading(
        int(status["VmRSS"].split()[0]) / 1024,
        len(os.listdir(folder / "fd")),
        int(status["Threads"]),
    )


def measuring_process(agent: int) -> int:
    """Return the agent's measuring process, its largest child."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for task in Path(f"/proc/{agent}/task").iterdir():
        children += (task / "children").read_text().split()
    return max(map(int, children), key=lambda pid: reading(pid).rss_mb)


@contextmanager
def running_agent(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Access]]:
    """Start an agent with TLS and a token; yield it, its address and the access to it."""
    env = {
        **os.environ,
        "ESM_AGENT_CONFIG": str(folder / "config"),
        "CACHE_DIRECTORY": str(folder / "cache"),
    }
    program = [sys.executable, "-m", "esm_agent.cli"]
    pair = subprocess.run([*program, "pair", "soak"], env=env, capture_output=True, text=True)
    words = pair.stdout.split()
    token, fingerprint = (words[words.index(f"--{name}") + 1] for name in ("token", "fingerprint"))
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [*program, "serve", "--tls", "--port", "0"], env=env, stdout=subprocess.PIPE, stderr=log
        )
    try:
        assert agent.stdout is not None
        address = agent.stdout.readline().decode().split()[-1]
        yield agent, address, pinned(fetch_certificate(address, fingerprint), token)
    finally:
        agent.terminate()
        agent.wait(60)


class Soak:
    """Many blocks from several hosts at a time, with counts of their outcomes."""

    def __init__(self, address: str, access: Access, folder: Path, blocks: int, each: int) -> None:
        self._address = address
        self._access = access
        self._folder = folder
        self._blocks = blocks
        self._each = each
        self._lock = threading.Lock()
        self._begun = 0
        self.done = self.connects = self.failed = 0

    def run(self) -> None:
        """Connect one host after the other, until all blocks are measured."""
        while (first := self._next()) is not None:
            with RemoteProfiler(self._address, "soak", self._access) as profiler:
                profiler.reserve("soak")
                for number in range(first, min(first + self._each, self._blocks)):
                    self._measure(profiler, number)
            if first // self._each % 10 == 0:
                self._vanish(first)

    def _next(self) -> int | None:
        with self._lock:
            if self._begun >= self._blocks:
                return None
            first, self._begun = self._begun, self._begun + self._each
            self.connects += 1
            return first

    def _measure(self, profiler: RemoteProfiler, number: int) -> None:
        data = relu(number)
        one: bytes | File = self._file(data, number) if number % 5 == 0 else data
        two = b"no model" if number % 10 == 1 else relu(number + 1)
        block = Block(f"soak {number}", SPEC, (Model("one", one), Model("two", two)))
        try:
            profiler.measure(block)
            failed = False
        except EsmError as error:
            print(f"block {number}: {error}", file=sys.stderr)
            failed = True
        with self._lock:
            self.done += 1
            self.failed += failed

    def _file(self, data: bytes, number: int) -> File:
        path = self._folder / f"{number % 100}.onnx"  # blocks of four hosts are not that far apart
        path.write_bytes(data)
        return File(hashlib.sha256(data).digest(), len(data), path)

    def _vanish(self, number: int) -> None:
        """Take a lease and begin a block, then disconnect in the middle of it."""
        lease_id = f"gone {number} {time.time_ns()}"
        with self._access.channel(self._address, ()) as channel:
            stub = profiler_pb2_grpc.ProfilerStub(channel)
            stub.Lease(pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=lease_id))
            file = File(hashlib.sha256(lease_id.encode()).digest(), 5)
            for _, offer in convert.offer_requests([file], lease_id):
                stub.Offer(offer)
            block = Block(lease_id, SPEC, (Model("one", relu(number)),))
            next(iter(stub.MeasureBlock(convert.block_to_requests(block, lease_id))))


def relu(number: int) -> bytes:
    """Return a small model, a different one for every number."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], f"g{number}", [value], [])
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8]))
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def endure(blocks: int, connects: int) -> tuple[dict[str, list[Reading]], Soak]:
    """Run the soak test and return the readings of each process."""
    with tempfile.TemporaryDirectory() as name, running_agent(Path(name)) as found:
        agent, address, access = found
        pids = {"agent": agent.pid, "measuring": measuring_process(agent.pid), "host": os.getpid()}
        soak = Soak(address, access, Path(name), blocks, max(blocks // connects, 1))
        readings: dict[str, list[Reading]] = {process: [] for process in pids}
        began = time.monotonic()
        print("blocks  connects  seconds" + "".join(f"  {p:>26}" for p in pids))
        with ThreadPoolExecutor(HOSTS) as pool:
            hosts = [pool.submit(soak.run) for _ in range(HOSTS)]
            for step in range(1, READINGS + 1):
                while soak.done < step * blocks // READINGS and not all(h.done() for h in hosts):
                    time.sleep(0.05)
                if agent.poll() is not None:
                    raise SystemExit("the agent died")
                for process, pid in pids.items():
                    readings[process].append(reading(pid))
                if step % (READINGS // ROWS) == 0:
                    row = "".join(f"  {shown(readings[p][-1]):>26}" for p in pids)
                    took_s = time.monotonic() - began
                    print(f"{soak.done:6}  {soak.connects:8}  {took_s:7.0f}{row}", flush=True)
            for host in hosts:
                host.result()
    return readings, soak


def shown(reading: Reading) -> str:
    return f"{reading.rss_mb:.1f} MB {reading.descriptors:3} fd {reading.threads:3} thr"


def growth(readings: Sequence[Reading]) -> Reading:
    """Return the increase from the median of the first third of readings to that of the last."""
    third = len(readings) // 3
    first, last = zip(*readings[:third], strict=True), zip(*readings[-third:], strict=True)
    pairs = zip(first, last, strict=True)
    return Reading(*(statistics.median(late) - statistics.median(early) for early, late in pairs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=10_000, help="Small blocks in all.")
    parser.add_argument("--connects", type=int, default=2_000, help="Connections in all.")
    parser.add_argument("--json", type=Path, help="Write all readings to this file.")
    arguments = parser.parse_args()
    readings, soak = endure(arguments.blocks, arguments.connects)
    if arguments.json:
        told = {process: [each._asdict() for each in of] for process, of in readings.items()}
        arguments.json.write_text(json.dumps(told) + "\n")
    print(f"{soak.done} blocks, {soak.failed} of them not measured, {soak.connects} connections")
    flat = soak.failed == 0
    for process, of in readings.items():
        grown = growth(of)
        good = all(value <= most for value, most in zip(grown, BOUNDS, strict=True))
        flat &= good
        print(
            f"{process}: {grown.rss_mb:+.1f} MB, {grown.descriptors:+.0f} descriptors, "
            f"{grown.threads:+.0f} threads from the first third to the last"
            + ("" if good else ": more than it may")
        )
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
