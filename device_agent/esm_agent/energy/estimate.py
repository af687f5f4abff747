"""Estimate of the energy of an inference from windows: arrays in, estimates out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from esm_protos.statistics import t_quantile

Floats = NDArray[np.float64]

IDLE = -1
"""Model of a window of rest."""
FEWEST = 5
"""Fewest windows of a model, and of rest, that give an interval."""
_STEPS = 20
"""Fewest steps of the counter in a window."""
_SURE = 0.99
_MARGIN = 1.2
"""Excess of the advised time over the expected one."""


class Window(NamedTuple):
    """Time between two readings of a counter.

    Attributes:
        model: Model that ran back to back, or :data:`IDLE`.
        start_s: Time of the first reading, seconds.
        seconds: Time between the readings.
        joules: Difference of the readings.
        runs: Number of inferences between them.
    """

    model: int
    start_s: float
    seconds: float
    joules: float
    runs: int


@dataclass(frozen=True, eq=False)
class EnergyEstimate:
    """Energy of an inference of one model.

    Attributes:
        gross_j: Energy per inference of each window, joules, shape ``(windows,)``.
        idle_j: Energy of the idle device in the same time, joules, shape ``(windows,)``.
        error_j: Standard error of the net energy, joules.
        watts: Mean power of the windows.
        window_j: Median energy of a window, joules.
    """

    gross_j: Floats
    idle_j: Floats
    error_j: float
    watts: float
    window_j: float

    @property
    def net_j(self) -> float:
        """Energy per inference without that of the idle device, joules."""
        return float((self.gross_j - self.idle_j).mean())

    def half_j(self, confidence: float = 0.95) -> float:
        """Return the half-width of the net energy's interval, joules."""
        return t_quantile(len(self.gross_j) - 1, confidence) * self.error_j

    def share(self, confidence: float = 0.95) -> float:
        """Return the relative half-width of the interval; infinite without a net energy."""
        return self.half_j(confidence) / self.net_j if self.net_j > 0 else math.inf

    def problem(self, precision: float, resolution_j: float, energy_s: float) -> tuple[str, float]:
        """Return why the energy is unresolved, empty if it is stable, and the time it needs.

        The 99 % interval decides. With few windows, that of 95 % is too often narrow by chance.

        Args:
            precision: Largest relative half-width of a stable energy.
            resolution_j: Step of the counter, joules.
            energy_s: Time per model that was measured, seconds.

        Returns:
            Reason, and the time per model that would resolve it, seconds; 0: unknown.
        """
        if self.window_j < _STEPS * resolution_j:
            more = _STEPS * resolution_j / self.window_j if self.window_j else 0.0
            return (
                f"windows of {self.window_j:.3g} J have fewer than {_STEPS} of the sensor's steps "
                f"of {resolution_j:.3g} J",
                more * energy_s * _MARGIN,
            )
        share = self.share(_SURE)
        if share > 1:
            return "it cannot be told from that of the idle device", 0.0
        if share > precision:
            return (
                f"its 99 % interval of ±{share:.1%} is wider than {precision:.1%}",
                (share / precision) ** 2 * energy_s * _MARGIN,
            )
        return "", 0.0


def estimate(windows: Sequence[Window], model: int) -> EnergyEstimate | None:
    """Return the energy of a model's inferences.

    The power of the idle device at a window is interpolated between the nearest windows of rest,
    so that it may change. The error is that of the windows' mean. It has the variance that windows
    share because they use the same windows of rest.

    Args:
        windows: Windows in time order.
        model: The model.

    Returns:
        None with fewer than :data:`FEWEST` windows of the model or of rest.
    """
    own = [each for each in windows if each.model == model]
    rests = [each for each in windows if each.model == IDLE]
    if min(len(own), len(rests)) < FEWEST:
        return None
    seconds, joules, runs = (np.array([each[i] for each in own], dtype=float) for i in (2, 3, 4))
    at, idle_at = _middles(own), _middles(rests)
    idle_w = np.array([each.joules / each.seconds for each in rests])
    weights = _interpolation(at, idle_at)
    gross, idle = joules / runs, weights @ idle_w * seconds / runs
    net, count = gross - idle, len(own)
    # Of the mean of equally correlated values: s^2 / n, and their mean covariance.
    per_watt = weights * (seconds / runs)[:, None]
    sums = per_watt.sum(axis=0)
    shared = float(sums @ sums - (per_watt**2).sum()) / (count * (count - 1))
    variance = float(net.var(ddof=1)) / count + _noise(idle_w, idle_at) * shared
    return EnergyEstimate(
        gross,
        idle,
        math.sqrt(variance),
        float(joules.sum() / seconds.sum()),
        float(np.median(joules)),
    )


def _middles(windows: Sequence[Window]) -> Floats:
    return np.array([each.start_s + each.seconds / 2 for each in windows])


def _interpolation(at: Floats, known: Floats) -> Floats:
    """Return the weights of known times in a linear interpolation, shape ``(at, known)``."""
    after = np.clip(np.searchsorted(known, at), 1, len(known) - 1)
    share = np.clip((at - known[after - 1]) / (known[after] - known[after - 1]), 0.0, 1.0)
    weights = np.zeros((len(at), len(known)))
    rows = np.arange(len(at))
    weights[rows, after - 1], weights[rows, after] = 1 - share, share
    return weights


def _noise(power_w: Floats, at: Floats) -> float:
    """Return the variance of the power of single windows of rest, from that between neighbours."""
    share = (at[1:-1] - at[:-2]) / (at[2:] - at[:-2])
    off = power_w[1:-1] - (1 - share) * power_w[:-2] - share * power_w[2:]
    return float(np.mean(off**2 / (1 + share**2 + (1 - share) ** 2)))
