"""Allocation of new samples to depth bins: ESM's Algorithm 1, and by shortfall."""

from __future__ import annotations

from collections.abc import Sequence

MARGIN_PERCENT = 1.0
"""Margin above the target, so that a bin just above it does not fall back."""
LEAST_PERCENT = 0.1
"""Shortfall of a bin far above the target, which still gets a sample now and then."""


def allocate(
    step: int, passing: Sequence[bool], weight_below: float, weight_above: float
) -> list[int]:
    """Divide ``step`` samples among bins, more to those below the accuracy threshold.

    The bins below the threshold share ``weight_below / (weight_below + weight_above)`` of the
    step equally, the bins above it the rest. A side without bins leaves its share to the other
    (ESM, Algorithm 1).

    Args:
        step: Number of samples.
        passing: Whether each bin reached the threshold.
        weight_below: Weight of the bins below the threshold (W_B).
        weight_above: Weight of the bins above the threshold (W_A).

    Returns:
        Samples per bin, summing to ``step``; largest remainders get the odd ones.
    """
    below = sum(not passed for passed in passing)
    above = len(passing) - below
    total = weight_below * bool(below) + weight_above * bool(above)
    if total == 0:  # only passing bins, with weight 0
        weight_above = total = 1.0
    return _whole(
        step,
        [
            step * weight_above / total / above if passed else step * weight_below / total / below
            for passed in passing
        ],
    )


def by_shortfall(
    step: int, accuracy_percent: Sequence[float | None], target_percent: float
) -> list[int]:
    """Divide ``step`` samples among bins in proportion to their shortfall.

    Algorithm 1 only distinguishes pass from fail, so a bin at 94.9 % gets as much as one at 80 %.

    Args:
        step: Number of samples.
        accuracy_percent: Accuracy of each bin. None for a bin without samples, which counts as
            the worst.
        target_percent: Target accuracy.

    Returns:
        Samples per bin, summing to ``step``; largest remainders get the odd ones.
    """
    worst = min((value for value in accuracy_percent if value is not None), default=0.0)
    short = [
        max(target_percent + MARGIN_PERCENT - (worst if value is None else value), LEAST_PERCENT)
        for value in accuracy_percent
    ]
    return _whole(step, [step * value / sum(short) for value in short])


def _whole(step: int, exact: Sequence[float]) -> list[int]:
    """Round to integers that sum to ``step``, by largest remainders."""
    shares = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for index in by_remainder[: step - sum(shares)]:
        shares[index] += 1
    return shares
