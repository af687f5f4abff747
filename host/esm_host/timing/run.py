"""Measurement of a request in blocks, on all devices at the same time."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from esm_host.arguments import argument
from esm_host.errors import DeviceError, EsmError, UsageError
from esm_host.evaluation.verdict import (
    Verdict,
    block_evidence,
    judge_number,
    missing_references_evidence,
    runs_evidence,
    sessions_evidence,
    threads_evidence,
)
from esm_host.timing.energy import has_energy_sensor, missing_energy
from esm_host.timing.request import Entry
from esm_host.timing.result import BlockLatency, DeviceTiming, Result, Timing
from esm_host.timing.spec import SESSIONS
from esm_host.timing.spread import (
    FEWEST,
    block_starts,
    common_usual_latencies,
    join,
    pool,
    pool_evidence,
)
from esm_host.transport.base import OnProgress, Pending, Profiler, ignore
from esm_host.transport.distinct import check_distinct
from esm_host.transport.limits import check_energy, check_models, check_spec, check_threads
from esm_protos.estimates import BlockEstimate, Estimate, estimate_measured
from esm_protos.messages import (
    SLOW_LOAD_NS,
    Block,
    BlockResult,
    DeviceInfo,
    Measurement,
    MeasureSpec,
    Progress,
    RunOrder,
    State,
)
from esm_protos.text import counted

Connect = Callable[[str], Profiler]
OnDeviceProgress = Callable[[str, Progress], None]
"""Function of a device's name and its progress, called from the devices' threads."""
OnWait = Callable[[str, int, int, float], None]
"""Function of a device's name, the blocks done, all blocks, and the seconds until the next one;
called from the devices' threads."""

_CANCEL_S = 5.0
"""Time that a cancelled device has to end, s."""


@dataclass(frozen=True)
class TimingSettings:
    """Settings of a timing besides those of its blocks.

    Attributes:
        profile_runs: Profiled runs of every model.
        wait: Whether to wait for a device in use.
        raw: Whether to report latencies as measured, not at the device's usual pace.
        spread_s: Time over which to spread several blocks, s. The device is free between them.
        energy_s: Time for measuring the energy of each model, s; 0 for none.
    """

    profile_runs: int = 0
    wait: bool = True
    raw: bool = False
    spread_s: float = 0.0
    energy_s: float = 0.0


@dataclass(frozen=True)
class TimingWatcher:
    """Functions that are called during a timing.

    Attributes:
        on_progress: Function called with the progress of each device.
        on_wait: Function called while a device waits for its next block.
        on_interrupt: Function called after the first interrupt.
    """

    on_progress: OnDeviceProgress = lambda device, progress: None
    on_wait: OnWait = lambda device, done, total, seconds: None
    on_interrupt: Callable[[], None] = lambda: None


def time_models(
    connect: Connect,
    devices: Sequence[str],
    request: Sequence[Entry],
    spec: MeasureSpec,
    settings: TimingSettings | None = None,
    watcher: TimingWatcher | None = None,
) -> Timing:
    """Measure the request on every device; if one fails, the others' results are kept.

    An interrupt (KeyboardInterrupt) ends the timing early. The first block keeps its runs so far if
    its models are interleaved; a later block is dropped. A second interrupt is raised.

    Args:
        connect: Function that connects to a device. Each profiler is used from one thread.
        devices: Names of the devices, each once.
        request: Models and their cases.
        spec: Settings of the blocks.
        settings: Further settings; None for the defaults.
        watcher: Functions called during the timing; None for none.

    Raises:
        KeyboardInterrupt: interrupted before anything was measured, or interrupted twice.
        UsageError: a device is given twice or is unknown, or two names lead to one agent.
        EsmError: the only device failed.
    """
    settings, watcher = settings or TimingSettings(), watcher or TimingWatcher()
    if len(set(devices)) < len(devices):
        raise UsageError(f"{argument('device')} {', '.join(devices)}: give each device once")
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    meeting = _Meeting(len(devices))
    count = len(request)
    parts = _by_provider(request, spec)

    def measure(
        thread: _DeviceThread, name: str, profiler: Profiler, measured: list[_Measured], first: bool
    ) -> None:
        """Measure a block on each provider, and append what was measured until an interrupt."""
        profiler.reserve(f"time {counted(count, 'model')}", settings.wait)

        def report(progress: Progress) -> None:
            measuring = progress.state is State.MEASURING
            thread.may_finish = first and measuring and spec.run_order is RunOrder.INTERLEAVED
            watcher.on_progress(name, progress)

        device = profiler.device_info()
        specs = _supported(device, [part.spec for part in parts])
        for part, own in zip(parts, specs, strict=True):
            if measured and thread.stopping.is_set():
                return
            measured.append(
                _measure(
                    profiler,
                    part.entries,
                    own,
                    first,
                    settings.profile_runs if first else 0,
                    settings.energy_s if first and has_energy_sensor(device) else 0.0,
                    settings.raw,
                    report,
                    thread.submitted,
                )
            )

    def time_device(thread: _DeviceThread, name: str) -> DeviceTiming:
        measured: list[_Measured] = []
        starts = block_starts(settings.spread_s)
        began = time.monotonic()
        error: EsmError | None = None
        for number, start in enumerate(starts):
            if number and (left_s := began + start - time.monotonic()) > 0:
                watcher.on_wait(name, number, len(starts), left_s)
                thread.stopping.wait(left_s)
            if measured and thread.stopping.is_set():
                break
            try:
                with thread.connected() as profiler:
                    if not number:
                        meeting.arrive(name, profiler)
                    measure(thread, name, profiler, measured, first=not number)
            except EsmError as caught:
                if measured and thread.stopping.is_set():
                    break
                if number < FEWEST:
                    raise
                error = caught  # the earlier blocks are kept
                break
        timing = _device_timing(name, request, measured, settings.raw)
        if settings.energy_s and timing.info and not has_energy_sensor(timing.info):
            timing = replace(timing, energy_problem=missing_energy(timing.info))
        return replace(timing, error=error, interrupted=thread.stopping.is_set())

    threads = [_DeviceThread(name, connect, time_device, meeting) for name in devices]
    _run_all(threads, watcher.on_interrupt)
    if meeting.refused is not None:
        raise meeting.refused
    check_distinct({name: meeting.devices[name] for name in devices if name in meeting.devices})
    timings = tuple(thread.timing for thread in threads)
    if any(thread.stopping.is_set() for thread in threads) and not any(t.blocks for t in timings):
        raise KeyboardInterrupt
    if len(timings) == 1 and timings[0].error is not None and not timings[0].blocks:
        raise timings[0].error
    return Timing(created_at, spec, timings, settings.raw, settings.spread_s)


def time_block(
    profiler: Profiler,
    request: Sequence[Entry],
    spec: MeasureSpec,
    name: str = "device",
    peak_memory: bool = False,
    profile_runs: int = 0,
    on_progress: OnProgress = ignore,
    on_submit: Callable[[Pending], None] = lambda pending: None,
) -> DeviceTiming:
    """Measure the request in one block on a connected device.

    Args:
        profiler: Connected device.
        request: Models and their cases.
        spec: Settings of the block.
        name: Name of the device in the results.
        peak_memory: Whether to measure the memory of every model.
        profile_runs: Profiled runs of every model.
        on_progress: Function called with the progress of the block.
        on_submit: Function called with the pending block, which any thread may cancel.

    Raises:
        UsageError: the device does not support the settings.
        DeviceError: the device is unreachable or refuses.
    """
    measured = _measure(
        profiler, request, spec, peak_memory, profile_runs, 0.0, False, on_progress, on_submit
    )
    return _device_timing(name, request, [measured], raw=False)


@dataclass(frozen=True)
class _Part:
    """Entries of one execution provider. They are a block of their own.

    So no provider's threads or memory disturb another's models, and the pace of a block is that of
    its provider.
    """

    spec: MeasureSpec
    entries: tuple[Entry, ...]


def _by_provider(request: Sequence[Entry], spec: MeasureSpec) -> list[_Part]:
    entries: dict[MeasureSpec, list[Entry]] = {}
    for entry in request:
        own = spec
        if (execution := entry.execution) is not None:
            own = replace(spec, provider=execution.provider, provider_options=execution.options)
        entries.setdefault(own, []).append(entry)
    return [_Part(own, tuple(found)) for own, found in entries.items()]


def _supported(device: DeviceInfo, specs: Sequence[MeasureSpec]) -> list[MeasureSpec]:
    """Return the specs for a device; of several, those without a fallback allow none.

    Raises:
        UsageError: the device does not support a spec.
    """
    may_fall_back = [device.provider(spec.provider).may_fall_back for spec in specs]
    found = [
        replace(spec, allow_fallback=False) if any(may_fall_back) and not own else spec
        for spec, own in zip(specs, may_fall_back, strict=True)
    ]
    for spec in found:
        check_spec(device, spec)
    return found


@dataclass(frozen=True)
class _Measured:
    """Measured block.

    Attributes:
        entries: Models and their cases, in the block's order.
        spec: Settings of the block.
        info: Facts of the device.
        block: Result of the block.
        began: Approximate time of the first run, by the host's monotonic clock, s.
    """

    entries: Sequence[Entry]
    spec: MeasureSpec
    info: DeviceInfo
    block: BlockResult
    began: float


def _measure(
    profiler: Profiler,
    request: Sequence[Entry],
    spec: MeasureSpec,
    peak_memory: bool,
    profile_runs: int,
    energy_s: float,
    raw: bool,
    on_progress: OnProgress,
    on_submit: Callable[[Pending], None],
) -> _Measured:
    info = profiler.device_info()
    models = tuple(entry.model for entry in request)
    check_spec(info, spec)
    check_threads(info, [entry.model.case.threads for entry in request])
    check_models(info.limits, models, {entry.model.sha256: entry.file.outline for entry in request})
    check_energy(info.limits, spec, energy_s, len(models))
    block = Block(uuid.uuid4().hex, spec, models, peak_memory, profile_runs, energy_s, raw)
    pending = profiler.submit(block)
    began: list[float] = []

    def report(progress: Progress) -> None:
        if progress.state is State.MEASURING and not began:
            began.append(time.monotonic())
        on_progress(progress)

    try:
        on_submit(pending)
        result = pending.result(report)
    finally:
        pending.cancel()
    return _Measured(request, spec, info, result, began[0] if began else time.monotonic())


class _Meeting:
    """Barrier at which all devices wait until each has reported its facts or failed.

    Attributes:
        devices: Facts of the devices, by name.
        refused: Usage error of a device that could not be connected to; None without one.
    """

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self.devices: dict[str, DeviceInfo] = {}
        self.refused: UsageError | None = None

    def arrive(self, name: str, profiler: Profiler) -> None:
        """Wait for the other devices.

        Raises:
            UsageError: two names lead to one agent, or another name is unknown.
        """
        try:
            self.devices[name] = profiler.device_info()
        finally:
            self._barrier.wait()
        if self.refused is not None:
            raise self.refused
        check_distinct(self.devices)

    def miss(self, error: BaseException) -> None:
        """Release the other devices if this one cannot be connected to."""
        if isinstance(error, UsageError):
            self.refused = error
        self._barrier.wait()


class _DeviceThread:
    """Body of the thread that times one device.

    Attributes:
        timing: Timing of the device so far.
        stopping: Event set to end the timing early; no further block begins.
        ended: Event set when :meth:`run` ends.
        may_finish: Whether a block that is ended early still has a result.
        bug: Unexpected exception; None if there was none.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        time_device: Callable[[_DeviceThread, str], DeviceTiming],
        meeting: _Meeting,
    ) -> None:
        self._name = name
        self._connect = connect
        self._time_device = time_device
        self._meeting = meeting
        self._has_connected = False
        self._pending: Pending | None = None
        self.stopping = threading.Event()
        self.ended = threading.Event()
        self.may_finish = False
        self.timing = DeviceTiming(name)
        self.bug: BaseException | None = None

    def measure(self) -> None:
        """Time the device, and record errors of the device or its user."""
        try:
            self.timing = self._time_device(self, self._name)
        except EsmError as error:
            interrupted = self.stopping.is_set()
            why = DeviceError("interrupted before anything was measured") if interrupted else error
            self.timing = DeviceTiming(self._name, error=why, interrupted=interrupted)

    def connected(self) -> Profiler:
        """Connect to the device; on failure, release the other devices."""
        try:
            profiler = self._connect(self._name)
        except BaseException as error:
            if not self._has_connected:
                self._meeting.miss(error)
            raise
        self._has_connected = True
        return profiler

    def run(self) -> None:
        """Run the timing, as the body of a thread."""
        try:
            self.measure()
        except BaseException as error:
            self.bug = error
        finally:
            self.ended.set()

    def end(self) -> None:
        """End the timing early with the results so far; called from another thread."""
        self.stopping.set()
        if self._pending is not None:
            if self.may_finish:
                self._pending.finish()
            else:
                self._pending.cancel()

    def cancel(self) -> None:
        """Cancel the timing; called from another thread."""
        self.stopping.set()
        if self._pending is not None:
            self._pending.cancel()

    def submitted(self, pending: Pending) -> None:
        """Record the pending block, which :meth:`end` and :meth:`cancel` end."""
        self._pending = pending
        self.may_finish = False
        if self.stopping.is_set():
            pending.cancel()


def _run_all(threads: Sequence[_DeviceThread], on_interrupt: Callable[[], None]) -> None:
    """Run all threads until they end or are interrupted twice."""
    for thread in threads:
        threading.Thread(target=thread.run, daemon=True).start()
    try:
        try:
            _wait(threads)
        except KeyboardInterrupt:
            on_interrupt()
            for thread in threads:
                thread.end()
            _wait(threads)
    except KeyboardInterrupt:
        for thread in threads:
            thread.cancel()
        for thread in threads:
            thread.ended.wait(_CANCEL_S)
        raise
    for thread in threads:
        if thread.bug is not None:
            raise thread.bug


def _wait(threads: Sequence[_DeviceThread]) -> None:
    """Wait until all threads have ended.

    They are not joined: CPython before 3.13 takes a thread for stopped once its join was
    interrupted.
    """
    for thread in threads:
        thread.ended.wait()


def _device_timing(
    name: str, request: Sequence[Entry], measured: Sequence[_Measured], raw: bool
) -> DeviceTiming:
    origin = measured[0].began
    found: dict[str, Result] = {}
    for provider in dict.fromkeys(each.spec.provider for each in measured):
        own = [each for each in measured if each.spec.provider == provider]
        found |= {result.name: result for result in _results(name, own, origin, raw)}
    return DeviceTiming(
        name,
        tuple(found[id_] for entry in request if (id_ := entry.model.model_id) in found),
        measured[0].info,
        tuple(each.block for each in measured),
        tuple(each.began - origin for each in measured),
        providers=tuple(each.spec.provider for each in measured),
    )


def _results(
    name: str, measured: Sequence[_Measured], origin: float, raw: bool
) -> tuple[Result, ...]:
    """Return the results of the blocks of one provider.

    Args:
        name: Name of the device.
        measured: Blocks, in time order.
        origin: Start of the device's first block, by the host's monotonic clock, s.
        raw: Whether latencies are as measured.
    """
    request, spec, info = measured[0].entries, measured[0].spec, measured[0].info
    blocks = [each.block for each in measured]
    starts_s = [each.began - origin for each in measured]
    usual = common_usual_latencies(blocks)
    estimated = []
    evidence: list[list[tuple[Verdict, str]]] = []
    for block in blocks:
        ran = [m for m in block.measurements if m.failure is None]
        estimate = estimate_measured(ran, spec, block.references, usual)
        ids = (m.model_id for m in ran)
        estimated.append((estimate, dict(zip(ids, estimate.models, strict=True))))
        missing = spec.references and not (block.references or raw)
        evidence.append(
            [
                *block_evidence(block.states, estimate.slowdown),
                *missing_references_evidence(missing, block.references_problem),
            ]
        )
    starts_ns = [round(1e9 * start_s) for start_s in starts_s]
    slowdowns = [block.slowdown for block, _ in estimated]
    provider = info.provider(spec.provider)
    results = []
    for number, entry in enumerate(request):
        measurements = [block.measurements[number] for block in blocks]
        measurement = join(measurements, starts_ns, info.metrics)
        if measurement.failure is not None:
            results.append(Result(name, spec, entry, measurement, None, None, provider=provider))
            continue
        latencies = tuple(
            _latency(own, *each, raw) for own, each in zip(measurements, estimated, strict=True)
        )
        pooled = pool([each.estimate for each in latencies])
        runs = [each.latency_ns for each in measurements]
        threads = entry.model.case.threads or spec.threads
        threads = 1 if provider.chooses_threads else threads
        threads = max(threads, spec.session.inter_op)
        slow_s = _slow_load_s(measurements) if spec.sessions > 1 else 0.0
        judgement = judge_number(
            pooled.interval,
            spec.precision,
            [
                *pool_evidence(evidence),
                *runs_evidence(zip(runs, slowdowns, strict=True), spec.trim),
                *threads_evidence(threads, info.processors),
                *sessions_evidence(spec.sessions if spec.sessions > SESSIONS else 1, slow_s),
            ],
            pooled.parts,
            pooled.shift,
            next((block.history_problem for block in blocks if block.history_problem), ""),
            all(len(each.latency_ns) >= spec.runs for each in measurements),
            slow_load=slow_s > 0,
        )
        results.append(
            Result(name, spec, entry, measurement, pooled, judgement, latencies, provider)
        )
    return tuple(results)


def _slow_load_s(measurements: Sequence[Measurement]) -> float:
    """Return the time to load a model and run it once, s; 0 if it had more sessions in a block."""
    found = (m.load_ns + m.first_run_ns for m in measurements if len(m.session_runs) < 2)
    slowest = max(found, default=0)
    return slowest / 1e9 if slowest > SLOW_LOAD_NS else 0.0


def _latency(
    measured: Measurement, block: BlockEstimate, models: Mapping[str, Estimate], raw: bool
) -> BlockLatency:
    estimate = models[measured.model_id]
    return BlockLatency(measured, estimate.in_block if raw else estimate, block.paces)
