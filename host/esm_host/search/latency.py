"""Latency, energy and memory on one device as quantities to search by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from esm_host.dataset import campaign_metric as metrics
from esm_host.dataset.campaign_metric import CampaignMetric
from esm_host.search.front import Floats
from esm_host.search.genes import RowIndex
from esm_host.search.problem import Measure
from esm_models.space import Codes

Predict = Callable[[Codes, float], tuple[Floats, Floats]]
"""Function from codes and a probability to latencies and their upper bounds, ms, ``(n,)`` each."""

LATENCY, AT_MOST = metrics.LATENCY.key, metrics.LATENCY.at_most
"""Names of the latency and its bound. With several devices: ``DEVICE.latency_ms``."""
ENERGY_DELAY = "energy_delay_uj_s"
"""Name of the energy-delay product, in microjoule seconds."""


def quantity(name: str, device: str = "") -> str:
    """Return the name of a quantity, prefixed with the device if there are several."""
    return f"{device}.{name}" if device else name


def bounds_of(name: str) -> str:
    """Return the name of the quantity with the upper bounds of another; its own without any."""
    device, dot, plain = name.rpartition(".")
    known = {each.key: each.at_most for each in metrics.CAMPAIGN_METRICS.values()}
    return f"{device}{dot}{known.get(plain, plain)}"


def bounded_by(name: str) -> str:
    """Return the name of the quantity that another one bounds; its own if it bounds none."""
    device, dot, plain = name.rpartition(".")
    known = {each.at_most: each.key for each in metrics.CAMPAIGN_METRICS.values()}
    return f"{device}{dot}{known.get(plain, plain)}"


def measured_at_most(latency_ms: Floats, interval: Floats, probability: float) -> Floats:
    """Return upper bounds of measured latencies at a probability, ``(n,)``.

    Args:
        latency_ms: Measured latencies, ms, or values of another metric, ``(n,)``.
        interval: Half-width of the 95 % confidence interval of their logarithms, ``(n,)``.
        probability: Probability that a latency is at most the bound.
    """
    share = float(norm.ppf(probability) / norm.ppf(0.975))
    return np.asarray(latency_ms * np.exp(share * interval))


class LatencyMeasure:
    """Measure of a metric and its upper bound: measured where known, else predicted.

    The quantities of the latency are :data:`LATENCY` and :data:`AT_MOST`. With a probability below
    a half, the search is optimistic: a predicted latency is then at most its bound.

    Args:
        predict: Predictor of architectures that were not measured.
        codes: Measured architectures, ``(m, *code_shape)``.
        latency_ms: Their latencies, ms, ``(m,)``; NaN where the measurement failed.
        at_most_ms: Upper bounds of these, ms, ``(m,)``; NaN where the measurement failed.
        probability: Probability that a latency is at most its bound.
        device: Name of the device if there are several.
        metric: The metric; arguments of another one than the latency have its unit.
    """

    def __init__(
        self,
        predict: Predict,
        codes: Codes,
        latency_ms: Floats,
        at_most_ms: Floats,
        probability: float,
        device: str = "",
        metric: CampaignMetric = metrics.LATENCY,
    ) -> None:
        self._predict = predict
        self._measured = np.stack([latency_ms, at_most_ms])
        self._rows = RowIndex(codes)
        self._probability = probability
        self._optimistic = probability < 0.5
        self._names = quantity(metric.key, device), quantity(metric.at_most, device)

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        expected, at_most = self._predict(codes, self._probability)
        found = np.stack([np.minimum(expected, at_most) if self._optimistic else expected, at_most])
        rows = self._rows(codes)
        there = rows >= 0
        found[:, there] = self._measured[:, rows[there]]
        return dict(zip(self._names, found, strict=True))


def energy_delay(values: Mapping[str, Any] | pd.DataFrame, device: str = "") -> dict[str, Any]:
    """Return the energy-delay product by its name; nothing without an energy.

    Args:
        values: Latencies, ms, and energies, mJ, by the names of the device's quantities.
        device: Name of the device if there are several.
    """
    latency, energy = (quantity(name, device) for name in (LATENCY, metrics.ENERGY.key))
    if energy not in values:
        return {}
    return {quantity(ENERGY_DELAY, device): values[latency] * values[energy]}


class DeviceMeasure:
    """Measure of all metrics of one device, and of its energy-delay product.

    Args:
        parts: Measures of the metrics.
        device: Name of the device if there are several.
    """

    def __init__(self, parts: Sequence[Measure], device: str = "") -> None:
        self._parts = parts
        self._device = device

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        found: dict[str, Floats] = {}
        for part in self._parts:
            found.update(part(codes))
        return found | energy_delay(found, self._device)
