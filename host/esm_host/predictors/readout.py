"""Fast predictions by processes that share a design."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.predictors.base import Floats
from esm_host.predictors.process import Process
from esm_host.predictors.regression import DRAWS

Inputs = NDArray[np.float32] | NDArray[np.float64]
_CHUNK = 2048
"""Rows per step, so that intermediate results stay in the processor's caches."""


def evaluate(
    processes: Sequence[Process], drawn: Sequence[bool], encodings: NDArray[np.float32]
) -> list[Floats]:
    """Return the standardised targets and their variances without noise, ``(n, 2)`` per process.

    Single precision is used where the error is negligible (:attr:`Process.single`), as it is twice
    as fast.

    Args:
        processes: Fitted processes of one design.
        drawn: Whether the variance of each process is needed; otherwise it is 0.
        encodings: Encodings, ``(n, d)``.
    """
    design = processes[0].design
    dtype = np.dtype(np.float32 if all(each.single for each in processes) else np.float64)

    def rounded(values: Floats) -> Inputs:
        return np.ascontiguousarray(values, dtype=dtype)

    columns = [1 + DRAWS * each for each in drawn]
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
    result = np.zeros((len(processes), len(encodings), 2))
    for first in range(0, len(encodings), _CHUNK):
        rows = slice(first, first + _CHUNK)
        inputs: Inputs = (encodings[rows] - centre) * scale
        sums: Inputs = inputs @ slopes + constant
        for kernel in kernels:
            kernel.add(inputs, sums)
        for number, (_, own, _) in enumerate(parts):
            result[number, rows, 0] = sums[:, own.start]
            deviations = sums[:, own.start + 1 : own.stop]
            result[number, rows, 1] = np.einsum("ij,ij->i", deviations, deviations)
    return list(result)


@dataclass(frozen=True)
class _Kernels:
    """Squared-exponential kernels of several processes on one group, which share distances.

    Attributes:
        at: Columns of the group.
        points: Inducing points, transposed, times -2.
        squares: Squared lengths of the inducing points.
        kernels: Columns of the result, logarithm of the variance, factor of the squared distance,
            and duals, for every process.
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
