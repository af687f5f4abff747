"""The measuring process, and the handle through which the agent drives it.

Models run in a process of their own, so that one that crashes or hangs takes nothing else with
it. The process is spawned (never forked: the agent's gRPC threads must not be copied) and kept
from block to block. Where it stands is written to shared memory, which costs the measurement
nothing: the agent reads there which model to blame, and how far the block has come.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from esm_protos.messages import (
    BlockResult,
    Failure,
    FailureKind,
    Measurement,
    MeasureSpec,
    Progress,
    State,
)

_STATES = (State.PREPARING, State.MEASURING)
_POLL_S = 0.25
_START_TIMEOUT_S = 120.0
_PR_SET_PDEATHSIG = 1

BackendFactory = Callable[[], Any]
"""Makes the :class:`esm_agent.backends.Backend` inside the process; must be importable."""


def cpu_backend() -> Any:
    """ONNX Runtime's CPU provider."""
    from esm_agent.backends import OnnxRuntimeCpu

    return OnnxRuntimeCpu()


class CancelledError(Exception):
    """The client no longer wants the block."""


class WorkerUnavailableError(Exception):
    """The measuring process cannot be started."""


class Hello(NamedTuple):
    """What the process says of its runtime once it is up."""

    runtime: str
    providers: tuple[str, ...]


class Job(NamedTuple):
    """Models of a block by their index in it, and how to measure them."""

    spec: MeasureSpec
    models: dict[int, tuple[str, Path]]


class JobResult(NamedTuple):
    measurements: dict[int, Measurement]
    busy_ns: int
    running_ns: int


# Inside the process


class _Board:
    """The shared page: state, current model, share done (per million), visits so far."""

    def __init__(self, cells: Any) -> None:
        self.cells = cells

    def write(self, state: State, model: int, fraction: float) -> None:
        self.cells[0] = _STATES.index(state)
        self.cells[1] = model
        self.cells[2] = round(fraction * 1_000_000)
        self.cells[3] += 1


def _main(connection: Connection, cells: Any, make_backend: BackendFactory) -> None:
    """Takes jobs until the agent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent to handle
    if sys.platform == "linux":
        # A hung native call must not outlive an agent that was killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import onnxruntime

    board = _Board(cells)
    backend = make_backend()
    connection.send(Hello(f"onnxruntime {onnxruntime.__version__}", (backend.provider,)))
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        connection.send(_measure(backend, job, board))


def _measure(backend: Any, job: Job, board: _Board) -> JobResult:
    """One attempt at a block. A model that fails is left out and the rest is measured."""
    from esm_agent import timing
    from esm_agent.backends import ModelError, first_run

    clock = time.perf_counter_ns
    began = clock()
    results: dict[int, Measurement] = {}
    loaded: dict[int, tuple[timing.Run, int, int]] = {}
    running_ns = 0

    def prepare(index: int) -> None:
        model_id, path = job.models[index]
        try:
            start = clock()
            run = backend.load(path, job.spec)
            ready = clock()
            first_run(run)
            loaded[index] = (run, ready - start, clock() - ready)
        except ModelError as error:
            failure = error.failure
            results[index] = Measurement.failed(model_id, failure.kind, failure.message)
        except MemoryError:
            kind, message = FailureKind.OUT_OF_MEMORY, "the model does not fit into memory"
            results[index] = Measurement.failed(model_id, kind, message)

    def keep(index: int, samples: timing.Samples, origin: int) -> None:
        nonlocal running_ns
        _, load_ns, first_ns = loaded[index]
        model_id = job.models[index][0]
        results[index] = samples.measurement(model_id, load_ns, first_ns, origin)
        running_ns += samples.running_ns + first_ns

    gc.disable()  # no collection inside a timed run
    try:
        count = len(job.models)
        if job.spec.protocol.value == "sequential":
            origin = clock()
            for position, index in enumerate(job.models):
                board.write(State.MEASURING, index, position / count)
                prepare(index)
                if index in loaded:
                    keep(index, timing.sequential(loaded[index][0], job.spec, clock), origin)
                    del loaded[index]
        else:
            for position, index in enumerate(job.models):
                board.write(State.PREPARING, index, position / count)
                prepare(index)
            runs = {index: run for index, (run, _, _) in loaded.items()}
            origin = clock()
            visited = timing.interleaved(
                runs, job.spec, lambda i, share: board.write(State.MEASURING, i, share), clock
            )
            for index, samples in visited.items():
                keep(index, samples, origin)
            runs.clear()
            loaded.clear()
    finally:
        gc.enable()
        gc.collect()
    return JobResult(results, clock() - began, running_ns)


# Inside the agent


@dataclass
class _Process:
    process: Any
    connection: Connection
    cells: Any

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def exit_text(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


class Worker:
    """Measures blocks in a process that it starts, watches, kills and starts again.

    Use from one thread, which must live as long as the worker: on Linux the process is told to
    die with the thread that started it.
    """

    def __init__(self, make_backend: BackendFactory = cpu_backend) -> None:
        self._make_backend = make_backend
        self._current: _Process | None = None

    def start(self) -> Hello:
        """Starts the process and returns what it says of its runtime.

        Raises:
            WorkerUnavailableError: it does not start, most likely for want of onnxruntime.
        """
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        cells = context.RawArray("q", 4)
        process = context.Process(
            target=_main, args=(theirs, cells, self._make_backend), daemon=True, name="esm-worker"
        )
        process.start()
        theirs.close()
        self._current = _Process(process, ours, cells)
        try:
            if ours.poll(_START_TIMEOUT_S):
                hello: Hello = ours.recv()
                return hello
        except (EOFError, ConnectionResetError):
            process.join()
        text = self._current.exit_text()
        self.stop()
        raise WorkerUnavailableError(
            f"the measuring process did not start ({text}): is onnxruntime installed? "
            "pip install 'esm-profiler[agent]'"
        )

    def stop(self) -> None:
        """Kills the process; the next block starts another."""
        if self._current is not None:
            self._current.kill()
            self._current = None

    def measure(
        self,
        block_id: str,
        spec: MeasureSpec,
        models: Sequence[tuple[str, Path]],
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> BlockResult:
        """Measures all models of a block together; one that fails does not fail the others.

        When the process dies, the block is measured again from its start, since its models must
        be measured together. The first death may have come from outside; at the second one on
        the same model, that model is left out with outcome CRASH. A model that exceeds
        ``spec.model_timeout_s`` is left out at once with outcome TIMEOUT.

        Raises:
            CancelledError: ``cancelled()`` became true; the process was killed.
            WorkerUnavailableError: the process cannot be started.
        """
        left_out: dict[int, Measurement] = {}
        deaths: Counter[int] = Counter()
        while True:
            todo = {i: model for i, model in enumerate(models) if i not in left_out}
            attempt = self._attempt(Job(spec, todo), on_progress, cancelled)
            if isinstance(attempt, JobResult):
                results = {**left_out, **attempt.measurements}
                ordered = tuple(results[i] for i in range(len(models)))
                return BlockResult(block_id, ordered, attempt.busy_ns, attempt.running_ns)
            index, failure = attempt
            deaths[index] += 1
            if failure.kind is FailureKind.TIMEOUT or deaths[index] == 2:
                left_out[index] = Measurement.failed(
                    models[index][0], failure.kind, failure.message
                )

    def _attempt(
        self,
        job: Job,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> JobResult | tuple[int, Failure]:
        """The result, or the model at which it broke off and why."""
        if self._current is None or not self._current.process.is_alive():
            self.stop()
            self.start()
        current = self._current
        assert current is not None
        first = next(iter(job.models), 0)
        current.cells[:] = [0, first, 0, 0]
        ticks, changed = 0, time.monotonic()
        try:
            current.connection.send(job)
            while not current.connection.poll(_POLL_S):
                if cancelled():
                    self.stop()
                    raise CancelledError
                state, model, share, now_ticks = current.cells[:]
                on_progress(Progress(_STATES[state], share / 1_000_000))
                if now_ticks != ticks:
                    ticks, changed = now_ticks, time.monotonic()
                elif time.monotonic() - changed > job.spec.model_timeout_s:
                    self.stop()
                    text = f"no answer within {job.spec.model_timeout_s:g} s"
                    return model, Failure(FailureKind.TIMEOUT, text)
            result: JobResult = current.connection.recv()
            return result
        except (EOFError, ConnectionResetError, BrokenPipeError):
            model = current.cells[1]
            current.process.join()
            text = f"the measuring process died on this model ({current.exit_text()})"
            self.stop()
            return model, Failure(FailureKind.CRASH, text)
