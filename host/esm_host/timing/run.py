"""Measuring a request: one interleaved block on each device, all devices at the same time."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from esm_host.arguments import argument
from esm_host.errors import EsmError, UsageError
from esm_host.evaluation.verdict import block_evidence, judge_number, threads_evidence
from esm_host.limits import check_models, check_spec
from esm_host.timing.request import Entry
from esm_host.timing.result import DeviceTiming, Result, Timing
from esm_host.transport.base import OnProgress, Pending, Profiler, ignore
from esm_host.transport.distinct import check_distinct
from esm_protos.estimates import estimate_measured
from esm_protos.messages import Block, BlockResult, DeviceInfo, MeasureSpec, Progress

Connect = Callable[[str], Profiler]
OnDeviceProgress = Callable[[str, Progress], None]
"""Told the device's name; called from threads of the devices'."""

_LET_GO_S = 5.0


def time_models(
    connect: Connect,
    devices: Sequence[str],
    request: Sequence[Entry],
    spec: MeasureSpec,
    peak_memory: bool = True,
    profile_runs: int = 0,
    wait: bool = True,
    on_progress: OnDeviceProgress = lambda device, progress: None,
) -> Timing:
    """Measures the request on every device; one that fails does not lose the others' results.

    Args:
        connect: makes a device's profiler, which is used from one thread.
        devices: their names, each once.
        peak_memory: ask how much memory every model takes.
        profile_runs: profile every model for so many runs.
        wait: False gives up on a device that somebody else uses.

    Raises:
        UsageError: a device is given twice, or two names lead to one agent.
        EsmError: the only device failed.
    """
    if len(set(devices)) < len(devices):
        raise UsageError(f"{argument('device')} {', '.join(devices)}: give each device once")
    created_at = datetime.now(UTC).isoformat(timespec="seconds")

    met = _Meeting(len(devices))

    def measure(profiler: Profiler, name: str, **others: Any) -> DeviceTiming:
        count = len(request)
        profiler.reserve(f"time {count} model{'s' * (count != 1)}", wait)
        told = partial(on_progress, name)
        return time_block(profiler, request, spec, name, peak_memory, profile_runs, told, **others)

    turns = [_Turn(name, connect, measure, met) for name in devices]
    if len(turns) == 1:
        turns[0].measure()
    else:
        _together(turns)
        check_distinct({name: met.devices[name] for name in devices if name in met.devices})
    timings = tuple(turn.timing for turn in turns)
    if len(timings) == 1 and timings[0].error is not None:
        raise timings[0].error
    return Timing(created_at, spec, timings)


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
    """Measures the request on a device that one is connected to.

    Args:
        name: of the device, in the results.
        on_submit: given what cancels the block, also from another thread.

    Raises:
        UsageError: the device cannot do what is asked.
        DeviceError: it is gone or refuses.
    """
    info = profiler.device_info()
    models = tuple(entry.model for entry in request)
    check_spec(info, spec)
    check_models(info.limits, models, {entry.model.sha256: entry.file.outline for entry in request})
    pending = profiler.submit(Block(uuid.uuid4().hex, spec, models, peak_memory, profile_runs))
    try:
        on_submit(pending)
        result = pending.result(on_progress)
    finally:
        pending.cancel()
    results = _results(name, request, spec, result, info.processors)
    return DeviceTiming(name, results, info, result)


class _Meeting:
    """Point where all devices wait until each has told what it is, or has failed.

    Attributes:
        devices: what they told, by name.
    """

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self.devices: dict[str, DeviceInfo] = {}

    def arrive(self, name: str, profiler: Profiler) -> None:
        """Wait for the others; raise UsageError if two are the same agent."""
        try:
            self.devices[name] = profiler.device_info()
        finally:
            self._barrier.wait()
        check_distinct(self.devices)

    def miss(self) -> None:
        """Let the others go on without a device that cannot be connected to."""
        self._barrier.wait()


class _Turn:
    """One device's part; ``timing`` is what became of it."""

    def __init__(
        self,
        name: str,
        connect: Connect,
        measure: Callable[..., DeviceTiming],
        meeting: _Meeting,
    ) -> None:
        self._name = name
        self._connect = connect
        self._measure = measure
        self._meeting = meeting
        self._pending: Pending | None = None
        self._unwanted = False
        self.timing = DeviceTiming(name)
        self.bug: BaseException | None = None

    def measure(self) -> None:
        """Catches what a device or its user is to blame for."""
        try:
            try:
                connected = self._connect(self._name)
            except BaseException:
                self._meeting.miss()
                raise
            with connected as profiler:
                self._meeting.arrive(self._name, profiler)
                self.timing = self._measure(profiler, name=self._name, on_submit=self._submitted)
        except EsmError as error:
            self.timing = DeviceTiming(self._name, error=error)

    def run(self) -> None:
        """As the body of a thread."""
        try:
            self.measure()
        except BaseException as error:
            self.bug = error

    def cancel(self) -> None:
        """From another thread."""
        self._unwanted = True
        if self._pending is not None:
            self._pending.cancel()

    def _submitted(self, pending: Pending) -> None:
        self._pending = pending
        if self._unwanted:
            pending.cancel()


def _together(turns: Sequence[_Turn]) -> None:
    threads = [threading.Thread(target=turn.run, daemon=True) for turn in turns]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for turn in turns:
            turn.cancel()
        for thread in threads:
            thread.join(_LET_GO_S)
        raise
    for turn in turns:
        if turn.bug is not None:
            raise turn.bug


def _results(
    name: str,
    request: Sequence[Entry],
    spec: MeasureSpec,
    result: BlockResult,
    processors: float,
) -> tuple[Result, ...]:
    measured = [m for m in result.measurements if m.failure is None]
    block = estimate_measured(measured, spec, result.references, result.usual)
    estimates = dict(zip((m.model_id for m in measured), block.models, strict=True))
    evidence = block_evidence(result.states, block.slowdown)
    results = []
    for entry, measurement in zip(request, result.measurements, strict=True):
        estimate = estimates.get(measurement.model_id)
        judgement = None
        if estimate is not None:
            threads = entry.model.case.threads or spec.threads
            found = [*evidence, *threads_evidence(threads, processors)]
            judgement = judge_number(estimate.interval, spec.precision, found)
        results.append(Result(name, spec, entry, measurement, estimate, judgement))
    return tuple(results)
