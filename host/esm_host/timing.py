"""Timing a user's own ONNX files: what is asked of the device, and what is made of its answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esm_host.errors import UsageError
from esm_host.evaluation.verdict import Judgement, block_evidence, judge_number
from esm_host.limits import check_models, check_spec, external_file
from esm_host.transport.base import Profiler
from esm_protos.messages import (
    Block,
    BlockResult,
    DeviceInfo,
    Failure,
    Measurement,
    MeasureSpec,
    Model,
    Nanoseconds,
    Progress,
    Protocol,
)
from esm_protos.statistics import Estimate, estimate_block

SCHEMA_VERSION = 1

PRECISION_PERCENT = 2.0
MAX_RUNS = 100_000
MIN_TIME_S = 2.0
"""Long enough to meet a device's ups and downs, short enough to wait for."""
MAX_TIME_S = 60.0
WARMUP, RUNS_PER_VISIT = 10, 4
"""More than in a campaign, where models are compared: here the number itself is wanted, and
beside others a model is as fast as alone only after so many runs (docs/measuring.md)."""

_NUMBERS = (
    *("latency_ms", "interval_percent", "interval_low_ms", "interval_high_ms"),
    *("min_ms", "median_ms", "p95_ms", "load_ms", "first_run_ms", "copy_in_ms", "copy_out_ms"),
)
_FLAGS = {"model_timeout_s": "--timeout", "max_block_s": "--max-time"}


@dataclass(frozen=True)
class TimedModel:
    """One model and what timing it gave.

    Attributes:
        provider: that it was to run on.
        estimate: None if the model failed.
        judgement: likewise.
    """

    provider: str
    model: Model
    measurement: Measurement
    estimate: Estimate | None
    judgement: Judgement | None

    @property
    def failure(self) -> Failure | None:
        return self.measurement.failure

    def to_json(self) -> dict[str, Any]:
        """Every number that has no value, such as a failed model's latency, is None."""
        numbers: dict[str, Any] = dict.fromkeys(_NUMBERS)
        samples = self.measurement.latency_ns
        if self.estimate is not None:
            latency_ms, share = self.estimate.latency_ns / 1e6, self.estimate.interval
            numbers |= {
                "latency_ms": latency_ms,
                "min_ms": float(samples.min()) / 1e6,
                "median_ms": float(np.median(samples)) / 1e6,
                "p95_ms": float(np.percentile(samples, 95)) / 1e6,
                "load_ms": self.measurement.load_ns / 1e6,
                "first_run_ms": self.measurement.first_run_ns / 1e6,
                "copy_in_ms": _median_ms(self.measurement.copy_in_ns),
                "copy_out_ms": _median_ms(self.measurement.copy_out_ns),
            }
            if np.isfinite(share):  # JSON has no infinity
                numbers |= {
                    "interval_percent": 100 * share,
                    "interval_low_ms": latency_ms * (1 - share),
                    "interval_high_ms": latency_ms * (1 + share),
                }
        failure = self.failure
        return {
            "path": self.model.model_id,
            "sha256": self.model.sha256.hex(),
            "provider": self.provider,
            "failure": failure and {"kind": failure.kind.value, "message": failure.message},
            **numbers,
            "runs": samples.size,
            "verdict": self.judgement and self.judgement.verdict.value,
            "reasons": list(self.judgement.reasons) if self.judgement else [],
            "ran_on": dict(self.measurement.ran_on),
            "fallback": list(self.measurement.fallback),
            "latency_ns": samples.tolist(),
            "start_ns": self.measurement.start_ns.tolist(),
        }


@dataclass(frozen=True)
class Timing:
    """What timing a block of models gave, in the order in which they were given."""

    device: DeviceInfo
    spec: MeasureSpec
    models: tuple[TimedModel, ...]
    result: BlockResult

    def to_json(self) -> dict[str, Any]:
        """The shape that docs/timing.md describes."""
        return {
            "schema_version": SCHEMA_VERSION,
            "models": [model.to_json() for model in self.models],
            "spec": self.spec.to_json(),
            "device": {**asdict(self.device), "state": self.device.state.to_json()},
            "device_states": [state.to_json() for state in self.result.states],
            "device_busy_seconds": self.result.busy_ns / 1e9,
        }


def timing_spec(
    runs: int | None = None,
    precision_percent: float | None = None,
    max_runs: int | None = None,
    max_time_s: float | None = None,
    **others: Any,
) -> MeasureSpec:
    """Exactly ``runs``; or, without it, as many as the precision takes within the limits.

    Args:
        precision_percent: half-width of the 95 % interval, percent of the latency.
        max_runs: counted runs of one model at most.
        max_time_s: no new round after so many seconds.
        others: further fields of :class:`MeasureSpec`, whose defaults hold.

    Raises:
        UsageError: values are out of range or exclude each other.
    """
    others = {"warmup": WARMUP, "runs_per_visit": RUNS_PER_VISIT, **others}
    if runs is not None:
        limits = (("precision", precision_percent), ("max-runs", max_runs))
        for name, value in (*limits, ("max-time", max_time_s)):
            if value is not None:
                raise UsageError(f"--runs takes exactly so many runs: leave --{name} out")
        return _spec("--runs", runs=runs, **others)
    if others.get("protocol") is Protocol.SEQUENTIAL:
        raise UsageError("--protocol sequential takes a fixed number of runs: give --runs")
    percent = PRECISION_PERCENT if precision_percent is None else precision_percent
    if not 0 < percent < 100:
        raise UsageError(f"--precision {percent:g}: give percent, above 0 and below 100")
    seconds = MAX_TIME_S if max_time_s is None else max_time_s
    if not seconds > 0:  # zero, to an agent, is no limit
        raise UsageError(f"--max-time {seconds:g}: give seconds, more than 0")
    return _spec(
        "--max-runs",
        runs=MAX_RUNS if max_runs is None else max_runs,
        precision=percent / 100,
        max_block_s=seconds,
        min_block_s=min(MIN_TIME_S, seconds),
        **others,
    )


def read_models(paths: Sequence[Path]) -> tuple[Model, ...]:
    """Reads ONNX files; what is in them is for the device to judge.

    Raises:
        UsageError: a file is missing, unreadable, given twice, or keeps its weights elsewhere.
    """
    models = []
    seen: set[Path] = set()
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from error
        resolved = path.resolve()
        if resolved in seen:
            raise UsageError(f"{path} is given twice: give each model once")
        seen.add(resolved)
        if location := external_file(data):
            raise UsageError(
                f"{path} keeps weights in another file ({location}): save it as one file, "
                "onnx.save(onnx.load(path), path, save_as_external_data=False)"
            )
        # A name that is no text has no place in a message or in JSON.
        models.append(Model(str(path).encode(errors="backslashreplace").decode(), data))
    return tuple(models)


def time_models(
    profiler: Profiler,
    models: Sequence[Model],
    spec: MeasureSpec,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Timing:
    """Measures the models on the device as one block.

    Raises:
        UsageError: the device cannot do what is asked.
        DeviceError: it is gone or refuses.
    """
    device = profiler.device_info()
    check_spec(device, spec)
    check_models(device.limits, models)
    result = profiler.measure(Block(uuid.uuid4().hex, spec, tuple(models)), on_progress)
    measured = [m for m in result.measurements if m.failure is None]
    block = estimate_block(
        [m.latency_ns for m in measured],
        [m.start_ns for m in measured],
        spec.runs_per_visit,
        spec.trim,
        common_pace=spec.protocol is Protocol.INTERLEAVED,
    )
    estimates = dict(zip((m.model_id for m in measured), block.models, strict=True))
    evidence = block_evidence(result.states, block.slowdown)
    timed = []
    for model, measurement in zip(models, result.measurements, strict=True):
        estimate = estimates.get(model.model_id)
        judgement = None
        if estimate is not None:
            judgement = judge_number(estimate.interval, spec.precision, evidence)
        timed.append(TimedModel(spec.provider, model, measurement, estimate, judgement))
    return Timing(device, spec, tuple(timed), result)


def _median_ms(samples: Nanoseconds) -> float | None:
    """None where there is nothing to cross."""
    return float(np.median(samples)) / 1e6 if samples.size else None


def _spec(runs_flag: str, **fields: Any) -> MeasureSpec:
    try:
        return MeasureSpec(**fields)
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        flag = runs_flag if name == "runs" else _FLAGS.get(name, "--" + name.replace("_", "-"))
        raise UsageError(f"{flag} {rest}") from error
