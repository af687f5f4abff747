"""Latency on one device as a quantity to search by: measured where it was, else predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from scipy.stats import norm

from esm_host.search.front import Floats
from esm_host.search.genes import Rows
from esm_models.space import Codes

Predict = Callable[[Codes, float], tuple[Floats, Floats]]
"""Latencies of codes, ms, ``(n,)``, and what they are at most with that probability, ``(n,)``."""

LATENCY, AT_MOST = "latency_ms", "latency_at_most_ms"
"""Names of the quantities; of several devices ``DEVICE.latency_ms``."""


def quantity(name: str, device: str = "") -> str:
    """A quantity's name, of one of several devices if it is given."""
    return f"{device}.{name}" if device else name


def measured_at_most(latency_ms: Floats, interval: Floats, probability: float) -> Floats:
    """What measured latencies are at most with a probability, ``(n,)``.

    Args:
        interval: half-width of the 95 % interval of the latencies' logarithms, ``(n,)``.
    """
    share = float(norm.ppf(probability) / norm.ppf(0.975))
    return np.asarray(latency_ms * np.exp(share * interval))


class Latency:
    """Quantities :data:`LATENCY`, and :data:`AT_MOST` with a probability. Below a half it is what
    an architecture may come to if it is lucky, and the latency as well: so hope searches.

    Args:
        predict: of what was not measured.
        codes: what was measured, ``(m, *code_shape)``.
        latency_ms, at_most_ms: of these, ``(m,)``; NaN of what failed.
        probability: of the prediction being at most that.
        device: where there are several.
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
        self._rows = Rows(codes)
        self._probability = probability
        self._hopes = probability < 0.5
        self._names = quantity(LATENCY, device), quantity(AT_MOST, device)

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        expected, at_most = self._predict(codes, self._probability)
        found = np.stack([np.minimum(expected, at_most) if self._hopes else expected, at_most])
        rows = self._rows(codes)
        there = rows >= 0
        found[:, there] = self._measured[:, rows[there]]
        return dict(zip(self._names, found, strict=True))
