"""Quality control by reference models, and the block factors that they reveal (ESM, II-C3).

Every block holds the same few reference models. What they have in common in a block is the
device's pace at that time, the block's factor; what is left, per reference, is how far it strays.
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
        factors: the device's pace in each block: 1 at its median, 1.1 when a tenth slower.
        deviations: by how much each reference strays, ``(blocks, references)``, as a share.
    """

    factors: NDArray[np.float64]
    deviations: NDArray[np.float64]

    @property
    def worst(self) -> NDArray[np.float64]:
        """Largest deviation in each block; infinite where a reference failed."""
        worst: NDArray[np.float64] = np.nan_to_num(self.deviations, nan=np.inf).max(
            axis=1, initial=0.0
        )
        return worst


def judge(references_ms: NDArray[np.float64], common_pace: bool) -> Quality:
    """Fits ``latency[block, reference] = pace[block] * base[reference]`` and reports what is left.

    Medians on both sides (Tukey's median polish of the logarithms), so that one straying
    reference spoils neither the factor of its block nor its own base.

    Args:
        references_ms: ``(blocks, references)``, NaN where a reference failed.
        common_pace: False for blocks whose models were measured one after the other: nothing
            is common to them then, every factor is 1, and the deviation is the plain one.
    """
    with np.errstate(invalid="ignore"):
        logs = np.log(references_ms)
    blocks = len(logs)
    pace = np.zeros(blocks)
    if logs.size == 0:
        return Quality(np.exp(pace), np.zeros((blocks, 0)))
    base = _median(logs, axis=0)
    if common_pace:
        for _ in range(10):
            pace = _median(logs - base, axis=1)
            pace -= np.median(pace)
            base = _median(logs - pace[:, None], axis=0)
    deviations = np.abs(np.expm1(logs - pace[:, None] - base))
    return Quality(np.exp(pace), deviations)


def _median(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Median without NaN; 0 where nothing else is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "All-NaN slice"
        return np.nan_to_num(np.nanmedian(values, axis=axis))
