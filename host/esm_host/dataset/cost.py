"""What measuring one more model costs the device, learnt from those that it measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.store import Store
from esm_protos.messages import MeasureSpec, RunOrder


@dataclass(frozen=True)
class DeviceTime:
    """Device time of a model: so many runs, and loading it.

    Attributes:
        runs: of a model, uncounted ones too, on average.
        load_ms: mean duration of loading a model.
    """

    runs: float
    load_ms: float

    def seconds(self, latency_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of models with these latencies, ``(n,)``."""
        return (self.runs * latency_ms + self.load_ms) / 1e3


def device_time(store: Store, spec: MeasureSpec) -> DeviceTime:
    """From all models that were measured; by the spec alone where none was."""
    measured = [m for m in store.measurements() if m.failure is None]
    counted = [len(measurement.latency_ns) for measurement in measured] or [spec.runs]
    per_visit = spec.runs_per_visit if spec.protocol is RunOrder.INTERLEAVED else spec.runs
    runs = [n + spec.warmup * math.ceil(n / per_visit) for n in counted]
    load_ms = [measurement.load_ns / 1e6 for measurement in measured] or [0.0]
    return DeviceTime(float(np.mean(runs)), float(np.mean(load_ms)))
