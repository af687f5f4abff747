"""Estimate of a campaign's device time: from two networks first, then from its own blocks."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.cost import DeviceTime, runs_with_warmup, share_of_blocks
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import Store
from esm_host.transport.base import Profiler
from esm_models.space import SearchSpace
from esm_protos.messages import Block, Model

PROBE_RUNS = 5
"""Number of counted runs of each of the two networks."""
_REFERENCES_SHARE = 0.1
"""Share of a long block's time in which the agent times its own reference models."""
_FEWER_RUNS = 3
"""Factor by which the runs of a precise model may be fewer than allowed."""


@dataclass(frozen=True)
class Estimate:
    """Estimate of a campaign's device time.

    Attributes:
        least_ms: Latency of the smallest network, ms: the fastest run of the probe.
        most_ms: Latency of the largest network, ms; the same.
        model_s: Device time of a model between them, with its share of references and of what a
            block takes besides, s: with all allowed runs, each as long as the slowest of the
            probe.
        model_low_s: Device time with the fastest runs, and fewer of them if models end at a
            precision, s.
        is_measured: Whether the values are those of measured blocks.
    """

    least_ms: float
    most_ms: float
    model_s: float
    model_low_s: float
    is_measured: bool = False


def estimate(
    profiler: Profiler, space: SearchSpace, settings: MeasuringSettings, first: int
) -> Estimate | None:
    """Return the estimate of a new campaign; None if the device cannot measure both networks.

    Args:
        profiler: Device.
        space: Search space of the campaign.
        settings: Settings of measuring.
        first: Number of models of the first round.

    Raises:
        DeviceError: the device is unreachable or refuses.
    """
    spec = settings.spec
    brief = replace(spec, runs=PROBE_RUNS, precision=0.0, sessions=1, long_visits=0)
    models = [Model(a.key, space.build(a)) for a in space.extremes()]
    result = profiler.measure(Block(uuid.uuid4().hex, brief, tuple(models)))
    if any(each.failure is not None for each in result.measurements):
        return None
    runs_ms = np.array([each.latency_ns for each in result.measurements]) / 1e6
    load_ms = float(np.mean([each.load_ns for each in result.measurements])) / 1e6
    probe = DeviceTime(runs_with_warmup(brief, PROBE_RUNS), load_ms)
    # Short blocks take it too: the agent loads its reference models, and visits each a few times.
    besides_s = max(result.busy_ns / 1e9 - float(probe.seconds(runs_ms.mean(axis=1)).sum()), 0.0)
    size = min(settings.block_size, first)

    def model_s(runs: int, latency_ms: NDArray[np.float64]) -> float:
        time = DeviceTime(runs_with_warmup(spec, runs), load_ms)
        models_s = (size + settings.references) * float(time.seconds(latency_ms).mean())
        share_s = _REFERENCES_SHARE * models_s if result.references else 0.0
        energy_s = (size + settings.references) * settings.energy_s
        return (models_s + max(besides_s, share_s) + energy_s) / size

    # Another program can delay most of five runs, by more than the networks differ.
    least_ms, most_ms = runs_ms.min(axis=1).tolist()
    fewest = -(-spec.runs // _FEWER_RUNS) if spec.precision else spec.runs
    return Estimate(
        least_ms,
        most_ms,
        model_s(spec.runs, runs_ms.max(axis=1)),
        model_s(fewest, runs_ms.min(axis=1)),
    )


def estimate_of_blocks(store: Store, settings: MeasuringSettings) -> Estimate | None:
    """Return the estimate of a campaign with measured blocks; None without measured models."""
    references = {a.key for a in store.references()}
    measured = [
        float(each.latency_ns.mean()) / 1e6
        for each in store.measurements()
        if each.failure is None and each.model_id not in references
    ]
    if not measured:
        return None
    latency_ms = np.array(measured)
    time = share_of_blocks(store, settings.spec, settings.energy_s)
    model_s = float(time.seconds(latency_ms).mean())
    return Estimate(latency_ms.min(), latency_ms.max(), model_s, model_s, is_measured=True)
