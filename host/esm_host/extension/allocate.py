"""ESM's Algorithm 1: how many new samples each depth bin gets."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(
    step: int, passing: Sequence[bool], weight_below: float, weight_above: float
) -> list[int]:
    """Divides ``step`` samples among bins, more to those below the accuracy threshold.

    The bins below share ``weight_below / (weight_below + weight_above)`` of the step equally,
    the bins above the rest; a side without bins leaves its share to the other.

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
    exact = [
        step * weight_above / total / above if passed else step * weight_below / total / below
        for passed in passing
    ]
    shares = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])
    for index in by_remainder[: step - sum(shares)]:
        shares[index] += 1
    return shares
