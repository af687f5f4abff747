"""A device that measures nothing: latencies come from a function. For tests and dry runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from esm_host.errors import DeviceError
from esm_host.transport.base import OnProgress, Pending, Profiler, busy, ignore
from esm_protos.messages import (
    PROTOCOL_VERSION,
    Block,
    BlockResult,
    DeviceInfo,
    DeviceState,
    Diagnosis,
    Failure,
    Finding,
    GpuState,
    Holder,
    Input,
    Limits,
    Measurement,
    Model,
    NodeTime,
    OperatorTime,
    Profile,
    Progress,
    Protocol,
    Severity,
    Standing,
    State,
)

Latency = Callable[[Model], float | Failure]
"""Milliseconds of a model, or why it has none."""

_HEALTHY = Diagnosis((Finding("pace", Severity.OK, "a fake device never varies"),))


class FakeProfiler(Profiler):
    """Answers at once, the same for the same block.

    Args:
        latency: of each model.
        pace: factor common to a block, by the number of blocks measured before it.
        noise: standard deviation of every run's relative error.
        memory_bytes: what it says it has free; None does not tell.
        diagnosis: what the doctor finds.
        holder: somebody else who has the device.
        gpu: name of its GPU, which the provider ``cuda`` then runs on.
        cache_bytes: what its cache holds; 0 takes no files.
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
        gpu: str | None = None,
        cache_bytes: int = 1 << 40,
    ) -> None:
        self._latency = latency
        self._pace = pace
        self._noise = noise
        self._hostname = hostname
        self._memory_bytes = memory_bytes
        self._diagnosis = diagnosis
        self._holder = holder
        self._gpu = gpu
        self._cache_bytes = cache_bytes
        self._cached: set[bytes] = set()
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
            providers=self._providers(),
            limits=Limits(
                max_block_bytes=1 << 30,
                max_block_models=256,
                max_cache_bytes=self._cache_bytes,
            ),
            state=DeviceState(
                at_ns=0,
                memory_available_bytes=self._memory_bytes,
                gpus=() if self._gpu is None else (GpuState(self._gpu),),
            ),
        )

    def reserve(self, purpose: str, wait: bool = True) -> Standing:
        if self._holder is not None and not wait:
            raise busy(self._hostname, self._holder)
        return Standing(int(self._holder is not None), self._holder, 0.0, 30.0)

    def submit(self, block: Block) -> Pending:
        return _Pending(self, block)

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        """What the block's :class:`Pending` returns, when it is asked."""
        if block.spec.provider not in self._providers():
            raise DeviceError(f"this device has no provider '{block.spec.provider}': it has cpu")
        self._receive(block, on_progress)
        on_progress(Progress(State.MEASURING, 0.0))
        pace = self._pace(len(self.blocks))
        self.blocks.append(block)
        measurements = tuple(self._measurement(model, block, pace) for model in block.models)
        if block.spec.protocol is Protocol.INTERLEAVED:
            measurements = _in_turn(measurements, block.spec.runs_per_visit)
        busy = sum(int(m.latency_ns.sum()) for m in measurements)
        return BlockResult(block.block_id, measurements, busy, busy)

    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        if not 0.1 <= probe_s <= 600:
            raise DeviceError(f"a probe of {probe_s:g} s: give 0.1 to 600 seconds")
        return self._diagnosis

    def close(self) -> None:
        pass

    def _receive(self, block: Block, on_progress: OnProgress) -> None:
        """Files that it has not got yet; raises DeviceError for what is too much."""
        files = {file.sha256: file for model in block.models for file in model.files}
        if sum(file.size_bytes for file in files.values()) > self._cache_bytes:
            raise DeviceError("the files of this block are more than the cache holds")
        missing = [file for digest, file in files.items() if digest not in self._cached]
        for number, file in enumerate(missing):
            on_progress(Progress(State.UPLOADING, number / len(missing)))
            if hashlib.sha256(file.read_bytes()).digest() != file.sha256:
                raise DeviceError(f"{file.path} changed while it was sent")
            self._cached.add(file.sha256)

    def _providers(self) -> tuple[str, ...]:
        return ("cpu",) if self._gpu is None else ("cpu", "cuda")

    def _measurement(self, model: Model, block: Block, pace: float) -> Measurement:
        latency = self._latency(model)
        if isinstance(latency, Failure):
            return Measurement.failed(model.model_id, latency.kind, latency.message)
        seed = hashlib.sha256(f"{block.block_id}{model.model_id}".encode()).digest()
        error = np.random.default_rng(list(seed)).normal(1, self._noise, block.spec.runs)
        runs = np.maximum(np.round(latency * pace * 1e6 * error), 1).astype(np.int64)
        measurement = Measurement(
            model.model_id,
            runs,
            np.cumsum(runs) - runs,
            inputs=tuple(Input(name, "float32", dims) for name, dims in model.case.shapes),
            peak_rss_bytes=_memory(model) if block.peak_memory else None,
            profile=_profile(latency * 1e6, block),
        )
        if block.spec.provider == "cpu":
            return measurement
        return replace(
            measurement,
            copy_in_ns=np.full(3, 20_000),
            copy_out_ns=np.full(3, 10_000),
            ran_on=(("CUDAExecutionProvider", 5), ("CPUExecutionProvider", 1)),
            fallback=("resize",) if block.spec.allow_fallback else (),
        )


class _Pending(Pending):
    def __init__(self, profiler: FakeProfiler, block: Block) -> None:
        self._profiler = profiler
        self._block = block
        self.bytes_sent = sum(model.size_bytes for model in block.models)

    def result(self, on_progress: OnProgress = ignore) -> BlockResult:
        return self._profiler.answer(self._block, on_progress)

    def cancel(self) -> None:
        pass


def _in_turn(measured: Sequence[Measurement], per_visit: int) -> tuple[Measurement, ...]:
    """As if the models had been visited round after round."""
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


def _memory(model: Model) -> int:
    """What inputs and the model take, and a runtime."""
    inputs = sum(4 * math.prod(dims) for _, dims in model.case.shapes)
    return 50_000_000 + model.size_bytes + inputs


def _profile(latency_ns: float, block: Block) -> Profile | None:
    """Three quarters of it in two convolutions."""
    if not block.profile_runs:
        return None
    name = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[block.spec.provider]
    operators = (("Conv", 2, 0.75), ("Gemm", 1, 0.25))
    nodes = (("conv2", "Conv", 0.5), ("conv1", "Conv", 0.25), ("gemm", "Gemm", 0.25))
    return Profile(
        block.profile_runs,
        tuple(OperatorTime(op, name, calls, share * latency_ns) for op, calls, share in operators),
        tuple(NodeTime(node, op, name, share * latency_ns) for node, op, share in nodes),
    )
