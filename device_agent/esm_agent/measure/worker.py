"""The handle through which the agent drives its measuring process.

Models run in a process of their own, so that one that crashes or hangs takes nothing else with
it. The process is spawned (never forked: the agent's gRPC threads must not be copied) and kept
from block to block. It writes to shared memory where it stands: the agent reads there which
model to blame, and how far the block has come.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from esm_agent.device.cgroups import oom_kills, read_groups
from esm_agent.device.facts import memory_bytes, usable_cpus
from esm_agent.device.telemetry import Telemetry
from esm_agent.measure import process as measuring
from esm_agent.measure.block import UploadedBlock
from esm_agent.measure.cells import Cells
from esm_agent.measure.history import HistoryFile, conditions
from esm_agent.measure.process import (
    CELLS,
    FINISH,
    REFERENCES,
    STATES,
    BackendFactory,
    Hello,
    JobResult,
    Profiled,
    Refusal,
    TelemetryFactory,
)
from esm_agent.measure.references import reference_models
from esm_agent.measure.sandbox import Confinement
from esm_agent.measure.sessions import Job
from esm_protos.estimates import estimate_references
from esm_protos.messages import (
    BlockResult,
    Failure,
    FailureKind,
    Limits,
    Measurement,
    MeasureSpec,
    Progress,
    State,
    Usual,
)
from esm_protos.providers import ProviderInfo
from esm_protos.text import install

_POLL_S = 0.25
_START_TIMEOUT_S = 120.0
_STARTS = 3


class CancelledError(Exception):
    """The client no longer wants the block."""


class WorkerUnavailableError(Exception):
    """The measuring process cannot be started."""


@dataclass
class _Process:
    """The measuring process.

    Attributes:
        oom_kills: what the kernel had killed for want of memory when the last job was sent.
    """

    process: Any
    connection: Connection
    cells: Cells
    oom_kills: int | None = None

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def out_of_memory(self) -> bool:
        """Whether the kernel killed the process, which has ended, for want of memory."""
        if self.process.exitcode != -signal.SIGKILL or self.oom_kills is None:
            return False
        return (oom_kills() or 0) > self.oom_kills

    def exit_text(self) -> str:
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "killed by SIGKILL: the device's memory may have run out"
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


class Worker:
    """Measures blocks in a process that it starts, watches, kills and starts again.

    Use from one thread, which must live as long as the worker: on Linux the process is told to
    die with the thread that started it.

    Args:
        make_backend: what must work.
        make_others: what need not.
        confinement: of the process; by default to its share of memory, without network.
        limits: that models are held to, and how long a block may take; None knows no such limits.
        history: where the reference models' latencies are remembered; None remembers nothing.
        metrics: names of sources of metrics (:mod:`esm_agent.measure.sources`).
    """

    def __init__(
        self,
        make_backend: BackendFactory,
        make_telemetry: TelemetryFactory = Telemetry,
        confinement: Confinement | None = None,
        limits: Limits | None = None,
        make_others: Sequence[BackendFactory] = (),
        history: HistoryFile | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        self._history = history
        self._metrics = tuple(metrics)
        self._hello = Hello("", ())
        self._make_backend = make_backend
        self._make_telemetry = make_telemetry
        self._confinement = confinement or Confinement()
        self._limits = limits
        self._make_others = tuple(make_others)
        self._current: _Process | None = None
        self.restarts = 0
        """Starts after the process had died, or was killed with its block."""

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one; from any thread."""
        current = self._current
        return None if current is None else current.process.pid

    def start(self) -> Hello:
        """Starts the process and returns what it says of its runtime.

        A process that is killed while it starts is started again: that came from outside.

        Raises:
            WorkerUnavailableError: it does not start, most likely for want of onnxruntime; or a
                source of metrics cannot be loaded.
        """
        for attempt in range(1, _STARTS + 1):
            self._current = current = self._spawn()
            try:
                if current.connection.poll(_START_TIMEOUT_S):
                    hello: Hello | Refusal = current.connection.recv()
                    if isinstance(hello, Refusal):
                        self.stop()
                        raise WorkerUnavailableError(hello.text)
                    self._hello = hello
                    return hello
            except (EOFError, ConnectionResetError):
                current.process.join()
            text, killed = current.exit_text(), (current.process.exitcode or 0) < 0
            self.stop()
            if not killed or attempt == _STARTS:
                break
        raise WorkerUnavailableError(
            f"the measuring process did not start ({text}): is onnxruntime installed? "
            f"{install('agent')}"
        )

    def _spawn(self) -> _Process:
        try:
            os.getcwd()
        except OSError:  # the folder was removed, and from there nothing can be spawned
            os.chdir("/")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        cells = Cells(CELLS)
        process = context.Process(
            target=measuring.main,
            args=(
                theirs,
                cells,
                self._make_backend,
                self._make_telemetry,
                self._confinement,
                self._make_others,
                self._metrics,
            ),
            daemon=True,
            name="esm-worker",
        )
        process.start()
        theirs.close()
        return _Process(process, ours, cells)

    def stop(self) -> None:
        """Kills the process; the next block starts another."""
        if self._current is not None:
            self._current.kill()
            self._current = None

    def measure(
        self,
        block: UploadedBlock,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finished: Callable[[], bool] = lambda: False,
    ) -> BlockResult:
        """Measures all models of a block together; one that fails does not fail the others.

        When the process dies, the block is measured again from its start, since its models must
        be measured together, and loaded one by one, to know which one it was. The first death
        may have come from outside; at the second one on the same model, that model is left out
        with outcome CRASH, or OUT_OF_MEMORY if the kernel says so. A model that takes longer than
        ``model_timeout_s`` to load, or for one inference, is left out at once with outcome
        TIMEOUT; when the block exceeds its limit, so are all of them. Reference models that do any
        of this are left out together. Once models are timed nothing takes that away: what goes
        wrong from then on costs profiles.

        Once ``finished()`` is true, models in turn are not visited again after the first round, and
        none is profiled.

        Raises:
            CancelledError: ``cancelled()`` became true; the process was killed.
            WorkerUnavailableError: the process cannot be started.
        """
        left_out: dict[int, Measurement] = {}
        references = reference_models() if block.spec.references else ()
        no_references = ""
        deaths: Counter[int] = Counter()
        models = block.models
        loaders = 1 if block.peak_memory else len(self._confinement.cpus or usable_cpus())
        usual = self._past(block.spec)
        began = time.monotonic()
        ends = began + self._limits.max_block_s if self._limits else math.inf
        while True:
            todo = {i: model for i, model in enumerate(models) if i not in left_out}
            job = Job(
                block.spec,
                todo,
                loaders,
                self._limits,
                block.peak_memory,
                block.profile_runs,
                references=references,
                usual=usual,
            )
            attempt = self._attempt(job, ends, on_progress, cancelled, finished)
            if isinstance(attempt, JobResult):
                results = {**left_out, **attempt.measurements}
                profiles = self._profiles(job, attempt, ends, on_progress, cancelled, finished)
                for index, profile in profiles:
                    results[index] = replace(results[index], profile=profile)
                if cancelled():  # the files go with the client: that one is missing means nothing
                    raise CancelledError
                ordered = tuple(results[i] for i in range(len(models)))
                self._remember(block.spec, attempt)
                return BlockResult(
                    block.block_id,
                    ordered,
                    attempt.busy_ns,
                    attempt.running_ns,
                    attempt.states,
                    attempt.references,
                    usual,
                    no_references or attempt.no_references,
                    self._history.problem if self._history and block.spec.references else "",
                )
            index, state, failure = attempt
            if self._limits and time.monotonic() > ends:
                text = (
                    f"the block took longer than this device's limit of "
                    f"{self._limits.max_block_s:g} s: give it fewer models or runs, or the agent "
                    "a longer --max-block-time"
                )
                for i, model in todo.items():
                    left_out[i] = Measurement.failed(model.model_id, FailureKind.TIMEOUT, text)
                ordered = tuple(left_out[i] for i in range(len(models)))
                return BlockResult(
                    block.block_id, ordered, round((time.monotonic() - began) * 1e9), 0
                )
            if state is State.PREPARING and loaders > 1 and index != REFERENCES:
                loaders = 1  # it may have been any of those that were loading
                continue
            deaths[index] += 1
            if failure.kind is not FailureKind.TIMEOUT and deaths[index] < 2:
                continue
            if index == REFERENCES:
                references = ()
                no_references = f"with them the measuring process failed: {failure.message}"
            else:
                left_out[index] = Measurement.failed(
                    models[index].model_id, failure.kind, failure.message
                )

    def _past(self, spec: MeasureSpec) -> Usual | None:
        """What is remembered of the reference models under the conditions of a block."""
        if self._history is None or not spec.references:
            return None
        names = [model.model_id for model in reference_models()]
        return self._history.usual(self._conditions(spec), names)

    def _remember(self, spec: MeasureSpec, result: JobResult) -> None:
        if self._history is not None and result.references:
            latency_ns = {
                name: estimate.latency_ns
                for name, estimate in estimate_references(result.references, spec).items()
                if math.isfinite(estimate.interval)
            }
            self._history.add(self._conditions(spec), latency_ns)

    def _conditions(self, spec: MeasureSpec) -> dict[str, str]:
        providers = (each for each in self._hello.providers if each.name == spec.provider)
        provider = next(providers, ProviderInfo(spec.provider))
        return conditions(self._hello.runtime, spec, provider, self._confinement.cpus)

    def _attempt(
        self,
        job: Job,
        ends: float,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finished: Callable[[], bool],
    ) -> JobResult | tuple[int, State, Failure]:
        """The result, or the model and the state at which it broke off, and why: at the latest
        when the monotonic clock says ``ends``."""
        if self._current is None or not self._current.process.is_alive():
            self.stop()
            self.start()
            self.restarts += 1
        current = self._current
        assert current is not None
        first = next(iter(job.models), 0)
        current.cells[:] = [0, first, 0, 0, 0]
        current.oom_kills = oom_kills()
        try:
            # Only now: starting the process may have taken a second.
            current.connection.send(job._replace(limit_s=ends - time.monotonic()))
        except (ConnectionResetError, BrokenPipeError):
            return self._death(current)
        answer = self._answer(job, ends, on_progress, cancelled, finished)
        assert not isinstance(answer, Profiled), "they come after the result"
        return answer

    def _profiles(
        self,
        job: Job,
        result: JobResult,
        ends: float,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finished: Callable[[], bool],
    ) -> Iterator[Profiled]:
        """What follows a result, as far as the process, the time and the runtime let it."""
        timed = [i for i in job.models if result.measurements[i].failure is None]
        for _ in timed if job.profile_runs else ():
            answer = self._answer(job, ends, on_progress, cancelled, finished)
            if not isinstance(answer, Profiled):
                return
            yield answer

    def _answer(
        self,
        job: Job,
        ends: float,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finished: Callable[[], bool],
    ) -> JobResult | Profiled | tuple[int, State, Failure]:
        """The next thing that the process says; or as :meth:`_attempt`, and it is dead."""
        current = self._current
        assert current is not None
        ticks, changed = current.cells[3], time.monotonic()
        try:
            while not current.connection.poll(_POLL_S):
                if cancelled():
                    self.stop()
                    raise CancelledError
                current.cells[FINISH] = finished()
                state, model, share, now_ticks = current.cells[:FINISH]
                on_progress(Progress(STATES[state], share / 1_000_000))
                if time.monotonic() > ends:
                    self.stop()
                    return model, STATES[state], Failure(FailureKind.TIMEOUT, "the block's limit")
                if now_ticks != ticks:
                    ticks, changed = now_ticks, time.monotonic()
                elif time.monotonic() - changed > job.spec.model_timeout_s:
                    self.stop()
                    doing = "loading" if STATES[state] is State.PREPARING else "one inference"
                    text = (
                        f"{doing} took longer than {job.spec.model_timeout_s:g} s: "
                        "give a longer --timeout"
                    )
                    return model, STATES[state], Failure(FailureKind.TIMEOUT, text)
            answer: JobResult | Profiled = current.connection.recv()
            return answer
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return self._death(current)

    def _death(self, current: _Process) -> tuple[int, State, Failure]:
        state, model = current.cells[:2]
        current.process.join()
        if current.out_of_memory():
            failure = Failure(FailureKind.OUT_OF_MEMORY, _out_of_memory_text())
        else:
            text = f"the measuring process died on this model ({current.exit_text()})"
            failure = Failure(FailureKind.CRASH, text)
        self.stop()
        return model, STATES[state], failure


def _out_of_memory_text() -> str:
    size = f"{memory_bytes() / 1e9:.2g} GB"
    if read_groups().memory_limit() == memory_bytes():
        what = f"the {size} that this device's control group may use"
        fix = "raise the container's limit, --memory or MemoryMax="
    else:
        what, fix = f"this device's memory of {size}", "stop other programs"
    return f"{what} ran out, and the kernel killed the measuring process: {fix}, or give less"
