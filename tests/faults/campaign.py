"""A host and an agent as two programs, and everything that can happen to them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc
from tests.faults.disk import SmallDisk
from tests.faults.proxy import Proxy
from tests.helpers import ARITHMETIC

BLOCKS_UNDERWAY = 2
"""One is measured, and the next one waits on the device."""
LOSSES_BORNE = 8
_YEAR_S = 31_536_000


class Campaign:
    """The host speaks to the agent through a proxy; each is started again after it was killed.

    No block suffers more than the product promises to bear: a model during which the measuring
    process dies twice is left out, and so is a block that loses the device ten times.

    Args:
        arguments: of ``esm-host profile``.
        disk: has the agent's temporary folder and its cache; None: they are in ``folder``.
    """

    def __init__(self, folder: Path, arguments: list[str], disk: SmallDisk | None) -> None:
        self.run = folder / "run"
        self.log = folder / "host.log"
        self.last_fault = "none"
        self._agent_log = folder / "agent.log"
        self._arguments = arguments
        self._disk = disk
        self._files = folder if disk is None else disk.folder
        self._stored_at_kill = -BLOCKS_UNDERWAY
        self._stored_at_loss = self._losses = 0
        self._clock_offset = folder / "clock"
        self._clock_offset.write_text("+0")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.agent = self._start_agent()
        assert self._agent_answers(60)
        self.proxy = Proxy(self.port)
        self.host = self._start_host()
        self.faults: dict[str, Callable[[random.Random], bool]] = {
            "worker killed": self._kill_worker,
            "agent killed": self._kill_agent,
            "host killed": self._kill_host,
            "cut in mid-upload": self._cut_upload,
            "cut in mid-measurement": self._cut,
            "disk full": lambda rng: self._take_from_disk(SmallDisk.fill, rng),
            "no inodes": lambda rng: self._take_from_disk(SmallDisk.take_inodes, rng),
            "clock jumped": self._jump_clock,
            "requests doubled and shuffled": self._confuse,
        }
        """By name; each tells whether it could be done just now."""
        if disk is None:
            del self.faults["disk full"], self.faults["no inodes"]
        if faketime() is None:
            del self.faults["clock jumped"]

    def inflict(self, kind: str, rng: random.Random) -> bool:
        """Do one of ``faults``, if it can be done just now."""
        self.last_fault = kind
        return self.faults[kind](rng)

    def blocks_stored(self) -> int:
        """Count the blocks that the host has reported."""
        return self.log.read_text(errors="replace").count(" models measured, ")

    def wait_until_begun(self) -> None:
        """Wait until the host has reached the agent.

        Only from then on does it wait for an agent that is gone: before, the address may be wrong.
        """
        while "round 0: " not in self.log.read_text(errors="replace"):
            assert self.host.poll() is None, "the host ended before it began to measure"
            time.sleep(0.1)

    def story(self) -> str:
        """Tell what happened last."""
        tails = [
            f"--- {path.name}:\n{path.read_text(errors='replace')[-4000:]}"
            for path in (self._agent_log, self.log)
            if path.exists()
        ]
        return "\n".join([f"last fault: {self.last_fault}", *tails])

    def keep_host_running(self) -> int | None:
        """Starts the host again after a kill; its exit code once it ended by itself."""
        code = self.host.poll()
        if code in (0, 3):
            return code
        if code is not None:
            assert code == -signal.SIGKILL, f"the host gave up with exit code {code}"
            self.host = self._start_host()
        return None

    def stop(self) -> None:
        self.proxy.close()
        for process in (self.host, self.agent):
            process.kill()
            process.wait()

    def _start_agent(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", str(self.port)]
        command += ["--cache", str(self._files / "cache")]
        environment = {**os.environ, "TMPDIR": str(self._files)}
        if library := faketime():
            environment |= {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(self._clock_offset),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        with self._agent_log.open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _agent_answers(self, patience_s: float) -> bool:
        assert self.agent.poll() is None, "the agent ended by itself"
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            try:
                grpc.channel_ready_future(channel).result(timeout=patience_s)
            except grpc.FutureTimeoutError:
                return False
        return True

    def _may_lose_the_device(self) -> bool:
        """Two blocks may be under way, and each counts its losses."""
        if (stored := self.blocks_stored()) != self._stored_at_loss:
            self._stored_at_loss, self._losses = stored, 0
        self._losses += 1
        return self._losses <= LOSSES_BORNE // BLOCKS_UNDERWAY

    def _start_host(self) -> subprocess.Popen[bytes]:
        resume = (self.run / "settings.json").exists()
        command = [sys.executable, "-c", "from esm_host.cli import main; main()", "profile"]
        command += ["--run", str(self.run), "--device", f"127.0.0.1:{self.proxy.port}"]
        command += ["--resume"] if resume else self._arguments
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _kill_worker(self, rng: random.Random) -> bool:
        stored = self.blocks_stored()
        if stored - self._stored_at_kill < BLOCKS_UNDERWAY:
            return False
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                command = (status.parent / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == self.agent.pid and b"spawn_main" in command:
                os.kill(int(status.parent.name), signal.SIGKILL)
                self._stored_at_kill = stored
                return True
        return False

    def _kill_agent(self, rng: random.Random) -> bool:
        if not self._may_lose_the_device():
            return False
        self.agent.kill()
        self.agent.wait()
        self.agent = self._start_agent()
        return True

    def _kill_host(self, rng: random.Random) -> bool:
        self.host.kill()
        self.host.wait()
        return True

    def _cut(self, rng: random.Random) -> bool:
        return self._may_lose_the_device() and self.proxy.cut()

    def _cut_upload(self, rng: random.Random) -> bool:
        if not self._may_lose_the_device():
            return False
        self.proxy.cut_upload(rng.randrange(30_000))
        deadline = time.monotonic() + 10
        while not self.proxy.upload_cut and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.proxy.upload_cut

    def _take_from_disk(self, take: Callable[[SmallDisk], None], rng: random.Random) -> bool:
        """An agent that starts while there is no room would put its uploads elsewhere."""
        if self._disk is None or not self._agent_answers(1):
            return False
        take(self._disk)
        time.sleep(rng.uniform(0.5, 2.0))
        self._disk.free()
        return True

    def _jump_clock(self, rng: random.Random) -> bool:
        self._clock_offset.write_text(f"{rng.randrange(-_YEAR_S, _YEAR_S):+d}")
        return True

    def _confuse(self, rng: random.Random) -> bool:
        """What a broken client or network may say, beside what the host says."""
        lease = pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id="x", owner="x")
        release = pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id="x")
        model = Model("m", ARITHMETIC.read_bytes() * 2)  # no ONNX file, and large enough to shuffle
        good = Block("again", MeasureSpec(runs=2), (Model("m", ARITHMETIC.read_bytes()),))
        requests = list(convert.block_to_requests(Block("b", MeasureSpec(), (model,)), "x"))
        shuffled = rng.sample(requests, len(requests))
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub = profiler_pb2_grpc.ProfilerStub(channel)
            leases = [stub.Lease.future(lease), stub.Lease.future(lease)]
            leases += [stub.Release.future(release), stub.Lease.future(lease)]
            blocks = [
                stub.MeasureBlock(iter(sent), timeout=60)
                for sent in (shuffled, requests + requests, requests[:1] + requests)
            ]
            blocks += [
                stub.MeasureBlock(convert.block_to_requests(good, "x"), timeout=60)
                for _ in range(2)
            ]
            codes = [_code(call.result) for call in leases]
            codes += [_code(lambda call=call: list(call)) for call in blocks]
            assert not {grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED} & set(codes)
            with contextlib.suppress(grpc.RpcError):
                stub.Release(release)
        return True


def _code(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


def faketime() -> str | None:
    """The library that lets a process's clock jump, where it is installed."""
    paths = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return next(map(str, paths), None)
