"""Simulated device for tests and dry runs: latencies come from a function.

The function gives the true latency at the usual pace. Pace, memory and sessions vary around it as
on real devices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from esm_host.errors import DeviceError, InvalidRequestError
from esm_host.transport.base import OnProgress, Pending, Profiler, busy, ignore
from esm_protos.messages import (
    PROTOCOL_VERSION,
    Block,
    BlockResult,
    DeviceInfo,
    DeviceState,
    Diagnosis,
    Energy,
    EnergySensor,
    Failure,
    Finding,
    Holder,
    Input,
    Limits,
    Measurement,
    Model,
    NodeTime,
    OperatorTime,
    Profile,
    Progress,
    RunOrder,
    Severity,
    Standing,
    State,
    UsualLatencies,
)
from esm_protos.metrics import ENERGY, PEAK_MEMORY
from esm_protos.paces import usual_latencies
from esm_protos.providers import OptionError, ProviderInfo

Latency = Callable[[Model], float | Failure]
"""Function from a model to its latency, ms, or its failure."""


@dataclass(frozen=True)
class Reference:
    """Reference model of the agent, with its latency on a virtual machine."""

    name: str
    weight_bytes: int
    latency_ms: float


REFERENCES = (
    Reference("arithmetic", 443_136, 1.49),
    Reference("beyond", 67_125_248, 2.98),
    Reference("large", 16_785_408, 0.273),
    Reference("middle", 7_080_960, 0.467),
)
_CPU = "CPUExecutionProvider"
_REFERENCE_RUNS, _REFERENCE_RUNS_PER_VISIT = 32, 4
_MOMENT_S = 300.0
_LONG_PAST = 1000
"""Maximum number of remembered blocks, as in an agent."""
_CACHED_BYTES, _UNCACHED_BYTES = 1e6, 64e6
"""Weight sizes below which memory has no effect and above which it has its full effect."""
_BYTES_PER_NS = 20.0
_NET_W, _IDLE_W = 5.0, 3.0
"""Power that inferences add, and power of the idle device."""
_HALF = 0.2
"""Share of an inference spent reading weights at which memory has half of its effect."""

_HEALTHY = Diagnosis((Finding("pace", Severity.OK, "a fake device never varies"),))


class FakeProfiler(Profiler):
    """Profiler that answers at once; equal blocks give equal results.

    Args:
        latency: Latency of each model.
        pace: Factor on all latencies of a block, by the number of earlier blocks.
        noise: Standard deviation of the relative error of a run.
        hostname: Name of the device.
        memory_bytes: Reported free memory; None reports none.
        diagnosis: Result of the doctor.
        holder: Another holder of the device; None if it is free.
        cache_bytes: Size of the cache; 0 accepts no files.
        memory_pace: Factor of memory by the number of earlier blocks. Its effect grows with the
            size of the weights.
        weight_bytes: Size of a model's weights.
        past: Number of remembered blocks before the first, numbered -past to -1. None: many
            blocks, all at the usual pace.
        session_spread: Relative standard deviation between the sessions of a model.
        references: Reference models of the agent; older agents have none.
        providers: Execution providers. Those that may fall back have their own memory.
        session_settings: Whether it knows settings of sessions; older agents do not.
        energy_sensors: Sensors of energy that it looked for; older agents have none.
    """

    def __init__(
        self,
        latency: Latency,
        pace: Callable[[int], float] = lambda number: 1.0,
        noise: float = 0.0,
        hostname: str = "fake",
        memory_bytes: int | None = None,
        diagnosis: Diagnosis = _HEALTHY,
        holder: Holder | None = None,
        cache_bytes: int = 1 << 40,
        memory_pace: Callable[[int], float] = lambda number: 1.0,
        weight_bytes: Callable[[Model], int] = lambda model: 0,
        past: int | None = None,
        session_spread: float = 0.0,
        references: Sequence[Reference] = REFERENCES,
        providers: Sequence[ProviderInfo] = (ProviderInfo("cpu", _CPU),),
        session_settings: bool = True,
        energy_sensors: Sequence[EnergySensor] = (),
    ) -> None:
        self._energy_sensors = tuple(energy_sensors)
        self._session_settings = session_settings
        self._references = references
        self._latency = latency
        self._pace = pace
        self._noise = noise
        self._hostname = hostname
        self._memory_bytes = memory_bytes
        self._diagnosis = diagnosis
        self._holder = holder
        self._cache_bytes = cache_bytes
        self._cached: set[bytes] = set()
        self._memory_pace = memory_pace
        self._weight_bytes = weight_bytes
        self._session_spread = session_spread
        self._past = [
            [
                each.latency_ms * self._slowed(each.weight_bytes, each.latency_ms, number) * 1e6
                for each in self._references
            ]
            for number in range(-(past or 0), 0)
        ]
        if past is None:
            self._past = [[each.latency_ms * 1e6 for each in self._references]] * _LONG_PAST
        self.providers = tuple(providers)
        self.blocks: list[Block] = []

    def device_info(self) -> DeviceInfo:
        return DeviceInfo(
            protocol_version=PROTOCOL_VERSION,
            agent_version="fake",
            hostname=self._hostname,
            machine="fake",
            cpu_model="fake",
            cpu_count=1,
            memory_bytes=1 << 30,
            os="fake",
            python_version="fake",
            runtime="fake 1",
            providers=tuple(provider.name for provider in self.providers),
            provider_table=self.providers,
            limits=Limits(
                max_block_bytes=1 << 30,
                max_block_models=256,
                max_cache_bytes=self._cache_bytes,
            ),
            state=DeviceState(at_ns=0, memory_available_bytes=self._memory_bytes),
            session_settings=self._session_settings,
            energy_sensors=self._energy_sensors,
            metrics=ENERGY if any(not each.problem for each in self._energy_sensors) else (),
        )

    def reserve(self, purpose: str, wait: bool = True) -> Standing:
        if self._holder is not None and not wait:
            raise busy(self._hostname, self._holder)
        return Standing(int(self._holder is not None), self._holder, 0.0, 30.0)

    def submit(self, block: Block) -> Pending:
        return _Pending(self, block)

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        """Return the result of a block, for its :class:`Pending`."""
        self._check_provider(block)
        self._receive(block, on_progress)
        on_progress(Progress(State.MEASURING, 0.0))
        number = len(self.blocks)
        self.blocks.append(block)
        measurements = tuple(self._measurement(model, block, number) for model in block.models)
        if block.spec.run_order is RunOrder.INTERLEAVED:
            measurements = _in_turn(measurements, block.spec.runs_per_visit)
        busy = sum(int(m.latency_ns.sum()) for m in measurements)
        busy += round(block.energy_s * 1e9) * len(measurements)
        if not (block.spec.references and self._references):
            return BlockResult(block.block_id, measurements, busy, busy)
        usual = self._usual()
        references = tuple(self._reference(each, block, number, busy) for each in self._references)
        self._past.append([float(np.median(each.latency_ns)) for each in references])
        return BlockResult(
            block.block_id, measurements, busy, busy, references=references, usual=usual
        )

    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        if not 0.1 <= probe_s <= 600:
            raise DeviceError(f"a probe of {probe_s:g} s: give 0.1 to 600 seconds")
        return self._diagnosis

    def close(self) -> None:
        pass

    def _receive(self, block: Block, on_progress: OnProgress) -> None:
        """Store the files of a block that are not in the cache.

        Raises:
            DeviceError: the files exceed the cache, or a file changed.
        """
        files = {file.sha256: file for model in block.models for file in model.files}
        if sum(file.size_bytes for file in files.values()) > self._cache_bytes:
            raise DeviceError("the files of this block exceed the cache")
        missing = [file for digest, file in files.items() if digest not in self._cached]
        for number, file in enumerate(missing):
            on_progress(Progress(State.UPLOADING, number / len(missing)))
            if hashlib.sha256(file.read_bytes()).digest() != file.sha256:
                raise DeviceError(f"{file.path} changed while it was sent")
            self._cached.add(file.sha256)

    def _provider(self, block: Block) -> ProviderInfo:
        return self.device_info().provider(block.spec.provider)

    def _check_provider(self, block: Block) -> None:
        if reason := self.device_info().why_not(block.spec.provider, "on this device"):
            raise DeviceError(reason)
        try:
            self._provider(block).complete(block.spec.provider_options)
            if reason := block.spec.session.refusal():
                raise OptionError(reason)
        except OptionError as error:
            raise InvalidRequestError(f"{self._hostname} refused: {error}") from error

    def _slowed(self, weight_bytes: int, latency_ms: float, number: int) -> float:
        """Return the factor of a block's paces on the latency of a model."""
        streamed = weight_bytes / (latency_ms * 1e6) / _BYTES_PER_NS
        low, high = math.log(_CACHED_BYTES), math.log(_UNCACHED_BYTES)
        reached = min(max((math.log(max(weight_bytes, 1)) - low) / (high - low), 0.0), 1.0)
        sensitivity = reached * streamed / (streamed + _HALF)
        return float(self._pace(number) * self._memory_pace(number) ** sensitivity)

    def _usual(self) -> UsualLatencies | None:
        names = [each.name for each in self._references]
        past = self._past[-_LONG_PAST:]
        moments = _MOMENT_S * np.arange(len(past), dtype=np.float64)
        rows = np.array(past, dtype=np.float64).reshape(-1, len(names))
        return usual_latencies(names, moments, rows)

    def _reference(self, reference: Reference, block: Block, number: int, busy: int) -> Measurement:
        slowed = self._slowed(reference.weight_bytes, reference.latency_ms, number)
        mean_ns = reference.latency_ms * 1e6 * slowed
        rng = _rng(block.block_id, reference.name)
        return Measurement(
            reference.name,
            _runs(mean_ns * rng.normal(1, self._noise, _REFERENCE_RUNS)),
            np.linspace(0, busy, _REFERENCE_RUNS, dtype=np.int64),
            runs_per_visit=_REFERENCE_RUNS_PER_VISIT,
            weight_bytes=reference.weight_bytes,
        )

    def _energy(self, latency_ms: float) -> Energy:
        source = next(each for each in self._energy_sensors if not each.problem)
        gross_mj, idle_mj = (watts * latency_ms for watts in (_NET_W + _IDLE_W, _IDLE_W))
        return Energy(source.name, source.covers, (gross_mj,) * 8, (idle_mj,) * 8)

    def _measurement(self, model: Model, block: Block, number: int) -> Measurement:
        latency = self._latency(model)
        if isinstance(latency, Failure):
            return Measurement.failed(model.model_id, latency.kind, latency.message)
        weight_bytes = self._weight_bytes(model)
        rng = _rng(block.block_id, model.model_id)
        error = rng.normal(1, self._noise, block.spec.runs)
        sessions = np.array_split(np.arange(block.spec.runs), block.spec.sessions)
        for own in sessions:
            error[own] *= rng.normal(1, self._session_spread)
        runs = _runs(latency * self._slowed(weight_bytes, latency, number) * 1e6 * error)
        measurement = Measurement(
            model.model_id,
            runs,
            np.cumsum(runs) - runs,
            weight_bytes=weight_bytes,
            session_runs=tuple(map(len, sessions)) if len(sessions) > 1 else (),
            inputs=tuple(Input(name, "float32", dims) for name, dims in model.case.shapes),
            metrics={
                **({PEAK_MEMORY.key: _memory(model)} if block.peak_memory else {}),
                **(_energy_values(latency) if block.energy_s else {}),
            },
            energy=self._energy(latency) if block.energy_s else None,
            profile=_profile(latency * 1e6, block, self._provider(block).runtime_name),
        )
        provider = self._provider(block)
        if not provider.may_fall_back:
            return measurement
        return replace(
            measurement,
            copy_in_ns=np.full(3, 20_000),
            copy_out_ns=np.full(3, 10_000),
            ran_on=((provider.runtime_name, 5), (_CPU, 1)),
            fallback=("resize",) if block.spec.allow_fallback else (),
        )


class _Pending(Pending):
    def __init__(self, profiler: FakeProfiler, block: Block) -> None:
        self._profiler = profiler
        self._block = block
        self.bytes_sent = sum(model.size_bytes for model in block.models)

    def result(self, on_progress: OnProgress = ignore) -> BlockResult:
        return self._profiler.answer(self._block, on_progress)

    def finish(self) -> None:
        pass

    def cancel(self) -> None:
        pass


def _rng(block_id: str, name: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(f"{block_id}{name}".encode()).digest()))


def _runs(latency_ns: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.maximum(np.round(latency_ns), 1).astype(np.int64)


def _in_turn(measured: Sequence[Measurement], per_visit: int) -> tuple[Measurement, ...]:
    """Return measurements with starts as if the models had been visited in turn."""
    runs = [m.latency_ns for m in measured if m.latency_ns.size]
    if not runs:
        return tuple(measured)
    most = max(len(taken) for taken in runs)
    rounds = -(-most // per_visit)
    padded = np.zeros((len(runs), rounds * per_visit), dtype=np.int64)
    for row, taken in zip(padded, runs, strict=True):
        row[: len(taken)] = taken
    in_time = padded.reshape(len(runs), rounds, per_visit).swapaxes(0, 1)
    starts = (np.cumsum(in_time) - in_time.ravel()).reshape(in_time.shape)
    by_model = iter(starts.swapaxes(0, 1).reshape(len(runs), -1))
    return tuple(
        replace(m, start_ns=next(by_model)[: m.latency_ns.size]) if m.latency_ns.size else m
        for m in measured
    )


def _energy_values(latency_ms: float) -> dict[str, float]:
    """Return the values of the metrics of energy, by key."""
    net_mj, gross_mj = _NET_W * latency_ms, (_NET_W + _IDLE_W) * latency_ms
    values = (net_mj, gross_mj, 0.0, 1e3 / net_mj, _NET_W + _IDLE_W)
    return {metric.key: value for metric, value in zip(ENERGY, values, strict=True)}


def _memory(model: Model) -> int:
    """Return the memory of the inputs, the model and a runtime, bytes."""
    inputs = sum(4 * math.prod(dims) for _, dims in model.case.shapes)
    return 50_000_000 + model.size_bytes + inputs


def _profile(latency_ns: float, block: Block, name: str) -> Profile | None:
    """Return a profile with three quarters of the time in two convolutions."""
    if not block.profile_runs:
        return None
    operators = (("Conv", 2, 0.75), ("Gemm", 1, 0.25))
    nodes = (("conv2", "Conv", 0.5), ("conv1", "Conv", 0.25), ("gemm", "Gemm", 0.25))
    return Profile(
        block.profile_runs,
        tuple(OperatorTime(op, name, calls, share * latency_ns) for op, calls, share in operators),
        tuple(NodeTime(node, op, name, share * latency_ns) for node, op, share in nodes),
    )
