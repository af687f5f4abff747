"""Estimate of a campaign's device time before it begins, from its smallest and largest network."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

from esm_host.dataset.settings import MeasuringSettings
from esm_host.transport.base import Profiler
from esm_models.space import SearchSpace
from esm_protos.messages import Block, MeasureSpec, Model, RunOrder

PROBE_RUNS = 5
"""Number of counted runs of each of the two networks."""


@dataclass(frozen=True)
class Estimate:
    """Estimate of a campaign's device time.

    Attributes:
        least_ms: Latency of the smallest network, ms.
        most_ms: Latency of the largest network, ms.
        model_s: Device time of a model between them, its share of references included, s. It is
            shorter if models are precise after fewer runs than allowed.
    """

    least_ms: float
    most_ms: float
    model_s: float


def estimate(
    profiler: Profiler, space: SearchSpace, settings: MeasuringSettings
) -> Estimate | None:
    """Return the estimate of a new campaign; None if the device measures neither network.

    Raises:
        DeviceError: the device is unreachable or refuses.
    """
    spec = settings.spec
    brief = replace(
        spec, runs=PROBE_RUNS, precision=0.0, references=False, sessions=1, long_visits=0
    )
    models = [Model(a.key, space.build(a)) for a in space.extremes()]
    result = profiler.measure(Block(uuid.uuid4().hex, brief, tuple(models)))
    if any(each.failure is not None for each in result.measurements):
        return None
    least_ms, most_ms = (float(each.latency_ns.mean()) / 1e6 for each in result.measurements)
    loads = [each.load_ns / 1e6 for each in result.measurements]
    of_model_ms = _runs(spec) * (least_ms + most_ms) / 2 + sum(loads) / 2
    share = (settings.block_size + settings.references) / settings.block_size
    return Estimate(least_ms, most_ms, share * of_model_ms / 1e3)


def _runs(spec: MeasureSpec) -> int:
    """Return the largest number of runs of a model, warm-up included."""
    if spec.run_order is not RunOrder.INTERLEAVED:
        return spec.runs + spec.warmup
    return spec.runs + spec.warmup * -(-spec.runs // spec.runs_per_visit)
