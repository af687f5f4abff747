"""Inside the measuring process: takes jobs, loads their models, times them, watches the device.

The process is spawned by :mod:`~.worker`, and kept from block to block. Where it stands
is written to shared memory, which costs the measurement nothing.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from esm_agent.device.telemetry import Telemetry
from esm_agent.measure import preflight, timing
from esm_agent.measure.block import UploadedModel
from esm_agent.measure.memory import PeakMemory
from esm_agent.measure.sandbox import Confinement, confine
from esm_protos.graphs import mapped
from esm_protos.messages import (
    DeviceState,
    Failure,
    FailureKind,
    Limits,
    Measurement,
    MeasureSpec,
    Profile,
    Protocol,
    State,
)

if TYPE_CHECKING:
    from esm_agent.measure.backends import Backend, DeviceModel, LoadedModel

STATES = (State.PREPARING, State.MEASURING)
_PR_SET_PDEATHSIG = 1
_LOOK_NS = 1_000_000_000
_MAX_LOOKS = 100
_LARGE_BYTES = 64 << 20

T = TypeVar("T")

BackendFactory = Callable[[], Any]
"""Makes the :class:`esm_agent.measure.backends.Backend` inside the process; must be importable."""
TelemetryFactory = Callable[[], Any]
"""Makes the :class:`~esm_agent.device.telemetry.Telemetry` in the process; must be importable."""


def cpu_backend() -> Any:
    """ONNX Runtime's CPU provider."""
    from esm_agent.measure.backends import OnnxRuntimeCpu

    return OnnxRuntimeCpu()


def cuda_backend(gpu: int = 0) -> Any:
    """ONNX Runtime's CUDA provider; raises ProviderMissingError where it does not work."""
    from esm_agent.measure.cuda import Cuda

    return Cuda(gpu)


class Hello(NamedTuple):
    """What the process says once it is up.

    Attributes:
        isolation: what confines it.
        missing: why providers are not there.
    """

    runtime: str
    providers: tuple[str, ...]
    isolation: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


class Job(NamedTuple):
    """Models of a block by their index in it, and how to measure them.

    Attributes:
        loaders: how many models are loaded at a time; with one, a model that kills the process
            while it loads is known.
        limits: what the runtime is to see of models; None shows it anything.
        peak_memory: tell how much every model takes; one is loaded at a time.
        profile_runs: 0 profiles nothing.
        limit_s: time after which the agent breaks the block off.
    """

    spec: MeasureSpec
    models: dict[int, UploadedModel]
    loaders: int = 1
    limits: Limits | None = None
    peak_memory: bool = False
    profile_runs: int = 0
    limit_s: float = math.inf


class JobResult(NamedTuple):
    """What timing gave. With ``profile_runs``, a :class:`Profiled` follows for every model that
    has a latency."""

    measurements: dict[int, Measurement]
    busy_ns: int
    running_ns: int
    states: tuple[DeviceState, ...]


class Profiled(NamedTuple):
    """None where the runtime did not tell, which is no reason to lose the latency."""

    model: int
    profile: Profile | None


class Board:
    """The shared page: state, current model, share done (per million), signs of life so far."""

    def __init__(self, cells: Any) -> None:
        self.cells = cells
        self._timing = 1.0

    def expect(self, job: Job) -> None:
        """From now on it is told of this job: how much of its measuring is timing."""
        self._timing = job.spec.runs / (job.spec.runs + job.profile_runs)

    def write(self, state: State, model: int, fraction: float) -> None:
        """Of loading, or of timing."""
        self._write(state, model, fraction * (self._timing if state is State.MEASURING else 1))

    def write_profiling(self, model: int, fraction: float) -> None:
        self._write(State.MEASURING, model, self._timing + fraction * (1 - self._timing))

    def tick(self) -> None:
        """Show that something was finished: the time-out begins anew."""
        self.cells[3] += 1

    def _write(self, state: State, model: int, fraction: float) -> None:
        self.cells[0] = STATES.index(state)
        self.cells[1] = model
        self.cells[2] = round(fraction * 1_000_000)
        self.tick()


class Loaded(NamedTuple):
    """A model in memory, run once, and what that took."""

    model: LoadedModel
    load_ns: int
    first_run_ns: int = 0
    peak_rss_bytes: int | None = None

    @property
    def run(self) -> timing.Run:
        return self.model.run

    @property
    def device(self) -> DeviceModel | None:
        """Where it lies in a memory other than this program's."""
        from esm_agent.measure.backends import DeviceModel

        return self.model if isinstance(self.model, DeviceModel) else None


class Sessions:
    """Loads the models of one block after the other, between blocks, when nothing is timed.

    What two blocks in a row share, the references, stays loaded.

    Args:
        tick: told that a model is loaded, or has run.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        clock: timing.Clock,
        memory: PeakMemory,
        tick: timing.Tick = lambda: None,
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._memory = memory
        self._tick = tick
        self._kept: dict[tuple[object, ...], Loaded] = {}
        self._last: set[tuple[object, ...]] = set()

    def load(
        self, job: Job, on_model: Callable[[int, float], None]
    ) -> tuple[dict[int, Loaded], dict[int, Failure]]:
        """The job's models that could be loaded, and why the others could not."""
        keys = {index: _key(model, job.spec) for index, model in job.models.items()}
        loaded = {i: self._kept[key] for i, key in keys.items() if key in self._kept}
        if job.peak_memory:  # it was not asked for when they were loaded
            loaded = {i: model for i, model in loaded.items() if model.peak_rss_bytes is not None}
        self._kept = {}  # what this block lacks makes room for what it brings
        failures: dict[int, Failure] = {}
        fresh = [index for index in keys if index not in loaded]
        for index, session in self._fresh(job, fresh, on_model):
            if isinstance(session, Failure):
                failures[index] = session
            else:
                loaded[index] = session
        if job.loaders > 1:  # what lacked memory may have lacked it for what loaded beside it
            for index in [i for i, f in failures.items() if f.kind is FailureKind.OUT_OF_MEMORY]:
                on_model(index, 1.0)
                session = self._session(job, index)
                if not isinstance(session, Failure):
                    del failures[index]
                    loaded[index] = session
        # Only now: first runs are timed, so nothing may load beside them.
        for index in [i for i, model in loaded.items() if not model.first_run_ns]:
            on_model(index, 1.0)
            started = self._first_run(loaded.pop(index))
            if isinstance(started, Failure):
                failures[index] = started
            else:
                loaded[index] = started
        now = {keys[index] for index in loaded}
        shared = now & self._last
        if shared != now:  # else the same was asked again, and is to be measured afresh
            self._kept = {keys[i]: model for i, model in loaded.items() if keys[i] in shared}
        self._last = now
        return {index: loaded[index] for index in keys if index in loaded}, failures

    def _fresh(
        self, job: Job, indices: Sequence[int], on_model: Callable[[int, float], None]
    ) -> Iterator[tuple[int, Loaded | Failure]]:
        def session(index: int) -> Loaded | Failure:
            return self._session(job, index)

        if job.loaders == 1:
            for position, index in enumerate(indices):
                on_model(index, position / len(indices))  # should it kill the process
                yield index, self._measured(job, index) if job.peak_memory else session(index)
            return
        with ThreadPoolExecutor(job.loaders) as pool:
            for position, found in enumerate(zip(indices, pool.map(session, indices), strict=True)):
                on_model(found[0], position / len(indices))
                yield found

    def load_one(self, job: Job, index: int) -> Loaded | Failure:
        """A model that is measured by itself."""
        if job.peak_memory:
            return self._measured(job, index)
        session = self._session(job, index)
        return session if isinstance(session, Failure) else self._first_run(session)

    def profile(self, job: Job, index: int, between: Callable[[float], None]) -> Profile | None:
        """Where the time of a model goes; None if that cannot be told."""
        model, backend = job.models[index], self._backends[job.spec.provider]
        try:
            return backend.profile(model, job.spec, job.profile_runs, between)
        except Exception:
            return None

    def _measured(self, job: Job, index: int) -> Loaded | Failure:
        """Loaded and run once, with nothing beside it, so that its memory is known."""
        refusal = self._refusal(job, index)
        if refusal is not None:
            return refusal
        self._memory.begin()
        session = self._made(job, index)
        model = session if isinstance(session, Failure) else self._first_run(session)
        if isinstance(model, Failure):
            return model
        return model._replace(peak_rss_bytes=self._memory.peak_bytes())

    def _session(self, job: Job, index: int) -> Loaded | Failure:
        return self._refusal(job, index) or self._made(job, index)

    def _refusal(self, job: Job, index: int) -> Failure | None:
        """Why the runtime is not to see the model."""
        model, limits = job.models[index], job.limits
        if limits is None:
            return None

        def examined() -> Failure | None:
            with mapped(model.path) as data:
                return preflight.examine(data, limits, model.external)

        return _attempted(examined)

    def _made(self, job: Job, index: int) -> Loaded | Failure:
        model, spec = job.models[index], job.spec
        backend = self._backends.get(spec.provider)
        if backend is None:  # it worked when the agent announced it
            text = f"the provider {spec.provider} has stopped working: restart the agent"
            return Failure(FailureKind.CRASH, text)
        start = self._clock()
        made = _attempted(lambda: backend.load(model, spec))
        self._tick()
        return made if isinstance(made, Failure) else Loaded(made, self._clock() - start)

    def _first_run(self, model: Loaded) -> Loaded | Failure:
        from esm_agent.measure.backends import first_run

        start = self._clock()
        failure = _attempted(lambda: first_run(model.model))
        took = max(self._clock() - start, 1)
        self._tick()
        return model._replace(first_run_ns=took) if failure is None else failure


def _key(model: UploadedModel, spec: MeasureSpec) -> tuple[object, ...]:
    """What two models must have in common for one session to serve both."""
    beside = [(place, _content(model.path.parent / place)) for place in sorted(model.external)]
    return (
        _content(model.path),
        tuple(beside),
        model.inputs and _content(model.inputs),
        (model.case.shapes, model.case.threads or spec.threads),
        (spec.seed, spec.provider, spec.tf32, spec.cuda_graph, spec.allow_fallback),
    )


def _content(path: Path) -> object:
    """Tells files of other content apart. What is large comes from the cache, so that the same
    content is the same file, and is not read for it."""
    if not path.is_file():
        return None  # the runtime will say so
    about = path.stat()
    if about.st_size > _LARGE_BYTES:
        return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _attempted(call: Callable[[], T]) -> T | Failure:
    """What the call gives, or the outcome of a model that does not work."""
    from esm_agent.measure.outcomes import outcome

    try:
        return call()
    except Exception as error:
        return outcome(error)


def _of_later_run(error: Exception) -> Failure:
    """The outcome of a model that ran before, and then did not."""
    from esm_agent.measure.outcomes import outcome

    failure = outcome(error)
    return Failure(failure.kind, f"a later run failed: {failure.message}")


class Witness:
    """Asks the device for its state before, about once a second during, and after a block.

    Long blocks are looked at less often, so that a result stays a small message.
    """

    def __init__(self, telemetry: Telemetry, clock: timing.Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._gap_ns = _LOOK_NS
        self._states = [telemetry.state(clock())]

    def look(self) -> None:
        """Called between visits: asks when it is time to."""
        now = self._clock()
        if now - self._states[-1].at_ns < self._gap_ns:
            return
        self._states.append(self._telemetry.state(now, quick=True))
        if len(self._states) > _MAX_LOOKS:
            del self._states[1:-1:2]
            self._gap_ns *= 2

    def note(self) -> None:
        """Ask now: what loading did to counters is told apart from what timing does."""
        self._states.append(self._telemetry.state(self._clock(), quick=True))

    def gpu_clock_mhz(self) -> float | None:
        """Now, where the device tells."""
        gpus = self._telemetry.state(self._clock(), quick=True).gpus
        return gpus[0].clock_mhz if gpus else None

    def states(self, origin_ns: int) -> tuple[DeviceState, ...]:
        """All of them and a last one, their times since ``origin_ns``."""
        self._states.append(self._telemetry.state(self._clock()))
        return tuple(replace(state, at_ns=state.at_ns - origin_ns) for state in self._states)


def main(
    connection: Connection,
    cells: Any,
    make_backend: BackendFactory,
    make_telemetry: TelemetryFactory,
    confinement: Confinement,
    make_others: Sequence[BackendFactory] = (),
) -> None:
    """Takes jobs until the agent hangs up; ``make_others``: backends that need not work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent to handle
    if sys.platform == "linux":
        # A hung native call must not outlive an agent that was killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    isolation = confine(confinement)
    import onnxruntime

    board = Board(cells)
    backends, missing = _backends(make_backend, make_others)
    telemetry = make_telemetry()
    sessions = Sessions(backends, time.perf_counter_ns, PeakMemory(), board.tick)
    runtime = f"onnxruntime {onnxruntime.__version__}"
    connection.send(Hello(runtime, tuple(backends), isolation, missing))
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        board.expect(job)
        result = _measure(sessions, telemetry, job, board)
        connection.send(result)
        if job.profile_runs:
            for profiled in _profiles(sessions, job, result, board):
                connection.send(profiled)


def _backends(
    make_first: BackendFactory, make_others: Sequence[BackendFactory]
) -> tuple[dict[str, Backend], tuple[str, ...]]:
    """By provider those that work, and why others do not."""
    from esm_agent.measure.backends import ProviderMissingError

    made, missing = [make_first()], []
    for make in make_others:
        try:
            made.append(make())
        except ProviderMissingError as error:
            missing.append(str(error))
    return {backend.provider: backend for backend in made}, tuple(missing)


def _measure(sessions: Sessions, telemetry: Telemetry, job: Job, board: Board) -> JobResult:
    """One attempt at a block. A model that fails is left out and the rest is measured."""
    clock = time.perf_counter_ns
    began = clock()
    witness = Witness(telemetry, clock)
    gc.disable()  # no collection inside a timed run
    try:
        measure = _sequential if job.spec.protocol is Protocol.SEQUENTIAL else _interleaved
        measurements, running_ns, origin = measure(sessions, witness, job, board, clock)
    finally:
        gc.enable()
        gc.collect()
    return JobResult(measurements, clock() - began, running_ns, witness.states(origin))


def _profiles(sessions: Sessions, job: Job, result: JobResult, board: Board) -> Iterator[Profiled]:
    """Of every model that has a latency, when all have; sent one by one, should one of them kill
    the process."""
    todo = [i for i in job.models if result.measurements[i].failure is None]
    for position, index in enumerate(todo):

        def between(share: float, index: int = index, position: int = position) -> None:
            board.write_profiling(index, (position + share) / len(todo))

        between(0)
        yield Profiled(index, sessions.profile(job, index, between))


def _interleaved(
    sessions: Sessions, witness: Witness, job: Job, board: Board, clock: timing.Clock
) -> tuple[dict[int, Measurement], int, int]:
    entered = clock()
    loaded, failures = sessions.load(
        job, lambda index, share: board.write(State.PREPARING, index, share)
    )

    def between(index: int, share: float) -> None:
        board.write(State.MEASURING, index, share)
        witness.look()

    def failed(index: int, error: Exception) -> None:
        failures[index] = _of_later_run(error)
        loaded.pop(index, None)

    _settle(loaded, witness, board, clock, failed)
    witness.note()
    origin = clock()
    runs = {index: model.run for index, model in loaded.items()}
    samples = timing.interleaved(
        runs,
        job.spec,
        between,
        clock,
        board.tick,
        {index: model.first_run_ns for index, model in loaded.items()},
        job.limit_s - (origin - entered) / 1e9,
        failed,
    )
    measurements = {}
    for index, model in list(loaded.items()):
        board.write(State.MEASURING, index, 1.0)
        try:
            measurements[index] = _measurement(
                job, index, model, samples[index], origin, board, clock
            )
        except Exception as error:
            failed(index, error)
    measurements |= _failed(job, failures)
    return measurements, sum(s.running_ns for s in samples.values()), origin


def _sequential(
    sessions: Sessions, witness: Witness, job: Job, board: Board, clock: timing.Clock
) -> tuple[dict[int, Measurement], int, int]:
    measurements: dict[int, Measurement] = {}
    running_ns = 0
    origin = clock()
    for position, index in enumerate(job.models):
        board.write(State.MEASURING, index, position / len(job.models))
        witness.look()
        model = sessions.load_one(job, index)
        if isinstance(model, Failure):
            measurements |= _failed(job, {index: model})
        else:
            try:
                _settle({index: model}, witness, board, clock)
                samples = timing.sequential(model.run, job.spec, clock, board.tick)
                measurements[index] = _measurement(job, index, model, samples, origin, board, clock)
                running_ns += samples.running_ns
            except Exception as error:
                measurements |= _failed(job, {index: _of_later_run(error)})
        del model  # before the next one is loaded
    return measurements, running_ns, origin


def _settle(
    loaded: Mapping[int, Loaded],
    witness: Witness,
    board: Board,
    clock: timing.Clock,
    failed: timing.Failed = timing.raised,
) -> None:
    """A GPU raises its clock only once it has work; a CPU's is the doctor's concern.

    Slow models have given it work in their first runs.
    """
    runs = {
        index: model.run
        for index, model in loaded.items()
        if model.device and model.first_run_ns < timing.SETTLE_NS
    }

    def between(index: int, share: float) -> None:
        board.write(State.MEASURING, index, share)

    if runs:
        timing.settle(runs, witness.gpu_clock_mhz, between, clock, failed)


def _measurement(
    job: Job,
    index: int,
    model: Loaded,
    samples: timing.Samples,
    origin: int,
    board: Board,
    clock: timing.Clock,
) -> Measurement:
    """With the copies, which are timed now that all runs are over."""
    name = job.models[index].model_id
    measurement = replace(
        samples.measurement(name, model.load_ns, model.first_run_ns, origin),
        inputs=model.model.feed.inputs,
        peak_rss_bytes=model.peak_rss_bytes if job.peak_memory else None,
    )
    device = model.device
    if device is None:
        return measurement
    return replace(
        measurement,
        copy_in_ns=timing.copies(device.copy_in, clock, board.tick),
        copy_out_ns=timing.copies(device.copy_out, clock, board.tick),
        ran_on=device.ran_on,
        fallback=device.fallback,
    )


def _failed(job: Job, failures: Mapping[int, Failure]) -> dict[int, Measurement]:
    return {
        index: Measurement.failed(job.models[index].model_id, failure.kind, failure.message)
        for index, failure in failures.items()
    }
