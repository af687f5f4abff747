"""Quality control by reference models, and block factors (ESM, II-C3).

Every block holds the same few reference models. Their common change in a block is the device's
pace, the block factor. The rest is the deviation of each reference model. If the agent timed its
own reference models, latencies are at the device's usual pace already. Deviations are then relative
to the other blocks. For several devices of one kind, levels scale every block to one of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Quality:
    """Quality of blocks, with arrays in their order.

    Attributes:
        factors: Pace in each block: 1 at the device's median, 1.1 if 10 % slower. For several
            devices, 1 is the median of the median one (:func:`median_of`). With the agent's
            reference models, 1 is the usual pace of the block's device.
        deviations: Deviation of each reference model from its level on the block's device, as a
            share, ``(blocks, references)``.
        levels: Slowness of the block's device relative to the median one, ``(blocks,)``: 1.1 if 10
            % slower.
        explained: Expected deviation of each reference model, as a share, ``(blocks, references)``.
    """

    factors: NDArray[np.float64]
    deviations: NDArray[np.float64]
    levels: NDArray[np.float64]
    explained: NDArray[np.float64]

    @property
    def worst(self) -> NDArray[np.float64]:
        """Largest deviation in each block; infinite where a reference model failed."""
        worst: NDArray[np.float64] = np.nan_to_num(self.deviations, nan=np.inf).max(
            axis=1, initial=0.0
        )
        return worst

    def limits(self, tolerance: float) -> NDArray[np.float64]:
        """Return the deviation of each reference model above which its block fails, as a share.

        It is the larger of the tolerance and the expected deviation, ``(blocks, references)``.
        """
        return np.maximum(np.nan_to_num(self.explained), tolerance)

    def straying(self, tolerance: float) -> NDArray[np.float64]:
        """Return the largest deviation in each block above the tolerance and the expected one.

        It is 0 if there is none, and infinite where a reference model failed, ``(blocks,)``.
        """
        deviations = np.nan_to_num(self.deviations, nan=np.inf)
        straying = np.where(deviations > self.limits(tolerance), deviations, 0.0)
        return np.asarray(straying.max(axis=1, initial=0.0), dtype=np.float64)


def judge(
    references_ms: NDArray[np.float64],
    common_pace: bool,
    devices: NDArray[np.int64] | None = None,
    typical: NDArray[np.bool_] | None = None,
) -> Quality:
    """Fit ``latency[block, reference] = pace[block] * base[device, reference]``.

    The fit uses medians on both sides (Tukey's median polish of the logarithms). A single deviating
    reference model then affects neither the block factor nor its own base. The devices' bases are
    fitted in the same way to ``level[device] * base[reference]``. A device counts once, however
    many blocks it measured. Its blocks are judged only against its own.

    Args:
        references_ms: Latencies, ms, ``(blocks, references)``; NaN where a reference model failed.
        common_pace: False for sequential blocks, in which reference models share no pace.
            Deviations are then not corrected.
        devices: Number of the device of each block, ``(blocks,)``; None for a single device.
        typical: Blocks whose median pace is 1, ``(blocks,)``. None, and for a device without any,
            means all.
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
        references_ms: Latencies at the usual pace, ms, ``(blocks, references)``; NaN where a
            reference model failed.
        explained: Expected deviation between blocks, as a share, ``(blocks, references)``.
        factors: Pace in each block, ``(blocks,)``.
        devices: Number of the device of each block, ``(blocks,)``.
        typical: Blocks that define the level of a reference model, ``(blocks,)``; all of them for a
            device without any.
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
    """Return the logarithm of each device's slowness relative to the median one, ``(devices,)``."""
    levels, _ = _polish(bases, True, np.ones(len(bases), dtype=bool))
    return np.asarray(levels - levels[median_of(levels)])


def median_of(levels: NDArray[np.float64]) -> int:
    """Return the index of the median device.

    For an even number it is the faster of the two in the middle, so that figures are those of an
    existing device.
    """
    return int(np.argsort(levels, kind="stable")[(len(levels) - 1) // 2])


def _polish(
    logs: NDArray[np.float64], common_pace: bool, typical: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the median of each row and of each column; NaN where there are no values.

    The rows' medians are 0 at the median of the typical rows, or of all rows if there are none.
    """
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
    """Return the median along an axis, ignoring NaN; NaN without values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "All-NaN slice"
        return np.asarray(np.nanmedian(values, axis=axis))
