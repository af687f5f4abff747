"""Paces of the devices of a group, from the reference models that all of them measured.

A device's pace is the ratio of its latencies to another's. It is divided out of the data set.
Deviations of single reference models from that pace remain.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.evaluation.quality import median_of
from esm_protos.statistics import t_quantile

_LEAST_REPEATS = 3  # smallest number of blocks for an estimate of their scatter


@dataclass(frozen=True, eq=False)
class Readings:
    """Measurements of the reference models on a device.

    Attributes:
        latency_ms: Latencies, ms, ``(blocks, references)``; NaN where one failed.
        interval: Half-widths of their 95 % confidence intervals, as shares, ``(blocks,
            references)``.
    """

    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]


@dataclass(frozen=True)
class DevicePace:
    """Pace of a device, relative to the median one of its group.

    Attributes:
        against: Name of the median device.
        ratio: Geometric mean of the latencies' ratios; 1.1 for a device that takes 10 % longer. NaN
            if no reference model was measured on all devices.
        interval: Half-width of the ratio's 95 % confidence interval, as a share; infinite if
            unknown.
        stray: Deviation of the reference model furthest from the ratio, as a share.
        stray_interval: Half-width of its 95 % confidence interval, as a share.
    """

    against: str
    ratio: float
    interval: float
    stray: float
    stray_interval: float

    def beyond(self, tolerance: float) -> bool:
        """Return whether the pace differs by more than the tolerance plus its interval."""
        return not abs(np.log(self.ratio)) - self.interval <= np.log1p(tolerance)

    def strays_beyond(self, tolerance: float) -> bool:
        """Return whether a single reference model deviates by more than that."""
        return not self.stray - self.stray_interval <= tolerance


def compare_devices(
    readings: Mapping[str, Readings], voters: Collection[str]
) -> dict[str, DevicePace]:
    """Return the pace of every device by name.

    Args:
        readings: Measurements of the devices by name.
        voters: Devices from which the median one is taken.
    """
    names = list(readings)
    means = np.stack([_mean(np.log(readings[name].latency_ms)) for name in names])
    errors = [_errors(readings[name]) for name in names]
    usable = np.isfinite(means).all(axis=0)
    if not usable.any():
        return {name: DevicePace(names[0], np.nan, np.inf, np.nan, np.inf) for name in names}
    levels = means[:, usable].mean(axis=1)
    candidates = [index for index, name in enumerate(names) if name in voters]
    median = candidates[median_of(levels[candidates])]
    paces = {}
    for index, name in enumerate(names):
        ratios = (means[index] - means[median])[usable]
        strays = np.abs(np.expm1(ratios - ratios.mean()))
        worst = int(strays.argmax())
        both = [errors[index], errors[median]] if index != median else []
        paces[name] = DevicePace(
            names[median],
            float(np.exp(ratios.mean())),
            _together([level for level, _ in both]),
            float(strays[worst]),
            _together([each[usable][worst] for _, each in both]),
        )
    return paces


def _errors(readings: Readings) -> tuple[float, NDArray[np.float64]]:
    """Return half-widths for the mean of all reference models, and for each, ``(references,)``.

    They are those of the runs or of repeated blocks, whichever are larger.
    """
    logs = np.log(readings.latency_ms)
    known = np.isfinite(logs)
    blocks = known.sum(axis=0)
    squares = np.where(known, readings.interval, 0.0) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.sqrt(squares.sum(axis=0)) / blocks
    used = blocks > 0
    level = float(np.sqrt((each[used] ** 2).sum()) / max(used.sum(), 1))
    if len(logs) < _LEAST_REPEATS:
        return level, each
    width = t_quantile(len(logs) - 1) / np.sqrt(len(logs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "Degrees of freedom <= 0"
        scatter_each = width * np.nan_to_num(np.nanstd(logs, axis=0, ddof=1))
        scatter = width * float(np.nan_to_num(np.nanstd(_mean(logs.T), ddof=1)))
    return (
        max(level, scatter) if np.isfinite(level) else scatter,
        np.where(np.isfinite(each), np.maximum(each, scatter_each), scatter_each),
    )


def _together(intervals: list[float]) -> float:
    return float(np.sqrt(sum(interval**2 for interval in intervals)))


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each column, ignoring NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "Mean of empty slice"
        return np.asarray(np.nanmean(values, axis=0))
