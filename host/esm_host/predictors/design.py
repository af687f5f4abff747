"""Standardised groups of columns and inducing points, shared by the kernels of a fit."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Layout
from esm_host.predictors.base import Floats

INDUCING, MANY_INDUCING = 200, 1000
"""Largest numbers of inducing points: by default, and where smooth kernels help."""


@dataclass(frozen=True, eq=False)
class Design:
    """Grouped columns of encodings, scaled so that a kernel's variance is that of a latency.

    Attributes:
        centre: Mean of every column, ``(d,)``.
        scale: Factor of every centred column, ``(d,)``; 0 for a constant column.
        groups: Columns of every group that is not constant.
        inducing: Inducing points of the groups that may be smooth, ``(m, columns)``.
    """

    centre: Floats
    scale: Floats
    groups: Mapping[str, slice]
    inducing: Mapping[str, Floats]

    @classmethod
    def of(
        cls,
        encodings: NDArray[np.float32],
        layout: Layout | None = None,
        smooth: Collection[str] = (),
        seed: int = 0,
        points: int = INDUCING,
    ) -> Self:
        """Return the design for samples ``(n, d)``.

        Args:
            encodings: Samples, ``(n, d)``.
            layout: Groups of columns; None makes all columns one group.
            smooth: Groups with inducing points; those that the layout lacks are left out.
            seed: Random seed of the choice of inducing points.
            points: Largest number of inducing points.
        """
        width = encodings.shape[1]
        centre = encodings.mean(axis=0, dtype=np.float64)
        sd = encodings.std(axis=0, dtype=np.float64)
        varies = sd > 1e-6 * np.maximum(np.abs(centre), 1e-6)
        scale = np.zeros(width)
        groups = {}
        for name, (first, end) in (layout.groups if layout else {"all": (0, width)}).items():
            columns = first + np.flatnonzero(varies[first:end])
            if len(columns):
                groups[name] = slice(first, end)
                scale[columns] = 1 / (sd[columns] * math.sqrt(len(columns)))
        design = cls(centre, scale, groups, {})
        chosen = np.random.default_rng(seed).permutation(len(encodings))[:points]
        compared = design.inputs(encodings[chosen])
        inducing = {name: compared[:, at] for name, at in groups.items() if name in smooth}
        return cls(centre, scale, groups, inducing)

    def inputs(self, encodings: NDArray[np.float32]) -> Floats:
        """Return standardised encodings, ``(n, d)``."""
        return (encodings - self.centre) * self.scale


def squared_distances(left: Floats, right: Floats) -> Floats:
    """Return the squared distances of ``(n, d)`` and ``(m, d)``, ``(n, m)``."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * left @ right.T, 0))
