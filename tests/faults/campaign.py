"""A host and an agent as two programs, and everything that can happen to them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc

from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Block, MeasureSpec, Model
from esm_protos.v1 import profiler_pb2 as pb
from esm_protos.v1 import profiler_pb2_grpc
from tests.faults.proxy import Proxy

PROBE = Path(__file__).parents[2] / "device_agent/esm_agent/probe_models/convolutions.onnx"
UPLOAD_AREA_BYTES = 32 << 20
_YEAR_S = 31_536_000


class Campaign:
    """The host speaks to the agent through a proxy; each is started again after it was killed.

    Args:
        arguments: of ``esm-host profile``.
        upload_area: the agent's temporary folder.
    """

    def __init__(self, folder: Path, arguments: list[str], upload_area: Path) -> None:
        self.run = folder / "run"
        self.log = folder / "host.log"
        self._arguments = arguments
        self._upload_area = upload_area
        self._clock_offset = folder / "clock"
        self._clock_offset.write_text("+0")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.agent = self._start_agent()
        assert self.agent.stdout is not None
        self.agent.stdout.readline()  # it is ready
        self.proxy = Proxy(self.port)
        self.host = self._start_host()
        self.faults: dict[str, Callable[[random.Random], bool]] = {
            "worker killed": self._kill_worker,
            "agent killed": self._kill_agent,
            "host killed": self._kill_host,
            "cut in mid-upload": self._cut_upload,
            "cut in mid-measurement": lambda rng: self.proxy.cut(),
            "disk full": self._fill_disk,
            "clock jumped": self._jump_clock,
            "requests doubled and shuffled": self._confuse,
        }
        """By name; each tells whether it could be done just now."""
        if not os.path.ismount(upload_area):
            del self.faults["disk full"]
        if faketime() is None:
            del self.faults["clock jumped"]

    def keep_host_running(self) -> int | None:
        """Starts the host again after a kill; its exit code once it ended by itself."""
        code = self.host.poll()
        if code in (0, 3):
            return code
        if code is not None:
            assert code == -signal.SIGKILL, f"the host gave up: {self.log.read_text()[-2000:]}"
            self.host = self._start_host()
        return None

    def stop(self) -> None:
        self.proxy.close()
        for process in (self.host, self.agent):
            process.kill()
            process.wait()

    def _start_agent(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", str(self.port)]
        environment = {**os.environ, "TMPDIR": str(self._upload_area)}
        if library := faketime():
            environment |= {
                "LD_PRELOAD": library,
                "FAKETIME_TIMESTAMP_FILE": str(self._clock_offset),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def _start_host(self) -> subprocess.Popen[bytes]:
        resume = (self.run / "settings.json").exists()
        command = [sys.executable, "-c", "from esm_host.cli import main; main()", "profile"]
        command += ["--run", str(self.run), "--device", f"127.0.0.1:{self.proxy.port}"]
        command += ["--resume"] if resume else self._arguments
        with self.log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def _kill_worker(self, rng: random.Random) -> bool:
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rpartition(")")[2].split()[1])
                command = (status.parent / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == self.agent.pid and b"spawn_main" in command:
                os.kill(int(status.parent.name), signal.SIGKILL)
                return True
        return False

    def _kill_agent(self, rng: random.Random) -> bool:
        self.agent.kill()
        self.agent.wait()
        self.agent = self._start_agent()
        return True

    def _kill_host(self, rng: random.Random) -> bool:
        self.host.kill()
        self.host.wait()
        return True

    def _cut_upload(self, rng: random.Random) -> bool:
        self.proxy.cut_upload(rng.randrange(30_000))
        deadline = time.monotonic() + 10
        while not self.proxy.upload_cut and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.proxy.upload_cut

    def _fill_disk(self, rng: random.Random) -> bool:
        ballast = self._upload_area / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        time.sleep(rng.uniform(0.5, 2.0))
        ballast.unlink()
        return True

    def _jump_clock(self, rng: random.Random) -> bool:
        self._clock_offset.write_text(f"{rng.randrange(-_YEAR_S, _YEAR_S):+d}")
        return True

    def _confuse(self, rng: random.Random) -> bool:
        """What a broken client or network may say, beside what the host says."""
        lease = pb.LeaseRequest(protocol_version=PROTOCOL_VERSION, lease_id="x", owner="x")
        release = pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id="x")
        model = Model("m", PROBE.read_bytes() * 2)  # no ONNX file, and large enough to shuffle
        good = Block("again", MeasureSpec(runs=2), (Model("m", PROBE.read_bytes()),))
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


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A folder that can be filled without harm; a plain one where mounting is not allowed."""
    area = Path(tempfile.mkdtemp(dir=folder))
    options = ["-o", f"size={UPLOAD_AREA_BYTES}", "tmpfs", str(area)]
    mounted = subprocess.run(["mount", "-t", "tmpfs", *options], stderr=subprocess.DEVNULL)
    try:
        yield area
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(area)], check=True)
