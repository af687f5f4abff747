"""Whether the devices of a group are alike in fact, by the references that all of them measured.

Two figures say so: a device's pace, the ratio of its latencies to another's, which is divided out
of the data set, and by how much single references stray from that pace, which nothing divides out.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.evaluation.quality import median_of
from esm_protos.statistics import t_quantile

_LEAST_REPEATS = 3  # from so many blocks on they tell their own scatter


@dataclass(frozen=True, eq=False)
class Readings:
    """The references on one device.

    Attributes:
        latency_ms: ``(blocks, references)``, NaN where one failed.
        interval: half-widths of the 95 % intervals, as shares, ``(blocks, references)``.
    """

    latency_ms: NDArray[np.float64]
    interval: NDArray[np.float64]


@dataclass(frozen=True)
class Pace:
    """A device against the median one of its group.

    Attributes:
        against: name of the median device.
        ratio: of latencies, averaged over the references (geometric mean): 1.1 when it takes a
            tenth longer. NaN when no reference was measured on all devices.
        interval: half-width of the ratio's 95 % interval, as a share; infinite when unknown.
        stray: by how much the reference that strays most lies off the ratio, as a share.
        stray_interval: half-width of that one's 95 % interval, as a share.
    """

    against: str
    ratio: float
    interval: float
    stray: float
    stray_interval: float

    def beyond(self, tolerance: float) -> bool:
        """Whether it differs by more than is tolerated and the interval explains."""
        return not abs(np.log(self.ratio)) - self.interval <= np.log1p(tolerance)

    def strays_beyond(self, tolerance: float) -> bool:
        """Likewise of a single reference."""
        return not self.stray - self.stray_interval <= tolerance


def compare(readings: Mapping[str, Readings], voters: Collection[str]) -> dict[str, Pace]:
    """Every device's pace, by name.

    Args:
        voters: the devices of which the median one is taken.
    """
    names = list(readings)
    means = np.stack([_mean(np.log(readings[name].latency_ms)) for name in names])
    errors = [_errors(readings[name]) for name in names]
    usable = np.isfinite(means).all(axis=0)
    if not usable.any():
        return {name: Pace(names[0], np.nan, np.inf, np.nan, np.inf) for name in names}
    levels = means[:, usable].mean(axis=1)
    candidates = [index for index, name in enumerate(names) if name in voters]
    median = candidates[median_of(levels[candidates])]
    paces = {}
    for index, name in enumerate(names):
        ratios = (means[index] - means[median])[usable]
        strays = np.abs(np.expm1(ratios - ratios.mean()))
        worst = int(strays.argmax())
        both = [errors[index], errors[median]] if index != median else []
        paces[name] = Pace(
            names[median],
            float(np.exp(ratios.mean())),
            _together([level for level, _ in both]),
            float(strays[worst]),
            _together([each[usable][worst] for _, each in both]),
        )
    return paces


def _errors(readings: Readings) -> tuple[float, NDArray[np.float64]]:
    """Half-widths for the mean of all references, and for each, ``(references,)``.

    What the runs say, or what repeated blocks say of themselves, whichever is more.
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
    """Of each column, without NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "Mean of empty slice"
        return np.asarray(np.nanmean(values, axis=0))
