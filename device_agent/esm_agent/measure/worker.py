"""Control of the measuring process from the agent.

Models run in a separate process, so that a crash or hang does not affect the agent. The process is
spawned, not forked, because the agent's gRPC threads must not be copied. It is kept from block to
block. From shared memory the agent reads the current model and the progress of the block.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from esm_agent.device.cgroups import oom_kills, read_groups
from esm_agent.device.facts import memory_bytes, usable_cpus
from esm_agent.device.telemetry import Telemetry
from esm_agent.measure import process as measuring
from esm_agent.measure.block import UploadedBlock
from esm_agent.measure.cells import Cells
from esm_agent.measure.energy import ModelEnergy
from esm_agent.measure.history import HistoryFile, conditions
from esm_agent.measure.process import (
    CELLS,
    CURRENT,
    FINISH,
    LOADING,
    NOTHING,
    REFERENCES,
    STATES,
    TICKS,
    BackendFactory,
    Energies,
    Finder,
    Hello,
    JobResult,
    Profiled,
    Refusal,
    TelemetryFactory,
)
from esm_agent.measure.references import reference_models
from esm_agent.measure.sandbox import Confinement
from esm_agent.measure.sessions import Job
from esm_agent.operation import logs
from esm_protos.estimates import estimate_references
from esm_protos.messages import (
    BlockResult,
    Energy,
    Failure,
    FailureKind,
    Limits,
    Measurement,
    MeasureSpec,
    Progress,
    State,
    UsualLatencies,
)
from esm_protos.providers import ProviderInfo
from esm_protos.text import install

_POLL_S = 0.25
_START_TIMEOUT_S = 120.0
_STARTS = 3


class CancelledError(Exception):
    """Cancellation of a block by its client."""


class WorkerUnavailableError(Exception):
    """Error of a measuring process that cannot be started."""


class UnusableOptionError(WorkerUnavailableError):
    """Error of a chosen provider, metric source or GPU that does not work here."""


@dataclass
class _Process:
    """The measuring process.

    Attributes:
        oom_kills: Number of the kernel's out-of-memory kills when the last job was sent.
    """

    process: Any
    connection: Connection
    cells: Cells
    oom_kills: int | None = None

    def kill(self) -> None:
        """Kill the process and close the connection."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def out_of_memory(self) -> bool:
        """Return whether the kernel killed the ended process because memory ran out."""
        if self.process.exitcode != -signal.SIGKILL or self.oom_kills is None:
            return False
        return (oom_kills() or 0) > self.oom_kills

    def exit_text(self) -> str:
        """Return how the process ended, in words."""
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "killed by SIGKILL: the device's memory may have run out"
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


class Worker:
    """Owner of the measuring process: starts it, watches it, kills it and restarts it.

    Use it from one thread that lives as long as the worker: on Linux the process dies with the
    thread that started it.

    Args:
        make_backend: Factory of the backend that must work.
        make_telemetry: Factory of the telemetry.
        confinement: Confinement of the process; by default a share of memory and no network.
        limits: Limits of models and blocks; None sets none.
        make_others: Factories of optional backends.
        history: Store of the reference models' latencies; None stores nothing.
        metrics: Names of metric sources (:mod:`esm_agent.measure.sources`).
        find: Finder of more optional backends.
        try_timeout_s: Longest try of one optional backend, seconds.
        meters: Names of the user's energy meters (:mod:`esm_agent.energy`).
        calibration: File with the calibration of a Raspberry Pi's PMIC; None for none.

    Attributes:
        restarts: Number of starts after the process died or was killed with its block.
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
        find: Finder | None = None,
        try_timeout_s: float = _START_TIMEOUT_S,
        meters: Sequence[str] = (),
        calibration: Path | None = None,
    ) -> None:
        self._energy = (tuple(meters), calibration)
        self._find = find
        self._try_timeout_s = try_timeout_s
        self._skipped: dict[int, str] = {}
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

    @property
    def pid(self) -> int | None:
        """Process id; None without a process. Safe from any thread."""
        current = self._current
        return None if current is None else current.process.pid

    def start(self) -> Hello:
        """Start the process and return its first message.

        A process killed during its start is started again: the cause is outside. An optional
        provider that ends or hangs the process is left out from then on.

        Raises:
            WorkerUnavailableError: the process does not start.
            UnusableOptionError: a metric source or an energy meter does not load.
        """
        attempt = 1
        while True:
            self._current = current = self._spawn()
            hello = self._first_message(current)
            if isinstance(hello, Refusal):
                self.stop()
                raise UnusableOptionError(hello.text)
            if hello is not None:
                self._hello = hello
                return hello
            place, hung = current.cells[CURRENT], current.process.is_alive()
            self.stop()
            text = current.exit_text()
            if hung:
                text = f"no answer for {self._timeout_s(place):g} s"
            code = 0 if hung else current.process.exitcode or 0
            if place >= 0 and (code != -signal.SIGKILL or attempt == _STARTS):
                self._skipped[place] = f"it stops the measuring process ({text})"
                attempt = 1
            elif code >= 0 or attempt == _STARTS:
                raise WorkerUnavailableError(
                    f"the measuring process did not start ({text}): is onnxruntime installed? "
                    f"{install('agent')}"
                )
            else:
                attempt += 1

    def _first_message(self, current: _Process) -> Hello | Refusal | None:
        """Return the first message of the process; None if it ended, or hangs and is alive."""
        ticks, changed = current.cells[TICKS], time.monotonic()
        try:
            while not current.connection.poll(_POLL_S):
                if current.cells[TICKS] != ticks:
                    ticks, changed = current.cells[TICKS], time.monotonic()
                elif time.monotonic() - changed > self._timeout_s(current.cells[CURRENT]):
                    return None
            first: Hello | Refusal = current.connection.recv()
            return first
        except (EOFError, ConnectionResetError):
            current.process.join()
            return None

    def _timeout_s(self, place: int) -> float:
        """Return the longest try of the provider at a place, or the longest start without it, s."""
        return self._try_timeout_s if place >= 0 else _START_TIMEOUT_S

    def _spawn(self) -> _Process:
        try:
            os.getcwd()
        except OSError:  # the working folder was removed: nothing can be spawned from there
            os.chdir("/")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        cells = Cells(CELLS)
        cells[CURRENT] = NOTHING
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
                self._find,
                self._skipped,
                *self._energy,
                logs.is_json(),
            ),
            daemon=True,
            name="esm-worker",
        )
        process.start()
        theirs.close()
        return _Process(process, ours, cells)

    def stop(self) -> None:
        """Kill the process; the next block starts another."""
        if self._current is not None:
            self._current.kill()
            self._current = None

    def measure(
        self,
        block: UploadedBlock,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finish_requested: Callable[[], bool] = lambda: False,
    ) -> BlockResult:
        """Measure all models of a block together; a model that fails does not affect the others.

        If the process dies, the whole block is measured again, because its models must be measured
        together. Models then load one by one, to identify the cause. The first death may have an
        outside cause. At the second death on the same model, the model is left out with CRASH, or
        with OUT_OF_MEMORY if the kernel reports it.

        A model that exceeds ``load_timeout_s``, or ``model_timeout_s`` for one inference, is left
        out at once with TIMEOUT. If the block exceeds its limit, all models fail with TIMEOUT. If a
        reference model fails in any of these ways, all reference models are left out. After timing,
        failures cost only profiles and energy.

        Args:
            block: Block to measure.
            on_progress: Callback for progress.
            cancelled: Function that returns whether the client cancelled the block.
            finish_requested: Function that returns whether the client requests an early end. Models
                then get no visits after the first round and no profile.

        Raises:
            CancelledError: the block was cancelled; the process was killed.
            WorkerUnavailableError: the process cannot be started.
        """
        left_out: dict[int, Measurement] = {}
        references = reference_models() if block.spec.references else ()
        references_problem = ""
        deaths: Counter[int] = Counter()
        models = block.models
        loaders = 1 if block.peak_memory else len(self._confinement.cpus or usable_cpus())
        usual = self._usual(block.spec)
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
                energy_s=block.energy_s,
                raw=block.raw,
            )
            attempt = self._attempt(job, ends, on_progress, cancelled, finish_requested)
            if isinstance(attempt, JobResult):
                timed_ns = time.monotonic_ns()
                results = {**left_out, **attempt.measurements}
                profiles = self._profiles(
                    job, attempt, ends, on_progress, cancelled, finish_requested
                )
                for index, profile in profiles:
                    results[index] = replace(results[index], profile=profile)
                for index, each in self._energies(
                    job, attempt, ends, on_progress, cancelled, finish_requested
                ).items():
                    known = results[index]
                    metrics = {**each.values, **known.metrics}
                    results[index] = replace(known, energy=each.energy, metrics=metrics)
                if cancelled():  # uploaded files are gone: failures of this attempt mean nothing
                    raise CancelledError
                ordered = tuple(results[i] for i in range(len(models)))
                self._remember(block.spec, attempt)
                return BlockResult(
                    block.block_id,
                    ordered,
                    attempt.busy_ns + time.monotonic_ns() - timed_ns,
                    attempt.running_ns,
                    attempt.states,
                    attempt.references,
                    usual,
                    references_problem or attempt.references_problem,
                    self._history.problem if self._history and block.spec.references else "",
                )
            index, state, failure = attempt
            if self._limits and time.monotonic() > ends:
                text = (
                    f"the block took longer than this device's limit of "
                    f"{self._limits.max_block_s:g} s: give fewer models or runs, or start the "
                    "agent with a longer --max-block-time"
                )
                for i, model in todo.items():
                    left_out[i] = Measurement.failed(model.model_id, FailureKind.TIMEOUT, text)
                ordered = tuple(left_out[i] for i in range(len(models)))
                return BlockResult(
                    block.block_id, ordered, round((time.monotonic() - began) * 1e9), 0
                )
            if state is State.PREPARING and loaders > 1 and index != REFERENCES:
                loaders = 1  # any model that was loading may be the cause
                continue
            deaths[index] += 1
            if failure.kind is not FailureKind.TIMEOUT and deaths[index] < 2:
                continue
            if index == REFERENCES:
                references = ()
                references_problem = f"the measuring process failed with them: {failure.message}"
            else:
                left_out[index] = Measurement.failed(
                    models[index].model_id, failure.kind, failure.message
                )

    def _usual(self, spec: MeasureSpec) -> UsualLatencies | None:
        """Return the reference models' history under the conditions of a spec."""
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
        finish_requested: Callable[[], bool],
    ) -> JobResult | tuple[int, State, Failure]:
        """Measure once.

        Returns:
            The result; or the current model, the state and the failure if the process died or the
            monotonic clock reached ``ends``.
        """
        if self._current is None or not self._current.process.is_alive():
            self.stop()
            self.start()
            self.restarts += 1
        current = self._current
        assert current is not None
        first = next(iter(job.models), 0)
        current.cells[:] = [0, first, 0, 0, 0, 0]
        current.oom_kills = oom_kills()
        try:
            # Computed after the start of the process, which may take a second.
            current.connection.send(job._replace(limit_s=ends - time.monotonic()))
        except (ConnectionResetError, BrokenPipeError):
            return self._death(current)
        answer = self._answer(job, ends, on_progress, cancelled, finish_requested)
        assert not isinstance(answer, Profiled | Energies), "these follow the result"
        return answer

    def _profiles(
        self,
        job: Job,
        result: JobResult,
        ends: float,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finish_requested: Callable[[], bool],
    ) -> Iterator[Profiled]:
        """Yield the profiles after a result, until the process ends or time runs out."""
        for _ in result.timed(job) if job.profile_runs else ():
            answer = self._answer(job, ends, on_progress, cancelled, finish_requested)
            if not isinstance(answer, Profiled):
                return
            yield answer

    def _energies(
        self,
        job: Job,
        result: JobResult,
        ends: float,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finish_requested: Callable[[], bool],
    ) -> Mapping[int, ModelEnergy]:
        """Return the energy of each timed model; with the reason if the process ended."""
        timed = result.timed(job)
        if not job.energy_s or not timed:
            return {}
        why = "the measuring process ended while it profiled"
        if self._current is not None:
            answer = self._answer(job, ends, on_progress, cancelled, finish_requested)
            if isinstance(answer, Energies):
                return answer.models
            assert not isinstance(answer, JobResult | Profiled), "the energy is last"
            why = answer[2].message
        return dict.fromkeys(timed, ModelEnergy(Energy("", "", problem=why)))

    def _answer(
        self,
        job: Job,
        ends: float,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
        finish_requested: Callable[[], bool],
    ) -> JobResult | Profiled | Energies | tuple[int, State, Failure]:
        """Return the next message of the process; or a failure, as :meth:`_attempt`."""
        current = self._current
        assert current is not None
        ticks, changed = current.cells[TICKS], time.monotonic()
        try:
            while not current.connection.poll(_POLL_S):
                if cancelled():
                    self.stop()
                    raise CancelledError
                current.cells[FINISH] = finish_requested()
                state, model, share, now_ticks = current.cells[:FINISH]
                on_progress(Progress(STATES[state], share / 1_000_000))
                if time.monotonic() > ends:
                    self.stop()
                    return model, STATES[state], Failure(FailureKind.TIMEOUT, "the block's limit")
                if now_ticks != ticks:
                    ticks, changed = now_ticks, time.monotonic()
                    continue
                doing, name = "one inference", "timeout"
                limit_s = job.spec.model_timeout_s
                if current.cells[LOADING]:
                    doing, name, limit_s = "loading", "load timeout", job.spec.load_timeout_s
                if time.monotonic() - changed > limit_s:
                    self.stop()
                    text = f"{doing} took longer than {limit_s:g} s: give a longer {name}"
                    return model, STATES[state], Failure(FailureKind.TIMEOUT, text)
            answer: JobResult | Profiled | Energies = current.connection.recv()
            return answer
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return self._death(current)

    def _death(self, current: _Process) -> tuple[int, State, Failure]:
        """Return the current model, the state and the failure of a process that died."""
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
        what = f"the {size} of this device's control group"
        fix = "raise the container's limit, --memory or MemoryMax="
    else:
        what, fix = f"this device's memory of {size}", "stop other programs"
    return (
        f"{what} ran out, and the kernel killed the measuring process: {fix}, or give fewer models"
    )
