"""Which of several are not beaten by any other, and how much they are worth together."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.evaluation.selection import pareto_front

Floats = NDArray[np.float64]


def nondominated(costs: ArrayLike) -> NDArray[np.bool_]:
    """Which rows no other beats, ``(n,)``: is as good in every cost and better in one.

    Args:
        costs: less is better, ``(n, objectives)``, without NaN. Equal rows are on the front
            together, or not at all.
    """
    values = np.asarray(costs, dtype=np.float64)
    if len(values) and values.shape[1] == 2:
        return pareto_front(values[:, 0], -values[:, 1])
    result = np.zeros(len(values), dtype=bool)
    # By their first cost, then the others: none is beaten by a later one.
    rows = np.lexsort(values.T[::-1])
    while len(rows):
        best = values[rows[0]]
        equal = (values[rows] == best).all(axis=1)
        result[rows[equal]] = True
        rows = rows[(values[rows] < best).any(axis=1)]
    return result


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """Volume of what the rows beat and the reference does not (Zitzler and Thiele 1999).

    Args:
        costs: less is better, ``(n, objectives)``; what is not better than the reference
            everywhere adds nothing.
        reference: ``(objectives,)``.
    """
    from pymoo.indicators.hv import HV

    values = np.asarray(costs, dtype=np.float64)
    worst = np.asarray(reference, dtype=np.float64)
    values = values[(values < worst).all(axis=1)]
    return float(HV(ref_point=worst)(values)) if len(values) else 0.0
