"""Measuring process: receives jobs, loads models, times them and records the device's state.

:mod:`~.worker` spawns the process and keeps it from block to block. The process writes its progress
to shared memory, which does not disturb the measurement.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from esm_agent.device.telemetry import Telemetry
from esm_agent.energy.find import Sources, find_sources, load_meters
from esm_agent.measure import timing
from esm_agent.measure.energy import ModelEnergy, measure_energy
from esm_agent.measure.memory import PeakMemory
from esm_agent.measure.references import ReferenceVisits
from esm_agent.measure.sandbox import Confinement, confine
from esm_agent.measure.sessions import Job, Loaded, Sessions, failure_of_later_run
from esm_agent.measure.sources import MetricSource, VisitMetrics, load_sources
from esm_agent.operation import logs
from esm_protos.estimates import Estimate, estimate_block
from esm_protos.messages import (
    SLOW_LOAD_NS,
    DeviceState,
    EnergySensor,
    Failure,
    Finding,
    Measurement,
    Profile,
    RunOrder,
    State,
)
from esm_protos.metrics import ENERGY, PEAK_MEMORY, Metric
from esm_protos.plugins import PluginError
from esm_protos.providers import ProviderInfo

if TYPE_CHECKING:
    from esm_agent.measure.backends import Backend

STATES = (State.PREPARING, State.MEASURING)
_PR_SET_PDEATHSIG = 1
_LOOK_NS = 1_000_000_000
_MAX_LOOKS = 100
CELLS = 6
CURRENT, TICKS, FINISH, LOADING = 1, 3, 4, 5
"""Number of cells of the shared page; indices of its current model (or provider that is tried), of
its ticks, of its request for an early end, and of the number of models that are loading now."""
REFERENCES = -1
"""Index of the reference models in the board's cell of the current model."""
NOTHING = -1
"""Index in that cell before the first job while no provider is tried."""

BackendFactory = Callable[[], Any]
"""Factory of a :class:`~esm_agent.measure.backends.Backend` in the process; importable by name."""


class Candidate(NamedTuple):
    """Execution provider that was found on the device.

    Attributes:
        info: What is known of it before it is tried.
        make: Factory of its backend.
    """

    info: ProviderInfo
    make: BackendFactory


Finder = Callable[[], Sequence[Candidate]]
"""Finder of execution providers in the process; importable by name. It always finds the same."""

TelemetryFactory = Callable[[], Any]
"""Factory of a :class:`~esm_agent.device.telemetry.Telemetry`, also importable by name."""


class Hello(NamedTuple):
    """First message of the process.

    Attributes:
        runtime: Name and version of the runtime.
        providers: Execution providers that work.
        isolation: Names of the mechanisms that confine the process.
        missing: Reason for each missing provider, by the index of its factory in ``make_others``.
        unusable: Execution providers that were found and do not work.
        findings: Findings of the doctor about the providers and the energy sensors.
        gpu: Whether a provider runs on a GPU.
        metrics: Metrics of the sources.
        energy_sensors: Sensors of energy that were looked for.
    """

    runtime: str
    providers: tuple[ProviderInfo, ...]
    isolation: tuple[str, ...] = ()
    missing: Mapping[int, str] = {}
    unusable: tuple[ProviderInfo, ...] = ()
    findings: tuple[Finding, ...] = ()
    gpu: bool = False
    metrics: tuple[Metric, ...] = ()
    energy_sensors: tuple[EnergySensor, ...] = ()


class Refusal(NamedTuple):
    """Reason why the process cannot measure; sent before it ends."""

    text: str


class JobResult(NamedTuple):
    """Result of a job. With ``profile_runs``, a :class:`Profiled` follows for every timed model.

    With ``energy_s``, :class:`Energies` follow at the end.
    """

    measurements: dict[int, Measurement]
    running_ns: int
    busy_ns: int = 0
    states: tuple[DeviceState, ...] = ()
    references: tuple[Measurement, ...] = ()
    references_problem: str = ""

    def timed(self, job: Job) -> list[int]:
        """Return the job's models that were timed, by index."""
        return [index for index in job.models if self.measurements[index].failure is None]


class Profiled(NamedTuple):
    """Profile of a model; None if the runtime gave none, which does not affect the latency."""

    model: int
    profile: Profile | None


class Energies(NamedTuple):
    """Energy of each timed model, by index."""

    models: dict[int, ModelEnergy]


class Board:
    """Shared page of progress.

    Its cells: state, current model, share done (per million), number of ticks, early end requested,
    number of models that are loading.
    """

    def __init__(self, cells: Any) -> None:
        self.cells = cells
        self._timing = 1.0
        self._lock = threading.Lock()  # models load in several threads
        self._energy = 0.0

    def try_provider(self, place: int) -> None:
        """Show the provider that is tried, by its index, or :data:`NOTHING`."""
        self.cells[CURRENT] = place
        self.tick()

    def expect(self, job: Job) -> None:
        """Start a job: set the shares of timing and of energy in its measuring."""
        energy_s = job.energy_s * len(job.models)
        self._energy = energy_s and energy_s / (energy_s + (job.spec.max_block_s or energy_s))
        before = 1 - self._energy
        self._timing = before * job.spec.runs / (job.spec.runs + job.profile_runs)

    def write(self, state: State, model: int, fraction: float) -> None:
        """Write the progress of loading or timing."""
        self._write(state, model, fraction * (self._timing if state is State.MEASURING else 1))

    def write_profiling(self, model: int, fraction: float) -> None:
        """Write the progress of profiling."""
        share = 1 - self._energy - self._timing
        self._write(State.MEASURING, model, self._timing + fraction * share)

    def write_energy(self, model: int, fraction: float) -> None:
        """Write the progress of measuring energy."""
        self._write(State.MEASURING, model, 1 - self._energy * (1 - fraction))

    @contextmanager
    def references(self) -> Iterator[None]:
        """Show the reference models as the current model within the context."""
        model = self.cells[CURRENT]
        self.cells[CURRENT] = REFERENCES
        self.tick()
        try:
            yield
        finally:
            self.cells[CURRENT] = model
            self.tick()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Show one more model as loading within the context; loading has a time-out of its own."""
        self._count_loading(1)
        try:
            yield
        finally:
            self._count_loading(-1)

    def _count_loading(self, more: int) -> None:
        with self._lock:
            self.cells[LOADING] += more
        self.tick()

    def tick(self) -> None:
        """Restart the time-out."""
        self.cells[TICKS] += 1

    def finish_requested(self) -> bool:
        """Return whether the job should end with the runs so far."""
        return bool(self.cells[FINISH])

    def _write(self, state: State, model: int, fraction: float) -> None:
        self.cells[0] = STATES.index(state)
        self.cells[CURRENT] = model
        self.cells[2] = round(fraction * 1_000_000)
        self.tick()


class Witness:
    """Recorder of the device's state before, about once a second during, and after a block.

    Long blocks are sampled less often, so that the result stays small.
    """

    def __init__(self, telemetry: Telemetry, clock: timing.Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._gap_ns = _LOOK_NS
        self._states = [telemetry.state(clock())]

    def look(self) -> None:
        """Record the state if it is time; called between visits."""
        now = self._clock()
        if now - self._states[-1].at_ns < self._gap_ns:
            return
        self._states.append(self._telemetry.state(now, quick=True))
        if len(self._states) > _MAX_LOOKS:
            del self._states[1:-1:2]
            self._gap_ns *= 2

    def note(self) -> None:
        """Record the state now, to separate the counters of loading from those of timing."""
        self._states.append(self._telemetry.state(self._clock(), quick=True))

    def gpu_clock_mhz(self) -> float | None:
        """Return the current clock of the first GPU, MHz; None if unknown."""
        gpus = self._telemetry.state(self._clock(), quick=True).gpus
        return gpus[0].clock_mhz if gpus else None

    def states(self, origin_ns: int) -> tuple[DeviceState, ...]:
        """Record a last state and return all of them, with times since ``origin_ns``."""
        self._states.append(self._telemetry.state(self._clock()))
        return tuple(replace(state, at_ns=state.at_ns - origin_ns) for state in self._states)


def main(
    connection: Connection,
    cells: Any,
    make_backend: BackendFactory,
    make_telemetry: TelemetryFactory,
    confinement: Confinement,
    make_others: Sequence[BackendFactory] = (),
    metrics: Sequence[str] = (),
    find: Finder | None = None,
    skipped: Mapping[int, str] | None = None,
    meters: Sequence[str] = (),
    calibration: Path | None = None,
    json_log: bool = False,
) -> None:
    """Process jobs until the agent closes the connection.

    Args:
        connection: Connection to the agent.
        cells: Cells of the shared page.
        make_backend: Factory of the backend that must work.
        make_telemetry: Factory of the telemetry.
        confinement: Confinement of this process.
        make_others: Factories of optional backends.
        metrics: Names of metric sources.
        find: Finder of more optional backends.
        skipped: Reason not to try a provider, by its index: those of ``make_others``, then those
            that ``find`` finds.
        meters: Names of the user's energy meters.
        calibration: File with the calibration of a Raspberry Pi's PMIC.
        json_log: Whether the lines of the log are JSON.
    """
    logs.configure_child(json_log)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the agent to handle
    with suppress(OSError):
        os.dup2(2, 1)  # stdout carries the agent's address, and native libraries write to it
    if sys.platform == "linux":
        # A hung native call must not outlive a killed agent.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        sources = load_sources(metrics)
        own_meters, broken_meters = load_meters(meters)
    except PluginError as error:
        connection.send(Refusal(str(error)))
        return
    isolation = confine(confinement)
    import numpy.random  # noqa: F401  later it would count as memory of the first model
    import onnxruntime

    from esm_agent.measure.backends import failure_of

    board = Board(cells)
    backends, missing, found, unusable = _backends(
        make_backend, make_others, find, skipped or {}, board
    )
    telemetry = make_telemetry()
    energy = find_sources(
        telemetry, own_meters, calibration=calibration, broken_meters=broken_meters
    )
    sessions = Sessions(backends, time.perf_counter_ns, PeakMemory(), board.tick, board.loading)
    runtime = f"onnxruntime {onnxruntime.__version__}"
    gpu = any(backend.gpu for backend in backends.values())
    state = telemetry.state(0, quick=True) if gpu else DeviceState(0)
    infos: list[ProviderInfo] = []
    findings: list[Finding] = []
    for name, backend in list(backends.items()):
        try:
            info = backend.info(state)
            info.check()
            findings += backend.findings()
        except Exception as error:  # anything that a user's provider may do
            problem = failure_of(backend, error)
            if name not in found:
                connection.send(Refusal(problem))
                return
            del backends[name]
            unusable.append(replace(found[name], problem=problem))
        else:
            infos.append(info)
    findings.append(energy.finding)
    told = [metric for source in sources for metric in source.metrics]
    if energy.working:
        taken = {metric.key for metric in told}
        told += [metric for metric in ENERGY if metric.key not in taken]
    connection.send(
        Hello(
            runtime,
            tuple(infos),
            isolation,
            missing,
            tuple(unusable),
            tuple(findings),
            gpu,
            tuple(told),
            energy.sensors,
        )
    )
    while True:
        try:
            job: Job = connection.recv()
        except EOFError:
            return
        ends = time.monotonic() + job.limit_s
        board.expect(job)
        result = _measure(sessions, telemetry, job, board, sources)
        connection.send(result)
        if job.profile_runs:
            for profiled in _profiles(sessions, job, result, board):
                connection.send(profiled)
        if job.energy_s:
            on_gpu = backends[job.spec.provider].gpu if job.spec.provider in backends else False
            left_s = ends - time.monotonic()
            connection.send(_energies(sessions, job, result, board, energy, on_gpu, left_s))


def _backends(
    make_first: BackendFactory,
    make_others: Sequence[BackendFactory],
    find: Finder | None,
    skipped: Mapping[int, str],
    board: Board,
) -> tuple[dict[str, Backend], dict[int, str], dict[str, ProviderInfo], list[ProviderInfo]]:
    """Return the working backends by name, and those that do not work.

    Returns:
        The backends; the reason for each missing one of ``make_others``, by index; what ``find``
        knew of each backend that it found, by name; the found ones that do not work.
    """
    from esm_agent.errors import ProviderMissingError

    first: Backend = make_first()
    made = {first.name: first}
    missing: dict[int, str] = {}
    found: dict[str, ProviderInfo] = {}
    unusable = []

    def attempt(place: int, make: BackendFactory, name: str = "") -> str:
        board.try_provider(place)
        if place in skipped:
            raise ProviderMissingError(skipped[place])
        taken = "there is already a provider '{}': choose another name"
        if name in made:
            raise ProviderMissingError(taken.format(name))
        backend: Backend = make()
        if backend.name in made:
            raise ProviderMissingError(taken.format(backend.name))
        made[backend.name] = backend
        return backend.name

    for place, make in enumerate(make_others):
        try:
            attempt(place, make)
        except ProviderMissingError as error:
            missing[place] = str(error)
    board.try_provider(NOTHING)
    for place, (info, make) in enumerate(find() if find else (), start=len(make_others)):
        try:
            found[attempt(place, make, info.name)] = info
        except ProviderMissingError as error:
            unusable.append(replace(info, problem=error.problem))
    board.try_provider(NOTHING)
    return made, missing, found, unusable


def _measure(
    sessions: Sessions,
    telemetry: Telemetry,
    job: Job,
    board: Board,
    sources: Sequence[MetricSource],
    clock: timing.Clock = time.perf_counter_ns,
) -> JobResult:
    """Measure a block once; a model that fails is left out."""
    began = clock()
    visits = VisitMetrics(sources, board.tick)
    witness = Witness(telemetry, clock)
    gc.disable()  # no collection inside a timed run
    try:
        measure = _sequential if job.spec.run_order is RunOrder.SEQUENTIAL else _interleaved
        result, origin = measure(sessions, witness, job, board, clock, visits)
    finally:
        gc.enable()
        gc.collect()
    for index, measurement in result.measurements.items():
        if measurement.failure is None:
            metrics = {**measurement.metrics, **visits.values(index)}
            result.measurements[index] = replace(
                measurement, metrics=metrics, threads_used=visits.threads_used(index)
            )
    states = witness.states(origin)
    return result._replace(busy_ns=clock() - began, states=states)


def _profiles(sessions: Sessions, job: Job, result: JobResult, board: Board) -> Iterator[Profiled]:
    """Yield the profile of every timed model, one by one: profiling may kill the process."""
    todo = result.timed(job)
    for position, index in enumerate(todo):

        def between(share: float, index: int = index, position: int = position) -> None:
            board.write_profiling(index, (position + share) / len(todo))

        between(0)
        yield Profiled(
            index, None if board.finish_requested() else sessions.profile(job, index, between)
        )


def _energies(
    sessions: Sessions,
    job: Job,
    result: JobResult,
    board: Board,
    sources: Sources,
    on_gpu: bool,
    limit_s: float,
) -> Energies:
    """Return the energy of every timed model."""
    return Energies(
        measure_energy(
            sessions,
            job,
            result.timed(job),
            sources,
            on_gpu,
            board.write_energy,
            board.tick,
            board.finish_requested,
            limit_s,
        )
    )


def _interleaved(
    sessions: Sessions,
    witness: Witness,
    job: Job,
    board: Board,
    clock: timing.Clock,
    visits: VisitMetrics,
) -> tuple[JobResult, int]:
    """Measure models in turn.

    Returns:
        The result without ``busy_ns`` and ``states``, and the clock at the first run.
    """
    entered = clock()
    loaded, failures = sessions.load(
        job, lambda index, share: board.write(State.PREPARING, index, share)
    )
    with board.references():
        references = sessions.references(job)

    def failed(index: int, error: Exception) -> None:
        failures[index] = failure_of_later_run(error)
        loaded.pop(index, None)

    def between(index: int, share: float) -> bool:
        visits.end()
        board.write(State.MEASURING, index, share)
        witness.look()
        with board.references():
            cold = company.visit()
        visits.begin(index)
        return cold

    def estimates(taken: Mapping[int, timing.Samples]) -> dict[int, Estimate]:
        visits.end()
        return _estimates(taken, loaded, company, references, job)

    def renew(samples: dict[int, timing.Samples], share: float) -> None:
        visits.end()
        for index in list(samples):
            board.write(State.MEASURING, index, share)
            if loaded[index].load_ns + loaded[index].first_run_ns > SLOW_LOAD_NS:
                continue
            del runs[index]
            failure = sessions.renew(job, index, loaded)
            if failure is None:
                runs[index] = loaded[index].run
                samples[index].begin_session()
            else:
                failures[index] = failure
                del samples[index]

    _settle(loaded, witness, board, clock, failed)
    witness.note()
    origin = clock()
    company = ReferenceVisits(
        {name: each.run for name, each in references.items()},
        clock,
        board.tick,
        {name: each.first_run_ns for name, each in references.items()},
        job.spec.seed,
    )
    runs = {index: model.run for index, model in loaded.items()}
    samples = timing.interleaved(
        runs,
        job.spec,
        between,
        clock,
        visits.tick,
        {index: model.first_run_ns for index, model in loaded.items()},
        job.limit_s - (clock() - entered) / 1e9,
        failed,
        estimates,
        renew,
        board.finish_requested,
    )
    visits.end()
    with board.references():  # the other half of the remaining time is for the results
        company.complete((job.limit_s - (clock() - entered) / 1e9) / 2)
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
    taken = [*samples.values(), *company.samples.values()]
    told = _reference_measurements(company, references, origin)
    references_problem = sessions.references_problem or "their runs failed"
    result = JobResult(
        measurements,
        sum(each.running_ns for each in taken),
        references=told,
        references_problem="" if told or not job.references else references_problem,
    )
    return result, origin


def _reference_measurements(
    company: ReferenceVisits, references: Mapping[str, Loaded], origin: int
) -> tuple[Measurement, ...]:
    """Return the measurements of the reference models."""
    found = []
    for name, samples in company.samples.items():
        model = references[name]
        if samples.latency_ns:
            measured = samples.measurement(name, model.load_ns, model.first_run_ns, origin)
            found.append(replace(measured, weight_bytes=model.weight_bytes))
    return tuple(found)


def _estimates(
    taken: Mapping[int, timing.Samples],
    loaded: Mapping[int, Loaded],
    company: ReferenceVisits,
    references: Mapping[str, Loaded],
    job: Job,
) -> dict[int, Estimate]:
    """Return the estimates from the runs so far."""
    block = estimate_block(
        [each.as_runs(loaded[index].weight_bytes) for index, each in taken.items()],
        job.spec.trim,
        common_pace=True,
        references=[
            each.as_runs(references[name].weight_bytes, name)
            for name, each in company.samples.items()
            if each.latency_ns
        ],
        usual=job.usual,
    )
    models = (each.in_block if job.raw else each for each in block.models)
    return dict(zip(taken, models, strict=True))


def _sequential(
    sessions: Sessions,
    witness: Witness,
    job: Job,
    board: Board,
    clock: timing.Clock,
    visits: VisitMetrics,
) -> tuple[JobResult, int]:
    """Measure models one after the other; returns as :func:`_interleaved`."""
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
                visits.begin(index)
                samples = timing.sequential(model.run, job.spec, clock, visits.tick)
                visits.end()
                measurements[index] = _measurement(job, index, model, samples, origin, board, clock)
                running_ns += samples.running_ns
            except Exception as error:
                measurements |= _failed(job, {index: failure_of_later_run(error)})
        del model  # before the next one is loaded
    return JobResult(measurements, running_ns), origin


def _settle(
    loaded: Mapping[int, Loaded],
    witness: Witness,
    board: Board,
    clock: timing.Clock,
    failed: timing.Failed = timing.raise_error,
) -> None:
    """Run models on GPUs until the clock has settled; a GPU raises its clock under load.

    Slow models have already loaded the GPU in their first run. The doctor checks CPU clocks.
    """
    runs = {
        index: model.run
        for index, model in loaded.items()
        if model.model.settles and model.first_run_ns < timing.SETTLE_NS
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
    """Return the measurement of a model; times its copies, now that all runs are over."""
    name = job.models[index].model_id
    peak = model.peak_rss_bytes if job.peak_memory else None
    measurement = replace(
        samples.measurement(name, model.load_ns, model.first_run_ns, origin),
        inputs=model.model.feed.inputs,
        metrics={} if peak is None else {PEAK_MEMORY.key: peak},
        weight_bytes=model.weight_bytes,
        ran_on=model.model.ran_on,
        fallback=model.model.fallback,
        compiled=model.model.compiled,
    )
    device = model.device
    if device is None:
        return measurement
    return replace(
        measurement,
        copy_in_ns=timing.copies(device.copy_in, clock, board.tick),
        copy_out_ns=timing.copies(device.copy_out, clock, board.tick),
    )


def _failed(job: Job, failures: Mapping[int, Failure]) -> dict[int, Measurement]:
    return {
        index: Measurement.failed(job.models[index].model_id, failure.kind, failure.message)
        for index, failure in failures.items()
    }
