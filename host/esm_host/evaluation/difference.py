"""Whether one latency differs from another, and by how much, with a 95 % interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_protos.estimates import Runs
from esm_protos.statistics import relative_interval, trimmed_mean

Nanoseconds = NDArray[np.int64]
Floats = NDArray[np.float64]

WIDEST = 20.0
"""Half-width of a logarithm's interval above which (a factor of 5e8) it says nothing, and its ends
may overflow."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as the other.

    Attributes:
        interval: 95 %, low and high; None with too few runs to tell.
        paired: whether runs next to each other in time were compared.
    """

    value: float
    interval: tuple[float, float] | None
    paired: bool

    @property
    def different(self) -> bool:
        """Whether the interval excludes 1."""
        return self.interval is not None and not self.interval[0] <= 1 <= self.interval[1]

    @property
    def half_width(self) -> float | None:
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2

    @property
    def log_half_width(self) -> float:
        """Half-width of the interval of the ratio's logarithm; infinite with too few runs."""
        return math.inf if self.interval is None else math.log(self.interval[1] / self.value)

    def at_usual(self, shift: float, half: float) -> Ratio:
        """Return the ratio at the device's usual pace, from that in a block.

        Args:
            shift: logarithm of the block's ratio less that of the usual one.
            half: half-width of the 95 % interval of what the block leaves open, a logarithm.
        """
        middle = math.log(self.value) - shift
        return Ratio(
            math.exp(middle), around(middle, math.hypot(self.log_half_width, half)), self.paired
        )


def paired_ratio(one: Runs, other: Runs, trim: float) -> Ratio:
    """Return the ratio of two models in their interleaved block.

    What the device's ups and downs do to both cancels.

    Where a visit of one model is followed by one of the other, whatever lies between, the two are
    a pair, and each visit is in one pair at most. The ratio is the trimmed mean of the logarithms
    of the ratios of their runs, with the interval of
    :func:`esm_protos.statistics.relative_interval` over consecutive pairs. Who follows whom is
    drawn by lot; to match what began nearest would prefer short visits, and be biased. Where one
    model has fewer runs per visit, as many of the other's count, the last ones: they are the
    warmest.

    Args:
        trim: share of the pairs dropped at each end.
    """
    (a, began_a), (b, began_b) = ((runs.visits, runs.visit_starts_ns) for runs in (one, other))
    common = min(a.shape[1], b.shape[1])
    a, b = a[:, -common:], b[:, -common:]
    of_a, of_b = _pairs(began_a, began_b)
    if not len(of_a):  # one of them ended before the other began
        return unpaired_ratio(
            trimmed_mean(one.latency_ns, trim), math.inf, trimmed_mean(other.latency_ns, trim), 0
        )
    logs = np.log(a[of_a]) - np.log(b[of_b])
    middle = trimmed_mean(logs.ravel(), trim)
    # The interval comes as a share of the mean, which for a ratio of 1 is none: away from 0.
    shifted = logs - middle + 1
    half = relative_interval(shifted, trim) * trimmed_mean(shifted.ravel(), trim)
    return Ratio(math.exp(middle), around(middle, half), paired=True)


def unpaired_ratio(
    one_ns: float, one_interval: float, other_ns: float, other_interval: float
) -> Ratio:
    """Return the ratio of two numbers that were measured apart.

    Args:
        one_interval, other_interval: half-widths, as shares.
    """
    middle = math.log(one_ns / other_ns)
    return Ratio(
        math.exp(middle), around(middle, math.hypot(one_interval, other_interval)), paired=False
    )


def around(middle: float, half: float) -> tuple[float, float] | None:
    """Return the ends of an interval, low and high; None where it is infinite.

    Args:
        middle: logarithm of a latency, or of a ratio.
        half: half-width of the logarithm's interval.
    """
    if not math.isfinite(half):
        return None
    half = min(half, WIDEST)
    return math.exp(middle - half), math.exp(middle + half)


def _pairs(began_a: Nanoseconds, began_b: Nanoseconds) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Numbers of the visits of both that are next to each other, each in one pair at most."""
    order = np.argsort(np.concatenate((began_a, began_b)), kind="stable")
    of_b = order >= len(began_a)
    changes = np.flatnonzero(of_b[1:] != of_b[:-1])
    # In a chain of changes, every second.
    begins = np.diff(changes, prepend=-2) > 1
    chain_began = np.maximum.accumulate(np.where(begins, changes, 0))
    first = changes[(changes - chain_began) % 2 == 0]
    pairs = np.sort(np.stack((order[first], order[first + 1])), axis=0)
    return pairs[0], pairs[1] - len(began_a)
