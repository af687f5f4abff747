"""How many new samples each depth bin gets: ESM's Algorithm 1, and by what a bin is short of."""

from __future__ import annotations

from collections.abc import Sequence

MARGIN_PERCENT = 1.0
"""A bin is aimed this far beyond the target, so that one just above it does not fall back."""
LEAST_PERCENT = 0.1
"""What a bin far above the target counts as short of: it still gets a sample now and then."""


def allocate(
    step: int, passing: Sequence[bool], weight_below: float, weight_above: float
) -> list[int]:
    """Divides ``step`` samples among bins, more to those below the accuracy threshold.

    The bins below share ``weight_below / (weight_below + weight_above)`` of the step equally,
    the bins above the rest; a side without bins leaves its share to the other (ESM, Algorithm 1).

    Args:
        passing: whether each bin reached the threshold.

    Returns:
        Samples per bin, summing to ``step`` (largest remainders get the odd ones).
    """
    below = sum(not passed for passed in passing)
    above = len(passing) - below
    total = weight_below * bool(below) + weight_above * bool(above)
    if total == 0:  # only passing bins, and they weigh nothing
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
    """Divides ``step`` samples among bins in proportion to what each is short of the target.

    Algorithm 1 knows only pass or fail, so a bin at 94.9 % gets as much as one at 80 %.

    Args:
        accuracy_percent: of each bin; None where nothing is measured, which counts as the worst.

    Returns:
        Samples per bin, summing to ``step`` (largest remainders get the odd ones).
    """
    worst = min((value for value in accuracy_percent if value is not None), default=0.0)
    short = [
        max(target_percent + MARGIN_PERCENT - (worst if value is None else value), LEAST_PERCENT)
        for value in accuracy_percent
    ]
    return _whole(step, [step * value / sum(short) for value in short])


def _whole(step: int, exact: Sequence[float]) -> list[int]:
    """Whole numbers that sum to ``step``, by largest remainders."""
    shares = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for index in by_remainder[: step - sum(shares)]:
        shares[index] += 1
    return shares
