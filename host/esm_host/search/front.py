"""Pareto fronts and their hypervolume."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.evaluation.selection import pareto_front

Floats = NDArray[np.float64]


def nondominated(costs: ArrayLike) -> NDArray[np.bool_]:
    """Return which rows are on the Pareto front, ``(n,)``.

    A row dominates another if it is as good in every cost and better in one.

    Args:
        costs: Costs to minimise, ``(n, objectives)``, without NaN. Equal rows are on the front
            together, or not at all.
    """
    values = np.asarray(costs, dtype=np.float64)
    if len(values) and values.shape[1] == 2:
        return pareto_front(values[:, 0], -values[:, 1])
    result = np.zeros(len(values), dtype=bool)
    # In lexicographic order no row is dominated by a later one.
    rows = np.lexsort(values.T[::-1])
    while len(rows):
        best = values[rows[0]]
        equal = (values[rows] == best).all(axis=1)
        result[rows[equal]] = True
        rows = rows[(values[rows] < best).any(axis=1)]
    return result


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """Return the hypervolume of a set of points (Zitzler and Thiele 1999).

    Args:
        costs: Costs to minimise, ``(n, objectives)``. A point that is not better than the reference
            in every cost adds nothing.
        reference: Reference point, ``(objectives,)``.
    """
    from pymoo.indicators.hv import HV

    values = np.asarray(costs, dtype=np.float64)
    worst = np.asarray(reference, dtype=np.float64)
    values = values[(values < worst).all(axis=1)]
    return float(HV(ref_point=worst)(values)) if len(values) else 0.0
