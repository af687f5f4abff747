"""The doctor's probe: a block of the reference models, and the noise in it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from esm_agent.measure.block import UploadedBlock
from esm_agent.measure.references import reference_models
from esm_protos.estimates import estimate_measured
from esm_protos.messages import BlockResult, Measurement, MeasureSpec
from esm_protos.paces import Paces

Measure = Callable[[UploadedBlock], BlockResult]
"""Function that measures a block and returns its result."""

MIN_PROBE_S, MAX_PROBE_S = 0.1, 600.0

_WINDOW_NS = 500_000_000
_MIN_WINDOWS = 3
# The time limit ends the block. The reference models also run as references, as in every block,
# so that the device's history includes them.
_SPEC = MeasureSpec(runs=999_999, runs_per_visit=4, warmup=6, references=True)


@dataclass(frozen=True)
class Noise:
    """Noise of a probe.

    Attributes:
        spread: Standard deviation of the device's pace between half seconds, as a share; None if
            the probe was too short.
        span: Slowdown of the slowest half second against the fastest, as a share; None if the
            probe was too short.
        model_spreads: Standard deviation of each model alone, as a share, by name.
        intervals: Half-width of the 95 % interval of each model's latency, as a share, with the
            common pace divided out; infinite if the probe was too short.
    """

    spread: float | None
    span: float | None
    model_spreads: dict[str, float]
    intervals: dict[str, float]


def check_probe_s(probe_s: float) -> None:
    """Check the duration of a probe, seconds.

    Raises:
        ValueError: it is out of range.
    """
    if not MIN_PROBE_S <= probe_s <= MAX_PROBE_S:
        raise ValueError(
            f"a probe of {probe_s:g} s: give {MIN_PROBE_S:g} to {MAX_PROBE_S:g} seconds"
        )


def run_probe(measure: Measure, probe_s: float) -> BlockResult:
    """Time the reference models in turn for ``probe_s`` seconds.

    A model that fails is in the result; errors of ``measure`` itself are raised.
    """
    spec = replace(_SPEC, max_block_s=probe_s)
    return measure(UploadedBlock(f"doctor-{uuid.uuid4()}", spec, reference_models()))


def noise(result: BlockResult) -> Noise:
    """Return the noise of a probe without failed models."""
    relative = {m.model_id: m.latency_ns / np.median(m.latency_ns) for m in result.measurements}
    starts = {m.model_id: m.start_ns for m in result.measurements}
    common = _windows(
        np.concatenate(list(starts.values())), np.concatenate(list(relative.values()))
    )
    enough = len(common) >= _MIN_WINDOWS
    return Noise(
        spread=_spread(common) if enough else None,
        span=float(common.max() / common.min() - 1) if enough else None,
        model_spreads={
            name: _spread(_windows(starts[name], relative[name])) for name in relative if enough
        },
        intervals=_intervals(result.measurements),
    )


def paces(result: BlockResult) -> Paces | None:
    """Return the device's paces in a probe; None without reference models."""
    return estimate_measured((), _SPEC, result.references, result.usual).paces


def _windows(starts: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of the values of each half second, without an incomplete last one."""
    number = starts // _WINDOW_NS
    full = max(1, int(starts.max(initial=0)) // _WINDOW_NS)
    medians = [np.median(values[number == n]) for n in range(full) if (number == n).any()]
    return np.array(medians, dtype=np.float64)


def _spread(medians: NDArray[np.float64]) -> float:
    return float(medians.std(ddof=1) / medians.mean()) if len(medians) > 1 else 0.0


def _intervals(measurements: tuple[Measurement, ...]) -> dict[str, float]:
    block = estimate_measured(measurements, _SPEC)
    return {m.model_id: e.interval for m, e in zip(measurements, block.models, strict=True)}
