"""Estimate of a campaign's device time before it begins, from its smallest and largest network."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

import numpy as np

from esm_host.dataset.cost import DeviceTime, runs_with_warmup
from esm_host.dataset.settings import MeasuringSettings
from esm_host.transport.base import Profiler
from esm_models.space import SearchSpace
from esm_protos.messages import Block, Model

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
    """Return the estimate of a new campaign; None if the device cannot measure both networks.

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
    load_ms = float(np.mean([each.load_ns for each in result.measurements])) / 1e6
    alone = DeviceTime(runs_with_warmup(spec, spec.runs), load_ms)
    model_s = float(alone.seconds(np.array([least_ms, most_ms])).mean())
    share = (settings.block_size + settings.references) / settings.block_size
    return Estimate(least_ms, most_ms, share * model_s)
