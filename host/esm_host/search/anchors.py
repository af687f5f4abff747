"""Choice of known architectures to measure again together with new ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def most_alike(
    known: NDArray[np.float32], chosen: NDArray[np.float32], count: int
) -> NDArray[np.intp]:
    """Return the rows of ``known`` nearest to the chosen architectures, ``(min(count, m),)``.

    For chosen architectures at even steps, the nearest known one not taken yet is picked.

    Args:
        known: Encodings, ``(m, width)``.
        chosen: Encodings, ``(n, width)``, n at least 1.
        count: Number of rows to return.
    """
    spread = known.std(axis=0, dtype=np.float64) if len(known) else np.ones(known.shape[1:])
    scale = np.where(spread > 0, spread, np.inf)  # ignore constant columns
    found: list[int] = []
    for row in np.linspace(0, len(chosen) - 1, min(count, len(known))).round().astype(int):
        distance = (((known - chosen[row]) / scale) ** 2).sum(axis=1)
        distance[found] = np.inf
        found.append(int(distance.argmin()))
    return np.array(found, dtype=np.intp)
