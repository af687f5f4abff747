"""Profiler of this machine: starts its own agent and connects to it over gRPC."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import IO

from esm_host.errors import DeviceError, InvalidRequestError, UnreachableError
from esm_host.transport.base import OnProgress, Pending, Profiler, ignore
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import Block, BlockResult, DeviceInfo, Diagnosis, Standing


class LocalProfiler(Profiler):
    """Profiler with an agent on a free loopback port, which ends with this process.

    An agent that died is started again by the next call. The local agents of one user measure one
    at a time.

    Raises:
        DeviceError: the agent does not start; the message quotes its last line.
        InvalidRequestError: the agent refuses a variable of the environment.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._remote: RemoteProfiler | None = None
        self._log: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115

    @property
    def agent_pid(self) -> int:
        """Process id of the running agent, which is started if necessary."""
        self._agent()
        assert self._process is not None
        return self._process.pid

    def device_info(self) -> DeviceInfo:
        return self._agent().device_info()

    def reserve(self, purpose: str, wait: bool = True) -> Standing:
        return self._agent().reserve(purpose, wait)

    def submit(self, block: Block) -> Pending:
        return _Pending(self._agent().submit(block))

    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        return self._agent().diagnose(probe_s)

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()
            self._remote = None
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()  # the agent's signal to stop
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None

    def _agent(self) -> RemoteProfiler:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._remote is None:
            self._start()
        assert self._remote is not None
        return self._remote

    def _start(self) -> None:
        options = ["--port", "0", "--until-stdin-closes", "--take-turns"]
        command = ["-m", "esm_agent.cli", "serve", *options]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # the host handles Ctrl-C
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        address = ready.strip().rpartition(" ")[2]
        if ":" not in address:
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines() or ["it printed nothing"]
            # Only its environment can be wrong: this class gives all its options.
            kind = InvalidRequestError if code == 2 else DeviceError
            raise kind(f"the local agent did not start: {said[-1].removeprefix('error: ')}")
        self._remote = RemoteProfiler(address, "local")


class _Pending(Pending):
    """Block of the local agent, with its own message for a lost connection."""

    def __init__(self, inner: Pending) -> None:
        self._inner = inner

    @property
    def bytes_sent(self) -> int:  # type: ignore[override]
        return self._inner.bytes_sent

    def result(self, on_progress: OnProgress = ignore) -> BlockResult:
        try:
            return self._inner.result(on_progress)
        except UnreachableError as error:
            raise UnreachableError("the local agent died and is restarted") from error

    def finish(self) -> None:
        self._inner.finish()

    def cancel(self) -> None:
        self._inner.cancel()
