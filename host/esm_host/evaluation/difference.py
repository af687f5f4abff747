"""Ratio of two latencies with a 95 % confidence interval."""

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
"""Largest half-width of an interval of a logarithm, a factor of 5e8, to prevent overflow."""


@dataclass(frozen=True)
class Ratio:
    """Ratio of two latencies.

    Attributes:
        value: The ratio.
        interval: Ends of the 95 % confidence interval; None with too few runs.
        paired: Whether runs next to each other in time were compared.
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
            shift: Logarithm of the block's ratio less that of the usual one.
            half: Half-width of the 95 % confidence interval of ``shift``.
        """
        middle = math.log(self.value) - shift
        return Ratio(
            math.exp(middle), around(middle, math.hypot(self.log_half_width, half)), self.paired
        )


def paired_ratio(one: Runs, other: Runs, trim: float) -> Ratio:
    """Return the ratio of two models in an interleaved block, in which drift cancels.

    A visit of one model that is followed by a visit of the other makes a pair, whatever lies
    between. Each visit is in one pair at most. The ratio is the trimmed mean of the logarithms of
    the runs' ratios. Its interval is :func:`esm_protos.statistics.relative_interval` over
    consecutive pairs. The order of visits is random; pairs by nearest start would prefer short
    visits and be biased. If one model has fewer runs per visit, the last runs of the other count,
    as these are the warmest.

    Args:
        one: Runs of the first model.
        other: Runs of the second model.
        trim: Share of the pairs dropped at each end.
    """
    (a, began_a), (b, began_b) = ((runs.visits, runs.visit_starts_ns) for runs in (one, other))
    common = min(a.shape[1], b.shape[1])
    a, b = a[:, -common:], b[:, -common:]
    of_a, of_b = _pairs(began_a, began_b)
    if not len(of_a):  # one model ended before the other began
        return unpaired_ratio(
            trimmed_mean(one.latency_ns, trim), math.inf, trimmed_mean(other.latency_ns, trim), 0
        )
    logs = np.log(a[of_a]) - np.log(b[of_b])
    middle = trimmed_mean(logs.ravel(), trim)
    # The interval is relative to the mean, which is 0 for a ratio of 1: shift it.
    shifted = logs - middle + 1
    half = relative_interval(shifted, trim) * trimmed_mean(shifted.ravel(), trim)
    return Ratio(math.exp(middle), around(middle, half), paired=True)


def unpaired_ratio(
    one_ns: float, one_interval: float, other_ns: float, other_interval: float
) -> Ratio:
    """Return the ratio of two latencies measured apart.

    Args:
        one_ns: First latency, ns.
        one_interval: Half-width of its 95 % confidence interval, as a share.
        other_ns: Second latency, ns.
        other_interval: Half-width of its 95 % confidence interval, as a share.
    """
    middle = math.log(one_ns / other_ns)
    return Ratio(
        math.exp(middle), around(middle, math.hypot(one_interval, other_interval)), paired=False
    )


def around(middle: float, half: float) -> tuple[float, float] | None:
    """Return the ends of an interval; None if it is infinite.

    Args:
        middle: Logarithm of a latency or of a ratio.
        half: Half-width of the logarithm's interval.
    """
    if not math.isfinite(half):
        return None
    half = min(half, WIDEST)
    return math.exp(middle - half), math.exp(middle + half)


def _pairs(began_a: Nanoseconds, began_b: Nanoseconds) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the numbers of neighbouring visits of both, each in one pair at most."""
    order = np.argsort(np.concatenate((began_a, began_b)), kind="stable")
    of_b = order >= len(began_a)
    changes = np.flatnonzero(of_b[1:] != of_b[:-1])
    # Take every second change of a chain.
    begins = np.diff(changes, prepend=-2) > 1
    chain_began = np.maximum.accumulate(np.where(begins, changes, 0))
    first = changes[(changes - chain_began) % 2 == 0]
    pairs = np.sort(np.stack((order[first], order[first + 1])), axis=0)
    return pairs[0], pairs[1] - len(began_a)
