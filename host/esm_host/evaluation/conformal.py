"""What errors that were seen say of the next one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def quantile(scores: NDArray[np.float64], share: float, otherwise: float) -> float:
    """What a new score is at most with probability ``share`` if it is like these (Papadopoulos
    2008): the quantile that covers one more sample.

    Args:
        scores: rising, ``(n,)``, one or more.
        otherwise: where they are too few to tell, unless the largest is larger.
    """
    place = math.ceil(share * (len(scores) + 1))
    if place > len(scores):
        return max(otherwise, float(scores[-1]))
    return float(scores[place - 1])
