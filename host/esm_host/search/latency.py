"""Latency on one device as a quantity to search by."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import norm

from esm_host.search.front import Floats
from esm_host.search.genes import RowIndex
from esm_models.space import Codes

Predict = Callable[[Codes, float], tuple[Floats, Floats]]
"""Function from codes and a probability to latencies and their upper bounds, ms, ``(n,)`` each."""

LATENCY, AT_MOST = "latency_ms", "latency_at_most_ms"
"""Names of the quantities. With several devices: ``DEVICE.latency_ms``."""


def quantity(name: str, device: str = "") -> str:
    """Return the name of a quantity, prefixed with the device if there are several."""
    return f"{device}.{name}" if device else name


def measured_at_most(latency_ms: Floats, interval: Floats, probability: float) -> Floats:
    """Return upper bounds of measured latencies at a probability, ``(n,)``.

    Args:
        latency_ms: Measured latencies, ms, ``(n,)``.
        interval: Half-width of the 95 % confidence interval of their logarithms, ``(n,)``.
        probability: Probability that a latency is at most the bound.
    """
    share = float(norm.ppf(probability) / norm.ppf(0.975))
    return np.asarray(latency_ms * np.exp(share * interval))


class LatencyMeasure:
    """Measure of the latency and its upper bound: measured where known, else predicted.

    The quantities are :data:`LATENCY` and :data:`AT_MOST`. With a probability below a half, the
    search is optimistic: a predicted latency is then at most its bound.

    Args:
        predict: Predictor of architectures that were not measured.
        codes: Measured architectures, ``(m, *code_shape)``.
        latency_ms: Their latencies, ms, ``(m,)``; NaN where the measurement failed.
        at_most_ms: Upper bounds of these, ms, ``(m,)``; NaN where the measurement failed.
        probability: Probability that a latency is at most its bound.
        device: Name of the device if there are several.
    """

    def __init__(
        self,
        predict: Predict,
        codes: Codes,
        latency_ms: Floats,
        at_most_ms: Floats,
        probability: float,
        device: str = "",
    ) -> None:
        self._predict = predict
        self._measured = np.stack([latency_ms, at_most_ms])
        self._rows = RowIndex(codes)
        self._probability = probability
        self._optimistic = probability < 0.5
        self._names = quantity(LATENCY, device), quantity(AT_MOST, device)

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        expected, at_most = self._predict(codes, self._probability)
        found = np.stack([np.minimum(expected, at_most) if self._optimistic else expected, at_most])
        rows = self._rows(codes)
        there = rows >= 0
        found[:, there] = self._measured[:, rows[there]]
        return dict(zip(self._names, found, strict=True))
