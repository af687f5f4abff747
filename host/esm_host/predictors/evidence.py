"""Variances and lengths of kernels, by maximum marginal likelihood."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from esm_host.predictors.base import Floats
from esm_host.predictors.design import squared_distances

OFFSET = 1.0
"""Variance of the constant, in units of the targets' variance."""
_LEAST_NOISE = 1e-7
_NO_LIKELIHOOD = 1e9
"""Loss larger than any in the search."""
_PRIOR_SD = 2.0
"""Prior standard deviation of the parameters' logarithms, wide enough for factors of ten."""
_ITERATIONS = 60
_TOLERANCE = 1e-6
"""Relative change of the log likelihood at which the search ends."""


@dataclass(frozen=True)
class Kernels:
    """Logarithms of the kernels' parameters.

    Attributes:
        linear: Variance of every linear kernel, by group.
        smooth: Variance and length of every smooth kernel, by group.
        noise: Variance of the noise.
    """

    linear: Mapping[str, float]
    smooth: Mapping[str, tuple[float, float]]
    noise: float

    @classmethod
    def default(cls, linear: Sequence[str], smooth: Sequence[str]) -> Self:
        """Return the parameters at which a search begins, and the centre of their prior."""
        share = -math.log(max(len(linear), 1))
        return cls(
            dict.fromkeys(linear, share),
            dict.fromkeys(smooth, (math.log(0.3), 0.0)),
            math.log(0.05),
        )

    def like(self, other: Kernels) -> Kernels:
        """Return these kernels with the other's values where both have them."""
        return Kernels(
            {name: other.linear.get(name, own) for name, own in self.linear.items()},
            {name: other.smooth.get(name, own) for name, own in self.smooth.items()},
            other.noise,
        )

    @property
    def vector(self) -> Floats:
        """Linear variances, smooth variances, lengths and the noise."""
        variances, lengths = zip(*self.smooth.values(), strict=True) if self.smooth else ((), ())
        return np.array([*self.linear.values(), *variances, *lengths, self.noise])

    def of(self, vector: Floats) -> Kernels:
        """Return the same kernels with other values."""
        *values, noise = vector.tolist()
        linear, smooth = len(self.linear), len(self.smooth)
        variances, lengths = values[linear : linear + smooth], values[linear + smooth :]
        return Kernels(
            dict(zip(self.linear, values, strict=False)),
            dict(zip(self.smooth, zip(variances, lengths, strict=True), strict=True)),
            noise,
        )


def most_likely(
    default: Kernels,
    inputs: Mapping[str, Floats],
    targets: Floats,
    variance: Floats,
    start: Kernels | None = None,
) -> Kernels:
    """Return the kernels of the greatest marginal likelihood times prior.

    See Rasmussen and Williams 2006, chapter 5. The prior is wide and centred on the default. Its
    scales were chosen on public latencies of devices for which we quote no figures.

    Args:
        default: Kernels at the centre of the prior.
        inputs: Columns of every group, ``(n, columns)``.
        targets: Standardised targets, ``(n,)``.
        variance: Relative variance of the noise, ``(n,)``.
        start: Kernels at which the search begins; None for the default.
    """
    n = len(targets)
    linear, smooth = len(default.linear), len(default.smooth)
    prior = default.vector
    # Symmetric matrices are kept as their lower half, in one row.
    row, column = np.tril_indices(n)
    half = row * n + column
    grams = np.zeros((linear, len(half)))
    for number, group in enumerate(default.linear):
        grams[number] = (inputs[group] @ inputs[group].T).take(half)
    distances = [squared_distances(inputs[g], inputs[g]).take(half) for g in default.smooth]
    diagonal = np.diag_indices(n)
    twice = np.where(row == column, 1.0, 2.0)
    kernel = np.zeros((n, n))

    def loss(vector: Floats) -> tuple[float, Floats]:
        scales = np.exp(vector[:linear])
        logs, lengths = vector[linear : linear + smooth], vector[linear + smooth : -1]
        shrunk = [
            each * (0.5 * math.exp(-2 * length))
            for each, length in zip(distances, lengths, strict=True)
        ]
        near = [np.exp(log - each) for log, each in zip(logs, shrunk, strict=True)]
        kernel.put(half, sum(near, scales @ grams + OFFSET))
        noise = math.exp(vector[-1]) * variance
        kernel[diagonal] += noise + jitter(kernel[diagonal])
        astray = (vector - prior) / _PRIOR_SD
        try:
            factor = cholesky(kernel, lower=True, check_finite=False)
        except LinAlgError:  # no likelihood due to rounding: back to the default
            far = float(astray @ astray)
            return _NO_LIKELIHOOD * (1 + far), 2 * _NO_LIKELIHOOD * astray / _PRIOR_SD
        dual = cho_solve((factor, True), targets, check_finite=False)
        value = targets @ dual / 2 + np.log(factor[diagonal]).sum() + astray @ astray / 2
        # Gradient of the log likelihood: 2 dL = tr((inverse - dual dual') dK).
        inverse, _ = dpotri(factor, lower=1, overwrite_c=1)
        slope = twice * (inverse.take(half) - dual[row] * dual[column])
        by_length = [2 * slope @ (each * by) for each, by in zip(near, shrunk, strict=True)]
        gradient = np.concatenate(
            [
                scales * (grams @ slope),
                [slope @ each for each in near],
                by_length,
                [(inverse[diagonal] - dual**2) @ noise],
            ]
        )
        return float(value), gradient / 2 + astray / _PRIOR_SD

    bounds = [(value - 12, value + 12) for value in prior]
    found = minimize(
        loss,
        np.clip((start or default).vector, prior - 12, prior + 12),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _ITERATIONS, "ftol": _TOLERANCE},
    )
    return default.of(found.x)


def jitter(diagonal: Floats) -> float:
    """Return a variance that keeps a kernel of this diagonal positive definite.

    It nearly always suffices in double precision, however strong the kernel is.
    """
    return _LEAST_NOISE + 1e-9 * float(np.mean(diagonal))
