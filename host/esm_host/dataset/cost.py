"""Device time of measuring one more model, estimated from stored measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.campaign_metric import LATENCY
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import Store
from esm_protos.messages import Measurement, MeasureSpec, RunOrder

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class DeviceTime:
    """Device time of a model, from its number of runs and its load time.

    Attributes:
        runs: Mean number of runs of a model, warm-up included.
        load_ms: Mean duration of loading a model, ms.
    """

    runs: float
    load_ms: float

    def seconds(self, latency_ms: Floats) -> Floats:
        """Return the device time of models with these latencies, s, shape ``(n,)``."""
        return (self.runs * latency_ms + self.load_ms) / 1e3


def share_of_blocks(store: Store, spec: MeasureSpec, energy_s: float = 0.0) -> DeviceTime:
    """Return the device time of a model with its share of references and of repeated blocks.

    So the sum over all measured models is the time that the device was busy.

    Args:
        store: Store of the campaign.
        spec: Settings of a measurement.
        energy_s: Time per model for its energy, s; the same for fast and slow models.
    """
    measured = store.measurements()
    alone = _of_models(measured, spec)
    references = {a.key for a in store.references()}
    latency_ms = {
        each.model_id: float(np.mean(each.latency_ns)) / 1e6
        for each in measured
        if each.failure is None and each.model_id not in references
    }
    models_s = float(alone.seconds(np.array(list(latency_ms.values()))).sum())
    busy_s = sum(block.busy_ns for block in store.blocks()) / 1e9
    if not (models_s and busy_s):
        return alone
    in_energy_s = min(energy_s * len(measured), busy_s)
    share = (busy_s - in_energy_s) / models_s
    energy_ms = 1e3 * in_energy_s / len(latency_ms)
    return DeviceTime(share * alone.runs, share * alone.load_ms + energy_ms)


def device_times(store: Store, settings: MeasuringSettings) -> Callable[[Floats], Floats]:
    """Return the function from values of the leading metric to device times of models, s.

    Only a latency tells how long the runs take. By any other metric, all models take the mean
    device time so far.
    """

    def by_latency(latency_ms: Floats) -> Floats:
        return share_of_blocks(store, settings.spec, settings.energy_s).seconds(latency_ms)

    def mean(values: Floats) -> Floats:
        references = {a.key for a in store.references()}
        models = {m.model_id for m in store.measurements() if m.failure is None} - references
        busy_s = sum(block.busy_ns for block in store.blocks()) / 1e9
        return np.full(len(values), busy_s / max(len(models), 1))

    return by_latency if settings.lead == LATENCY else mean


def device_time(store: Store, spec: MeasureSpec) -> DeviceTime:
    """Return the device time of a model, averaged over all measurements.

    A store without measurements falls back to the runs of the spec.
    """
    return _of_models(store.measurements(), spec)


def runs_with_warmup(spec: MeasureSpec, counted: int) -> int:
    """Return the number of runs of a model with this number of counted runs."""
    per_visit = spec.runs_per_visit if spec.run_order is RunOrder.INTERLEAVED else spec.runs
    return counted + spec.warmup * math.ceil(counted / per_visit)


def _of_models(measurements: Sequence[Measurement], spec: MeasureSpec) -> DeviceTime:
    measured = [m for m in measurements if m.failure is None]
    counted = [len(measurement.latency_ns) for measurement in measured] or [spec.runs]
    load_ms = [measurement.load_ns / 1e6 for measurement in measured] or [0.0]
    runs = [runs_with_warmup(spec, n) for n in counted]
    return DeviceTime(float(np.mean(runs)), float(np.mean(load_ms)))
