"""Quality control by reference models, and the block factors that they reveal (ESM, II-C3).

Every block holds the same few reference models. What they have in common in a block is the
device's pace at that time, the block's factor; what is left, per reference, is how far it strays.
Where the agent timed reference models of its own along, latencies are at the device's usual pace
already, and a reference strays by what it then takes more or less than in the other blocks.
Where several devices of one kind measured, levels carry every block to the scale of one of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Quality:
    """Judgement of blocks, arrays in their order.

    Attributes:
        factors: the pace in each block: 1 at the device's median, 1.1 when a tenth slower. Of
            several devices, 1 at the median of the median one (:func:`median_of`). With the
            agent's reference models 1 at the usual pace of the block's device.
        deviations: by how much each reference strays from what it is on the block's device,
            ``(blocks, references)``, as a share.
        levels: how much slower the block's device is than the median one, ``(blocks,)``: 1.1 when
            a tenth slower.
        explained: by how much references stray of their own, ``(blocks, references)``, as a share.
    """

    factors: NDArray[np.float64]
    deviations: NDArray[np.float64]
    levels: NDArray[np.float64]
    explained: NDArray[np.float64]

    @property
    def worst(self) -> NDArray[np.float64]:
        """Largest deviation in each block; infinite where a reference failed."""
        worst: NDArray[np.float64] = np.nan_to_num(self.deviations, nan=np.inf).max(
            axis=1, initial=0.0
        )
        return worst

    def straying(self, tolerance: float) -> NDArray[np.float64]:
        """Return the largest deviation in each block above the tolerance and above what is
        explained; 0 where there is none, infinite where a reference failed, ``(blocks,)``."""
        deviations = np.nan_to_num(self.deviations, nan=np.inf)
        limit = np.maximum(np.nan_to_num(self.explained), tolerance)
        straying = np.where(deviations > limit, deviations, 0.0)
        return np.asarray(straying.max(axis=1, initial=0.0), dtype=np.float64)


def judge(
    references_ms: NDArray[np.float64],
    common_pace: bool,
    devices: NDArray[np.int64] | None = None,
    typical: NDArray[np.bool_] | None = None,
) -> Quality:
    """Fits ``latency[block, reference] = pace[block] * base[device, reference]``.

    Medians on both sides (Tukey's median polish of the logarithms), so that one straying
    reference spoils neither the factor of its block nor its own base. Each device's bases are
    fitted in the same way to ``level[device] * base[reference]``: a device counts once, however
    many blocks it measured, and is held against nothing but itself when a block is judged.

    Args:
        references_ms: ``(blocks, references)``, NaN where a reference failed.
        common_pace: False for blocks whose models were measured one after the other: nothing
            is common to them then but their device, and the deviation is the plain one.
        devices: number of the device of each block, ``(blocks,)``; one for all unless given.
        typical: blocks whose median pace is 1, ``(blocks,)``; of a device that has none of them,
            and unless given, all are.
    """
    with np.errstate(invalid="ignore"):
        logs = np.log(references_ms)
    blocks = len(logs)
    pace = np.zeros(blocks)
    if logs.size == 0:
        return Quality(np.exp(pace), logs, np.exp(pace), logs)
    of = np.zeros(blocks, dtype=np.int64) if devices is None else devices
    typical = np.ones(blocks, dtype=bool) if typical is None else typical
    names = np.unique(of)
    bases = np.full((len(names), logs.shape[1]), np.nan)
    deviations = np.empty_like(logs)
    for row, name in enumerate(names):
        own = of == name
        pace[own], bases[row] = _polish(logs[own], common_pace, typical[own])
        deviations[own] = np.abs(np.expm1(logs[own] - pace[own, None] - bases[row]))
    levels = _levels(bases)[np.searchsorted(names, of)]
    return Quality(np.exp(pace + levels), deviations, np.exp(levels), np.zeros_like(deviations))


def judge_at_usual(
    references_ms: NDArray[np.float64],
    explained: NDArray[np.float64],
    factors: NDArray[np.float64],
    devices: NDArray[np.int64],
    typical: NDArray[np.bool_],
) -> Quality:
    """Return the quality of blocks whose latencies are at the usual pace of their device.

    Args:
        references_ms: at the usual pace, ``(blocks, references)``, NaN where a reference failed.
        explained: by how much each may differ between blocks, likewise, as a share.
        factors: the pace in each block, ``(blocks,)``.
        devices: number of the device of each block, ``(blocks,)``.
        typical: blocks that tell what a reference is on their device, ``(blocks,)``; all do on a
            device that has none of them.
    """
    with np.errstate(invalid="ignore"):
        logs = np.log(references_ms)
    if logs.size == 0:
        return Quality(factors, logs, np.ones(len(logs)), logs)
    names = np.unique(devices)
    bases = np.full((len(names), logs.shape[1]), np.nan)
    deviations = np.empty_like(logs)
    for row, name in enumerate(names):
        own = devices == name
        counted = own & typical if (own & typical).any() else own
        bases[row] = median(logs[counted], axis=0)
        deviations[own] = np.abs(np.expm1(logs[own] - bases[row]))
    levels = _levels(bases)[np.searchsorted(names, devices)]
    return Quality(factors, deviations, np.exp(levels), explained)


def _levels(bases: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms of how much slower each device is than the median one, ``(devices,)``."""
    levels, _ = _polish(bases, True, np.ones(len(bases), dtype=bool))
    return np.asarray(levels - levels[median_of(levels)])


def median_of(levels: NDArray[np.float64]) -> int:
    """Index of the median device; of an even number, the faster of the two in the middle.

    One of them and no mean of two: the figures are then those of a device that exists.
    """
    return int(np.argsort(levels, kind="stable")[(len(levels) - 1) // 2])


def _polish(
    logs: NDArray[np.float64], common_pace: bool, typical: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of each row, 0 in the middle of the typical ones, or of all if there are none, and of
    each column; NaN where nothing is known."""
    pace = np.zeros(len(logs))
    typical = typical if typical.any() else ~typical
    base = median(logs, axis=0)
    if common_pace:
        for _ in range(10):
            pace = np.nan_to_num(median(logs - base, axis=1))
            pace -= np.median(pace[typical])
            base = median(logs - pace[:, None], axis=0)
    return pace, base


def median(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Median along an axis, without NaN; NaN where nothing is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "All-NaN slice"
        return np.asarray(np.nanmedian(values, axis=axis))
