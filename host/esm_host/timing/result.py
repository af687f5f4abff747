"""Results of a timing and their JSON, which docs/timing.md describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, Literal, TypeAlias

import numpy as np

from esm_host.arguments import in_python, of_agent
from esm_host.errors import EsmError
from esm_host.evaluation.difference import Ratio, around, paired_ratio, unpaired_ratio
from esm_host.evaluation.verdict import Judgement, describe_shift, more_threads
from esm_host.timing.amounts import drawn_amounts
from esm_host.timing.energy import energy_text
from esm_host.timing.fed import fed_text
from esm_host.timing.inputs import assumption
from esm_host.timing.request import Entry
from esm_host.timing.spread import common_usual_latencies, pool_ratios
from esm_protos.estimates import Estimate, Runs, ratio_shift
from esm_protos.messages import (
    BlockResult,
    DeviceInfo,
    DeviceState,
    Energy,
    Failure,
    Measurement,
    MeasureSpec,
    Profile,
    RunOrder,
    UsualLatencies,
)
from esm_protos.metrics import KNOWN, LATENCY, METRICS, NUMBERS, Metric
from esm_protos.paces import Paces
from esm_protos.providers import ProviderInfo
from esm_protos.statistics import trimmed_mean
from esm_protos.text import counted

SCHEMA_VERSION = 3

Words: TypeAlias = Callable[[str], str]
"""Function that renders the marked names of arguments in a message."""


@dataclass(frozen=True)
class BlockLatency:
    """Latency of a model in one block.

    Attributes:
        measurement: Measurement of the model.
        estimate: Reported estimate: as measured, or at the device's usual pace.
        paces: Paces of the block; None without reference models.
    """

    measurement: Measurement
    estimate: Estimate
    paces: Paces | None

    def to_json(self, spec: MeasureSpec) -> dict[str, Any]:
        return {
            "runs": len(self.measurement.latency_ns),
            "runs_per_visit": self.measurement.visit_runs(spec),
            "session_runs": _session_runs(self.measurement),
            "trimmed_mean_ms": self.estimate.latency_ns / 1e6,
            "raw_ms": self.estimate.raw_ns / 1e6,
            "ci95_percent": _percent(self.estimate.interval),
            "block_ci95_percent": _percent(self.estimate.within),
            "shift_percent": _shift_percent(self.estimate),
        }


@dataclass(frozen=True)
class Result:
    """Result of a model in one case on one device.

    Attributes:
        device: Name of the device.
        spec: Settings of the timing.
        entry: The model and its case.
        measurement: Measurement over all blocks; a failure if the model failed in any.
        estimate: Estimate from all blocks; None if the model failed.
        judgement: Verdict and its reasons; None if the model failed.
        blocks: Latencies in each block, in time order; empty if the model failed.
        provider: Execution provider, as the device describes it.
    """

    device: str
    spec: MeasureSpec
    entry: Entry
    measurement: Measurement
    estimate: Estimate | None
    judgement: Judgement | None
    blocks: tuple[BlockLatency, ...] = ()
    provider: ProviderInfo = field(default_factory=partial(ProviderInfo, "cpu"))

    @property
    def failure(self) -> Failure | None:
        return self.measurement.failure

    @property
    def name(self) -> str:
        """Name of the model and its case."""
        return self.entry.model.model_id

    @property
    def threads(self) -> int:
        return self.entry.model.case.threads or self.spec.threads

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the latency, one line each."""
        found = list(self.judgement.reasons) if self.judgement else []
        if nodes := self.measurement.fallback:
            more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
            total = sum(count for _, count in self.measurement.ran_on)
            which = f"{len(nodes)} of {counted(total, 'node')} ran on another provider"
            found.append(f"{which}: {', '.join(nodes[:3])}{more}")
        used = self.measurement.threads_used
        if not self.failure and (
            more := more_threads(self.provider, used, self.threads, self.spec.session)
        ):
            found.append(more)
        return found

    @property
    def fed(self) -> str:
        """Shapes and types of the inputs; empty if the model failed earlier."""
        return fed_text((fed.name, fed.type, fed.dims) for fed in self.measurement.inputs)

    @property
    def conditions(self) -> str:
        """Conditions of the latency, such as ``fed x 1x3x8x8 float32 · 1 thread · cpu``.

        Options of the provider and of the session follow where they are not as by default.
        """
        provider, given = self.provider, self.spec.provider_options
        threads = counted(self.threads, "thread")
        if provider.chooses_threads:
            threads = "threads: as the provider chooses"
        changes = {**provider.changes(given), **self.spec.session.changes()}
        parts = [f"fed {self.fed or 'nothing'}", threads, self.spec.provider]
        parts += [f"{name}={value}" for name, value in changes.items()]
        parts += [f"compiled: {self.measurement.compiled}"] if self.measurement.compiled else []
        return " · ".join(parts)

    @property
    def unusual(self) -> str | None:
        """Description of the device's unusual pace for this model; None at the usual pace."""
        if self.estimate is None or self.estimate.shift is None or not self.estimate.parts.moments:
            return None
        return describe_shift(self.estimate.shift)

    @property
    def energy(self) -> str | None:
        """Source and verdict of the energy, with marked names of arguments; None if not asked."""
        energy = self.measurement.energy
        return None if energy is None else energy_text(energy)

    @property
    def assumptions(self) -> list[str]:
        """Warnings about sizes and amounts that were not given, with marked names of arguments."""
        assumed, amounts = self.entry.assumed, self.entry.amounts
        return [assumption(assumed)] * bool(assumed) + [drawn_amounts(amounts)] * bool(amounts)

    @cached_property
    def numbers(self) -> dict[str, Any]:
        """Numbers by their names in JSON; None for a missing value."""
        numbers: dict[str, Any] = dict.fromkeys(metric.field for metric in NUMBERS)
        numbers["ci95_ms"] = None
        measured = self.measurement
        values = measured.values()
        numbers |= {m.field: m.typed(values.get(m.key)) for m in METRICS if m is not LATENCY}
        if self.estimate is None:
            return numbers
        samples_ms = measured.latency_ns / 1e6
        latency_ms, share = self.estimate.latency_ns / 1e6, self.estimate.interval
        p90, p95, p99 = (float(value) for value in np.percentile(samples_ms, (90, 95, 99)))
        numbers |= {
            "trimmed_mean_ms": latency_ms,
            "raw_ms": self.estimate.raw_ns / 1e6,
            "block_ci95_percent": _percent(self.estimate.within),
            "shift_percent": _shift_percent(self.estimate),
            "median_ms": float(np.median(samples_ms)),
            "min_ms": float(samples_ms.min()),
            "max_ms": float(samples_ms.max()),
            "p90_ms": p90,
            "p95_ms": p95,
            "p99_ms": p99,
            "runs": samples_ms.size,
            "throughput_per_s": 1e3 * self.entry.items / latency_ms,
        }
        if ends := around(math.log(latency_ms), share):
            numbers["ci95_ms"] = list(ends)
            numbers["ci95_percent"] = _percent(share)
        return numbers

    @property
    def metrics(self) -> dict[str, float]:
        """Values of the metrics that plug-ins of the device measured, by key."""
        values = self.measurement.values()
        return {key: value for key, value in values.items() if key not in KNOWN}

    def value(self, metric: Metric) -> float | None:
        """Return the value of a metric; None if it has none."""
        found: float | None = (self.numbers | self.metrics).get(metric.field)
        return found

    def to_json(self, words: Words = in_python) -> dict[str, Any]:
        measured, case = self.measurement, self.entry.model.case
        failure = self.failure
        return {
            "model": self.entry.path,
            "model_sha256": self.entry.model.sha256.hex(),
            "external": {name: file.sha256.hex() for name, file in self.entry.model.external},
            "device": self.device,
            "case": {
                "batch": self.entry.batch,
                "dims": dict(self.entry.dims),
                "threads": self.threads,
                "provider": self.entry.provider,
                "shapes": {name: list(dims) for name, dims in case.shapes},
                "inputs_sha256": self.entry.inputs_sha256,
            },
            "inputs": [{**asdict(fed), "dims": list(fed.dims)} for fed in measured.inputs],
            "assumed": [
                {"input": each.input.name, "axis": each.axis, "symbol": each.symbol}
                for each in self.entry.assumed
            ],
            "items_per_inference": self.entry.items,
            "status": "failed" if failure else "success",
            "failure": failure
            and {"kind": failure.kind.value, "message": words(of_agent(failure.message))},
            **self.numbers,
            "metrics": self.metrics,
            "runs_per_visit": None if failure else measured.visit_runs(self.spec),
            "session_runs": None if failure else _session_runs(measured),
            "blocks": [block.to_json(self.spec) for block in self.blocks],
            "samples_ms": (measured.latency_ns / 1e6).tolist(),
            "starts_ms": (measured.start_ns / 1e6).tolist(),
            "provider": self.spec.provider,
            "provider_options": dict(self.spec.provider_options),
            "own_threads": self.provider.chooses_threads,
            "ran_on": dict(measured.ran_on),
            "fallback": list(measured.fallback),
            "compiled": measured.compiled or None,
            "verdict": self.judgement and self.judgement.verdict.value,
            "warnings": [*map(words, (*self.warnings, *self.assumptions))],
            "profile": measured.profile and _profile(measured.profile),
            "energy": measured.energy and _energy(measured.energy),
        }


@dataclass(frozen=True)
class DeviceTiming:
    """Timing on one device.

    Attributes:
        name: Name of the device.
        results: Results, in the order of the request.
        info: Facts of the device; None if it did not answer.
        blocks: Results of the blocks, in time order; empty if nothing was measured.
        starts_s: Start of each block after the first one's, s, by the host's clock.
        error: Error that prevented the timing or its further blocks; None if there was none.
        interrupted: Whether an interrupt cut the timing short.
        providers: Execution provider of each block.
        energy_problem: Reason why the device cannot measure the energy that was asked for; empty
            if it can, or was not asked.
    """

    name: str
    results: tuple[Result, ...] = ()
    info: DeviceInfo | None = None
    blocks: tuple[BlockResult, ...] = ()
    starts_s: tuple[float, ...] = ()
    error: EsmError | None = None
    interrupted: bool = False
    providers: tuple[str, ...] = ()
    energy_problem: str = ""

    @cached_property
    def usual(self) -> dict[str, UsualLatencies | None]:
        """Usual latencies of the reference models on each execution provider."""
        found: dict[str, list[BlockResult]] = {}
        for provider, block in zip(self.providers, self.blocks, strict=True):
            found.setdefault(provider, []).append(block)
        return {name: common_usual_latencies(blocks) for name, blocks in found.items()}

    def to_json(self, words: Words = in_python) -> dict[str, Any]:
        info, blocks = self.info, self.blocks
        usual = {name: own and own.to_json() for name, own in self.usual.items()}
        trim = self.results[0].spec.trim if self.results else 0.0
        return {
            "info": info and {**asdict(info), "state": info.state.to_json()},
            "block_starts_s": list(self.starts_s),
            "states": [state.to_json() for state in self._states()],
            "references": [
                {"block": number, "provider": provider, **_reference(reference, start_s, trim)}
                for number, (block, start_s, provider) in enumerate(
                    zip(blocks, self.starts_s, self.providers, strict=True)
                )
                for reference in block.references
                if reference.failure is None
            ],
            "usual": next(iter(usual.values()), None),
            "usual_by_provider": usual,
            "busy_s": sum(block.busy_ns for block in blocks) / 1e9 if blocks else None,
            "error": None if self.error is None else words(self.error.marked),
            "interrupted": self.interrupted,
            "energy_problem": self.energy_problem,
        }

    def _states(self) -> Iterator[DeviceState]:
        """Yield all states on one clock, which begins with the first run of the first block."""
        for block, start_s in zip(self.blocks, self.starts_s, strict=True):
            for state in block.states:
                yield replace(state, at_ns=state.at_ns + round(start_s * 1e9))


@dataclass(frozen=True)
class Comparison:
    """Comparison of a result with the fastest one.

    Attributes:
        scope: ``device`` for the fastest on the same device in the same case, ``devices`` for the
            fastest over all devices.
        device: Device of the result.
        of: Index of the result.
        to: Index of the fastest result.
        ratio: Ratio of their latencies.
    """

    scope: Literal["device", "devices"]
    device: str
    of: int
    to: int
    ratio: Ratio

    def to_json(self) -> dict[str, Any]:
        interval = self.ratio.interval
        return {
            "scope": self.scope,
            "device": self.device,
            "of": self.of,
            "to": self.to,
            "ratio": self.ratio.value,
            "ci95": None if interval is None else list(interval),
            "paired": self.ratio.paired,
            "different": self.ratio.different,
        }


@dataclass(frozen=True)
class Timing:
    """Timing of models on devices, in the order of the request.

    Attributes:
        created_at: Time of the timing, ISO 8601, UTC.
        spec: Settings of the timing.
        devices: Timings of the devices.
        raw: Whether latencies are as measured, and not at the device's usual pace.
        spread_s: Time over which the blocks are spread; 0 for a single block.
    """

    created_at: str
    spec: MeasureSpec
    devices: tuple[DeviceTiming, ...]
    raw: bool = False
    spread_s: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt cut the timing short on any device."""
        return any(device.interrupted for device in self.devices)

    @cached_property
    def results(self) -> tuple[Result, ...]:
        return tuple(result for device in self.devices for result in device.results)

    def as_measured(self, device: DeviceTiming) -> list[str]:
        """Return the providers whose latencies are as measured, and not at the usual pace."""
        everywhere = self.raw or not self.spec.references
        return [name for name, usual in device.usual.items() if everywhere or usual is None]

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        within = _within_devices(self.results, self.raw)
        return (*within, *_between_devices(self.results))

    def to_json(self, words: Words = in_python) -> dict[str, Any]:
        """Return plain values, as docs/timing.md describes them.

        Args:
            words: Function that renders the names of arguments in messages.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "timing",
            "context": {
                "esm_profiler": version("esm-profiler"),
                "created_at": self.created_at,
                "spec": self.spec.to_json(),
                "raw": self.raw,
                "spread_s": self.spread_s,
                "devices": {device.name: device.to_json(words) for device in self.devices},
            },
            "results": [result.to_json(words) for result in self.results],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }


def _within_devices(results: Sequence[Result], raw: bool) -> Iterator[Comparison]:
    for device in dict.fromkeys(result.device for result in results):
        numbers = [n for n, r in enumerate(results) if r.device == device and r.estimate]
        for alike in _alike(results, numbers):
            for of, to in _against_fastest(results, alike):
                yield Comparison("device", device, of, to, _ratio(results[of], results[to], raw))


def _alike(results: Sequence[Result], numbers: Sequence[int]) -> list[list[int]]:
    """Return groups of results to compare: models in one case (batch, sizes, threads, provider).

    If no case has two models, all results are one group.
    """
    by_case: dict[object, list[int]] = {}
    for number in numbers:
        entry = results[number].entry
        case = (entry.batch, entry.dims, entry.model.case.threads, entry.provider)
        by_case.setdefault(case, []).append(number)
    groups = list(by_case.values())
    return groups if any(len(group) > 1 for group in groups) else [list(numbers)]


def _between_devices(results: Sequence[Result]) -> Iterator[Comparison]:
    for name in dict.fromkeys(result.name for result in results):
        numbers = [n for n, r in enumerate(results) if r.name == name and r.estimate]
        for of, to in _against_fastest(results, numbers):
            ratio = _unpaired(results[of], results[to])
            yield Comparison("devices", results[of].device, of, to, ratio)


def _against_fastest(
    results: Sequence[Result], numbers: Sequence[int]
) -> Iterator[tuple[int, int]]:
    if not numbers:
        return
    fastest = min(numbers, key=lambda number: _latency_ns(results[number]))
    yield from ((number, fastest) for number in numbers if number != fastest)


def _ratio(one: Result, other: Result, raw: bool) -> Ratio:
    """Return the ratio of two results of one device."""
    in_one_block = one.spec.provider == other.spec.provider
    if one.spec.run_order is not RunOrder.INTERLEAVED or not in_one_block:
        return _unpaired(one, other)
    found, shared = [], 0.0
    for a, b in zip(one.blocks, other.blocks, strict=True):
        runs_a, runs_b = (Runs.of(each.measurement, one.spec) for each in (a, b))
        ratio = paired_ratio(runs_a, runs_b, one.spec.trim)
        if a.paces is not None and not raw:
            known_a, known_b = ((each.measurement.weight_bytes, each.estimate) for each in (a, b))
            shift = ratio_shift(a.paces, known_a, known_b)
            ratio, shared = ratio.at_usual(shift.value, shift.half), max(shared, shift.shared)
        found.append(ratio)
    return found[0] if len(found) == 1 else pool_ratios(found, shared)


def _unpaired(one: Result, other: Result) -> Ratio:
    assert one.estimate is not None
    assert other.estimate is not None
    return unpaired_ratio(
        one.estimate.latency_ns,
        one.estimate.interval,
        other.estimate.latency_ns,
        other.estimate.interval,
    )


def _latency_ns(result: Result) -> float:
    assert result.estimate is not None
    return result.estimate.latency_ns


def _percent(share: float) -> float | None:
    """Return a share in percent; None for infinity, which JSON lacks."""
    return 100 * share if np.isfinite(share) else None


def _shift_percent(estimate: Estimate) -> float | None:
    """Return how much slower than usual the device was, percent; None without history."""
    if estimate.shift is None or not estimate.parts.moments:
        return None
    return 100 * float(np.expm1(estimate.shift.value))


def _session_runs(measured: Measurement) -> list[int]:
    return list(measured.session_runs or (len(measured.latency_ns),))


def _reference(measured: Measurement, start_s: float, trim: float) -> dict[str, Any]:
    """Return the JSON of a reference model in a block.

    Args:
        measured: Measurement of the reference model.
        start_s: Start of the block after the first one's, s.
        trim: Share of the runs dropped at each end.
    """
    return {
        "name": measured.model_id,
        "weight_bytes": measured.weight_bytes,
        "latency_ms": trimmed_mean(measured.latency_ns, trim) / 1e6,
        "runs_per_visit": measured.runs_per_visit or 1,
        "samples_ms": (measured.latency_ns / 1e6).tolist(),
        "starts_ms": (measured.start_ns / 1e6 + 1e3 * start_s).tolist(),
    }


def _energy(energy: Energy) -> dict[str, Any]:
    return {
        "verdict": energy.verdict,
        **asdict(energy),
        "gross_mj": list(energy.gross_mj),
        "idle_mj": list(energy.idle_mj),
    }


def _profile(profile: Profile) -> dict[str, Any]:
    return {
        "runs": profile.runs,
        "operators": [
            {
                "op_type": entry.op_type,
                "provider": entry.provider,
                "calls": entry.calls,
                "ms": entry.ns / 1e6,
            }
            for entry in profile.operators
        ],
        "nodes": [
            {
                "name": entry.name,
                "op_type": entry.op_type,
                "provider": entry.provider,
                "ms": entry.ns / 1e6,
            }
            for entry in profile.nodes
        ],
    }
