"""A device that measures nothing: latencies come from a function. For tests and dry runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
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
    Limits,
    Measurement,
    Model,
    Progress,
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
    ) -> None:
        self._latency = latency
        self._pace = pace
        self._noise = noise
        self._hostname = hostname
        self._memory_bytes = memory_bytes
        self._diagnosis = diagnosis
        self._holder = holder
        self._gpu = gpu
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
            limits=Limits(max_block_bytes=1 << 30, max_block_models=256),
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
        on_progress(Progress(State.MEASURING, 0.0))
        pace = self._pace(len(self.blocks))
        self.blocks.append(block)
        measurements = tuple(self._measurement(model, block, pace) for model in block.models)
        busy = sum(int(m.latency_ns.sum()) for m in measurements)
        return BlockResult(block.block_id, measurements, busy, busy)

    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        if not 0.1 <= probe_s <= 600:
            raise DeviceError(f"a probe of {probe_s:g} s: give 0.1 to 600 seconds")
        return self._diagnosis

    def close(self) -> None:
        pass

    def _providers(self) -> tuple[str, ...]:
        return ("cpu",) if self._gpu is None else ("cpu", "cuda")

    def _measurement(self, model: Model, block: Block, pace: float) -> Measurement:
        latency = self._latency(model)
        if isinstance(latency, Failure):
            return Measurement.failed(model.model_id, latency.kind, latency.message)
        seed = hashlib.sha256(f"{block.block_id}{model.model_id}".encode()).digest()
        error = np.random.default_rng(list(seed)).normal(1, self._noise, block.spec.runs)
        runs = np.maximum(np.round(latency * pace * 1e6 * error), 1).astype(np.int64)
        measurement = Measurement(model.model_id, runs, np.cumsum(runs) - runs)
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
