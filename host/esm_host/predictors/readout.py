"""What fitted processes of one design say of many encodings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.predictors.base import Floats
from esm_host.predictors.process import Process

Inputs = NDArray[np.float32] | NDArray[np.float64]
_CHUNK = 2048
"""Rows at a time: what is made of them stays in the processor's caches."""


def said(
    processes: Sequence[Process], columns: Sequence[int], encodings: NDArray[np.float32]
) -> list[Floats]:
    """Standardised targets of encodings ``(n, d)``, by every process ``(n, columns)``.

    In single precision where that does not show (:attr:`Process.single`): it is twice as fast.

    Args:
        columns: of every process: 1 for the mean, ``1 + DRAWS`` for deviations of draws as well.
    """
    design = processes[0].design
    dtype = np.dtype(np.float32 if all(each.single for each in processes) else np.float64)

    def rounded(values: Floats) -> Inputs:
        return np.ascontiguousarray(values, dtype=dtype)

    ends = np.cumsum(columns).tolist()
    parts = [
        (process, slice(end - count, end), count)
        for process, end, count in zip(processes, ends, columns, strict=True)
    ]
    centre, scale = rounded(design.centre), rounded(design.scale)
    slopes = rounded(np.concatenate([p.slopes_[:, :count] for p, _, count in parts], axis=1))
    constant = rounded(np.concatenate([p.constant_[:count] for p, _, count in parts]))
    kernels = [
        _Kernels(
            at,
            rounded(-2 * design.inducing[name].T),
            rounded((design.inducing[name] ** 2).sum(axis=1)),
            [
                (own, s.variance, -0.5 * math.exp(-2 * s.length), rounded(s.dual[:, :count]))
                for p, own, count in parts
                for s in p.smooth_
                if s.group == name
            ],
        )
        for name, at in design.groups.items()
        if name in design.inducing
    ]
    result = np.empty((len(encodings), ends[-1]))
    for first in range(0, len(encodings), _CHUNK):
        rows = slice(first, first + _CHUNK)
        inputs: Inputs = (encodings[rows] - centre) * scale
        sums: Inputs = inputs @ slopes + constant
        for kernel in kernels:
            kernel.add(inputs, sums)
        result[rows] = sums
    return np.split(result, ends[:-1], axis=1)


@dataclass(frozen=True)
class _Kernels:
    """Squared-exponential kernels of several processes on one group: they share distances.

    Attributes:
        at: columns of the group.
        points: inducing points, transposed, times -2.
        squares: their squared lengths.
        kernels: of every process its columns, the kernel's variance (logarithm), what it
            multiplies squared distances by, and duals.
    """

    at: slice
    points: Inputs
    squares: Inputs
    kernels: Sequence[tuple[slice, float, float, Inputs]]

    def add(self, inputs: Inputs, sums: Inputs) -> None:
        if not self.kernels:
            return
        own = inputs[:, self.at]
        distances = own @ self.points
        distances += self.squares
        distances += np.einsum("ij,ij->i", own, own)[:, None]
        np.maximum(distances, 0, out=distances)
        near = np.empty_like(distances)
        for columns, variance, slope, dual in self.kernels:
            np.multiply(distances, slope, out=near)
            near += variance
            np.exp(near, out=near)
            sums[:, columns] += near @ dual
