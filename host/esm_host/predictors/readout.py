"""What fitted processes of one design say of many encodings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_host.predictors.base import Floats
from esm_host.predictors.process import Process

Singles = NDArray[np.float32]
_CHUNK = 2048
"""Rows at a time: what is made of them stays in the processor's caches."""


def said(
    processes: Sequence[Process], columns: Sequence[int], encodings: NDArray[np.float32]
) -> list[Floats]:
    """Standardised targets of encodings ``(n, d)``, by every process ``(n, columns)``.

    In single precision, which rounds to about 1e-6 of a target's standard deviation.

    Args:
        columns: of every process: 1 for the mean, ``1 + DRAWS`` for deviations of draws as well.
    """
    design = processes[0].design
    ends = np.cumsum(columns).tolist()
    parts = [
        (process, slice(end - count, end), count)
        for process, end, count in zip(processes, ends, columns, strict=True)
    ]
    centre, scale = _single(design.centre), _single(design.scale)
    slopes = _single(np.concatenate([p.slopes_[:, :count] for p, _, count in parts], axis=1))
    constant = _single(np.concatenate([p.constant_[:count] for p, _, count in parts]))
    kernels = [
        _Kernels(
            at,
            _single(-2 * design.inducing[name].T),
            _single((design.inducing[name] ** 2).sum(axis=1)),
            [
                (own, s.variance, -0.5 * math.exp(-2 * s.length), _single(s.dual[:, :count]))
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
        inputs: Singles = (encodings[rows] - centre) * scale
        sums: Singles = inputs @ slopes + constant
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
    points: Singles
    squares: Singles
    kernels: Sequence[tuple[slice, float, float, Singles]]

    def add(self, inputs: Singles, sums: Singles) -> None:
        if not self.kernels:
            return
        own = inputs[:, self.at]
        distances = own @ self.points
        distances += self.squares
        distances += np.einsum("ij,ij->i", own, own)[:, None]
        np.maximum(distances, 0, out=distances)
        near = np.empty_like(distances)
        for columns, variance, slope, dual in self.kernels:
            np.multiply(distances, np.float32(slope), out=near)
            near += np.float32(variance)
            np.exp(near, out=near)
            sums[:, columns] += near @ dual


def _single(values: Floats) -> Singles:
    return np.ascontiguousarray(values, dtype=np.float32)
