"""Latencies of the parts of a search space, each timed alone."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esm_host.arguments import of_agent
from esm_host.errors import DeviceError
from esm_host.timing.inputs import check_free_dims
from esm_host.timing.spread import common_usual_latencies
from esm_host.transport.base import OnProgress, Profiler, ignore
from esm_host.transport.limits import check_models, check_spec
from esm_models.parts import Part
from esm_protos.estimates import estimate_measured
from esm_protos.messages import Block, MeasureSpec, Model

BLOCK_PARTS = 20
PARTS = BLOCK_PARTS + 2
"""Parts per block, including those in every block."""
_KNOWN_MOMENTS = 10
"""Moments of history from which on blocks are at the device's usual pace. With fewer, differences
between blocks are corrected only in part."""


@dataclass(frozen=True)
class PartTime:
    """Latency of a part timed alone.

    Attributes:
        part: The part.
        latency_ms: Latency at the device's usual pace; at the mean pace of all blocks if the
            device has little history.
        interval: Half-width of the 95 % interval, as a share; infinite with too few runs.
        runs: Number of counted runs.
    """

    part: Part
    latency_ms: float
    interval: float
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a lookup table's file."""
        return {
            "key": self.part.key,
            "name": self.part.name,
            "option": self.part.option or None,
            "inputs": [list(shape) for shape in self.part.inputs],
            "latency_ms": self.latency_ms,
            "interval_percent": 100 * self.interval if math.isfinite(self.interval) else None,
            "runs": self.runs,
            "operators": len(self.part.operators),
            "mflops": self.part.flops / 1e6,
        }


def time_parts(
    profiler: Profiler,
    parts: Sequence[Part],
    spec: MeasureSpec,
    on_progress: OnProgress = ignore,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> list[PartTime]:
    """Time every part as a graph without weights, in blocks of :data:`BLOCK_PARTS`.

    Two parts, at a third and at two thirds of the order by FLOPs, are in every block. If the device
    has little history, they bring the blocks to one pace: their deviation from their mean is
    divided out of the other latencies. Otherwise that would only add their noise.

    Args:
        profiler: Connected device.
        parts: Parts to time.
        spec: Settings of the blocks.
        on_progress: Function called with the progress of the current block.
        on_block: Function called with the number of parts done and the number of all.

    Returns:
        Latencies in the order of ``parts``.

    Raises:
        UsageError: the device does not support the settings.
        DeviceError: the device is unreachable or refuses, or a part fails.
    """
    graphs = {part.key: part.build() for part in parts}
    check_free_dims(spec.session.free_dims, graphs)
    models = [Model(key, graph) for key, graph in graphs.items()]
    info = profiler.device_info()
    check_spec(info, spec)
    by_work = sorted(range(len(parts)), key=lambda number: (parts[number].flops, number))
    references = sorted({by_work[len(parts) // 3], by_work[2 * len(parts) // 3]})
    others = [number for number in range(len(parts)) if number not in references]
    blocks = [references + others[i : i + BLOCK_PARTS] for i in range(0, len(others), BLOCK_PARTS)]
    blocks = blocks or [references]
    results = []
    for row, numbers in enumerate(blocks):
        chosen = [models[number] for number in numbers]
        check_models(info.limits, chosen)
        result = profiler.measure(Block(uuid.uuid4().hex, spec, tuple(chosen)), on_progress)
        for number, measurement in zip(numbers, result.measurements, strict=True):
            if (failure := measurement.failure) is not None:
                raise DeviceError(
                    f"part {parts[number].name} failed with {failure.kind.value}: "
                    f"{of_agent(failure.message)}"
                )
        results.append(result)
        on_block(len(references) + len(others[: (row + 1) * BLOCK_PARTS]), len(parts))
    usual = common_usual_latencies(results)
    latency_ms = np.full((len(blocks), len(parts)), np.nan)
    interval, runs = np.full(latency_ms.shape, np.nan), np.zeros(latency_ms.shape, dtype=int)
    at_usual = True
    for row, (numbers, result) in enumerate(zip(blocks, results, strict=True)):
        estimate = estimate_measured(result.measurements, spec, result.references, usual)
        latency_ms[row, numbers] = [model.latency_ns / 1e6 for model in estimate.models]
        interval[row, numbers] = [model.interval for model in estimate.models]
        runs[row, numbers] = [len(m.latency_ns) for m in result.measurements]
        at_usual &= estimate.paces is not None and estimate.paces.moments >= _KNOWN_MOMENTS
    pace = np.ones(len(blocks))
    if not at_usual:
        logs = np.log(latency_ms[:, references])
        pace = np.exp((logs - logs.mean(axis=0)).mean(axis=1))
    means = np.nanmean(latency_ms / pace[:, None], axis=0)
    return [
        PartTime(
            part,
            float(means[number]),
            float(np.nanmax(interval[:, number])),
            int(runs[:, number].sum()),
        )
        for number, part in enumerate(parts)
    ]
