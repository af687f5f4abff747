"""Which known architectures are measured along with what a search chose."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def most_alike(
    known: NDArray[np.float32], chosen: NDArray[np.float32], count: int
) -> NDArray[np.intp]:
    """Rows of ``known`` that lie nearest to chosen ones, ``(count,)`` or all there are.

    Args:
        known: encodings, ``(m, width)``.
        chosen: encodings, ``(n, width)``, n at least 1; as many as are asked for, spread evenly
            over their order, have their nearest found that is not taken yet.
    """
    spread = known.std(axis=0, dtype=np.float64) if len(known) else np.ones(known.shape[1:])
    scale = np.where(spread > 0, spread, np.inf)  # what never differs tells nothing
    found: list[int] = []
    for row in np.linspace(0, len(chosen) - 1, min(count, len(known))).round().astype(int):
        distance = (((known - chosen[row]) / scale) ** 2).sum(axis=1)
        distance[found] = np.inf
        found.append(int(distance.argmin()))
    return np.array(found, dtype=np.intp)
