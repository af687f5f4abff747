"""A Gaussian process with a kernel for every group of features, weighted by what the data say.

Latency is nearly a sum over operators, so a linear model on the right features is hard to beat;
which features those are (single blocks, counts by unit, costs of the whole network) depends on
the device and on how much was measured. Here every group has a linear kernel of its own and its
weight is found by marginal likelihood (Rasmussen and Williams 2006, chapter 5), so that ten
samples lean on what all blocks share and a thousand on the blocks themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dtrtri
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from esm_host.encoding.base import Layout
from esm_host.predictors.base import Floats, Predictor

SEARCHED = 300
"""Samples, at most, on which the kernel's parameters are found; all are learned from then."""
_LEAST_NOISE = 1e-7
_NO_LIKELIHOOD = 1e9
"""Above any loss of the search."""
OFFSET = 1.0
"""Variance of the constant, in units of the targets' variance."""
_PRIOR_SD = 2.0
"""Of the parameters' logarithms: they may leave their defaults by factors of ten where the data
say so."""


@dataclass(frozen=True)
class _Parameters:
    """Logarithms: the variance of every group's linear kernel, variance and length of every
    smooth one, and the noise's variance."""

    linear: Floats
    smooth: Floats
    length: Floats
    noise: float

    @classmethod
    def default(cls, linear: int, smooth: int) -> Self:
        return cls(
            np.full(linear, -math.log(linear)),
            np.full(smooth, math.log(0.3)),
            np.zeros(smooth),
            math.log(0.05),
        )

    @classmethod
    def of(cls, vector: Floats, like: _Parameters) -> Self:
        ends = np.cumsum([len(like.linear), len(like.smooth), len(like.length)])
        linear, smooth, length, noise = np.split(vector, ends)
        return cls(linear, smooth, length, float(noise[0]))

    @property
    def vector(self) -> Floats:
        return np.concatenate([self.linear, self.smooth, self.length, [self.noise]])


class MultiKernelGP(Predictor):
    """Gaussian process on log latency (or latency), a sum of kernels over groups of columns.

    Prior scales are ours, chosen on public latencies of devices that no figure is quoted of.

    Args:
        layout: its groups are kernels of their own; None makes all columns one group.
        smooth: groups that have a squared-exponential kernel as well, for what is no sum. Those
            that the layout does not have are left out.
        target: ``"log"``, or ``"raw"`` latencies with errors in proportion to them.
        seed: of the choice of :data:`SEARCHED` samples.
    """

    knows_std = True

    def __init__(
        self,
        layout: Layout | None = None,
        smooth: Sequence[str] = (),
        target: str = "log",
        seed: int = 0,
    ) -> None:
        self.layout = layout
        self.smooth = smooth
        self.target = target
        self.seed = seed

    def _fit(self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats) -> None:
        self._fit_parameters(encodings, latency_ms, weights)
        kernel = self._kernel(self.inputs_, self.inputs_)
        self.jitter_ = _jitter(np.diagonal(kernel))
        self.factor_ = self._factor(kernel)
        self.dual_ = cho_solve((self.factor_, True), self.targets_)

    def _factor(self, kernel: Floats) -> Floats:
        """Return the Cholesky factor of the kernel with its noise.

        The jitter grows until there is one: parameters that were found on some of the samples may
        leave the kernel of all of them with a negative eigenvalue.
        """
        while True:
            try:
                return np.asarray(cholesky(kernel + np.diag(self._noise()), lower=True))
            except LinAlgError:
                self.jitter_ *= 10

    def fit_linear(
        self, encodings: ArrayLike, latency_ms: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, Floats]:
        """The mean that :meth:`fit` would find, as a linear function of log latency (or latency):
        the constant, and a weight of every column, ``(d,)``. Takes time and memory in proportion
        to the samples, and leaves nothing to predict with.

        Raises:
            ValueError: as :meth:`fit`, or a kernel is smooth.
        """
        if self.smooth:
            raise ValueError("a smooth kernel is no linear function")
        self._fit_parameters(*self._samples(encodings, latency_ms, sample_weight))
        each = [inputs.shape[1] for inputs in self.inputs_]
        deviation = np.exp(np.repeat(self.parameters_.linear, each) / 2)
        offset = np.full((len(self.targets_), 1), math.sqrt(OFFSET))
        features = np.concatenate([np.concatenate(self.inputs_, axis=1) * deviation, offset], 1)
        self.jitter_ = _jitter((features**2).sum(axis=1))
        scaled = features / self._noise()[:, None]
        precision = features.T @ scaled + np.eye(features.shape[1])
        found = cho_solve((cholesky(precision, lower=True), True), scaled.T @ self.targets_)
        weights = np.zeros(len(self.centre_))
        spread = np.concatenate(self.spread_)
        weights[np.concatenate(self.groups_)] = self.scale_ * deviation * found[:-1] / spread
        constant = self.mean_ + self.scale_ * math.sqrt(OFFSET) * found[-1]
        return float(constant - self.centre_ @ weights), weights

    def _fit_parameters(
        self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats
    ) -> None:
        counted = np.flatnonzero(weights > 0)
        self._standardise(encodings[counted])
        latency_ms, weights = latency_ms[counted], weights[counted]
        self.log_ = self.target == "log"
        targets = np.log(latency_ms) if self.log_ else latency_ms
        if not self.log_:
            weights = weights * (np.average(latency_ms) / latency_ms) ** 2
        self.variance_ = 1 / weights
        self.least_ms_ = float(latency_ms.min()) / 10  # a sum may come out at nothing
        self.mean_ = float(np.average(targets, weights=weights))
        self.scale_ = float(targets.std()) or abs(self.mean_) or 1.0
        self.targets_ = (targets - self.mean_) / self.scale_
        self.inputs_ = self._inputs(encodings[counted])
        self.parameters_ = self._search()

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        inputs = self._inputs(encodings)
        return self._as_latency(self._kernel(inputs, self.inputs_) @ self.dual_)

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self.predict_target(encodings)
        latency_ms = self._as_latency(mean)
        scale = latency_ms if self.log_ else 1.0
        return latency_ms, std * self.scale_ * scale

    def predict_target(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Means and standard deviations (noise included) on the standardised target, ``(n,)``."""
        inputs = self._inputs(encodings)
        cross = self._kernel(inputs, self.inputs_)
        explained = solve_triangular(self.factor_, cross.T, lower=True)
        p = self.parameters_
        noise = np.exp(p.noise) + self.jitter_
        own = OFFSET + np.exp(p.smooth).sum() + noise
        for variance, each in zip(np.exp(p.linear), inputs, strict=True):
            own = own + variance * (each**2).sum(axis=1)
        own = np.maximum(own - (explained**2).sum(axis=0), noise)
        return cross @ self.dual_, np.sqrt(own)

    def left_out(self) -> tuple[Floats, Floats]:
        """Means and standard deviations, on the standardised target, of each sample by all others
        (Rasmussen and Williams 2006, section 5.4.2); the kernel's parameters know them all."""
        root, _ = dtrtri(self.factor_, lower=1)  # of the inverse
        variance = 1 / (root**2).sum(axis=0)
        return self.targets_ - self.dual_ * variance, np.sqrt(variance)

    def in_log(self, mean: Floats, std: Floats) -> tuple[Floats, Floats]:
        """Log latencies and their standard deviations from standardised targets."""
        if self.log_:
            return mean * self.scale_ + self.mean_, std * self.scale_
        latency_ms = np.maximum(self._as_latency(mean), self.least_ms_)
        return np.log(latency_ms), std * self.scale_ / latency_ms

    def _as_latency(self, targets: Floats) -> Floats:
        values = targets * self.scale_ + self.mean_
        return np.asarray(np.exp(values) if self.log_ else np.maximum(values, self.least_ms_))

    # Groups of columns, standardised

    def _standardise(self, encodings: NDArray[np.float32]) -> None:
        width = encodings.shape[1]
        groups = self.layout.groups if self.layout else {"all": (0, width)}
        self.centre_ = encodings.mean(axis=0, dtype=np.float64)
        sd = encodings.std(axis=0, dtype=np.float64)
        varies = sd > 1e-6 * np.maximum(np.abs(self.centre_), 1e-6)
        self.groups_: list[NDArray[np.int64]] = []
        self.smooth_: list[int] = []
        self.spread_: list[Floats] = []
        for name, (first, end) in groups.items():
            columns = first + np.flatnonzero(varies[first:end])
            if not len(columns):
                continue  # nothing to tell architectures apart by
            if name in self.smooth:
                self.smooth_.append(len(self.groups_))
            self.groups_.append(columns)
            self.spread_.append(sd[columns] * math.sqrt(len(columns)))
        if not self.groups_:  # one sample, or equal ones: the mean is all there is to learn
            self.groups_.append(np.zeros(0, dtype=np.int64))
            self.spread_.append(np.zeros(0))

    def _inputs(self, encodings: NDArray[np.float32]) -> list[Floats]:
        """Of each group, standardised, so that a kernel's variance is that of a latency."""
        return [
            (encodings[:, columns] - self.centre_[columns]) / spread
            for columns, spread in zip(self.groups_, self.spread_, strict=True)
        ]

    # The kernel

    def _kernel(self, left: Sequence[Floats], right: Sequence[Floats]) -> Floats:
        p = self.parameters_
        # One product for all groups.
        weights = np.repeat(np.exp(p.linear / 2), [each.shape[1] for each in left])
        one, other = (np.concatenate(parts, axis=1) * weights for parts in (left, right))
        kernel = np.asarray(one @ other.T + OFFSET)
        for index, group in enumerate(self.smooth_):
            distance = _squared_distances(left[group], right[group])
            kernel += np.exp(p.smooth[index] - distance / (2 * np.exp(2 * p.length[index])))
        return kernel

    def _noise(self) -> Floats:
        return np.asarray(np.exp(self.parameters_.noise) * self.variance_ + self.jitter_)

    def _search(self) -> _Parameters:
        """The most likely parameters, given the data and a wide prior."""
        rows = np.arange(len(self.targets_))
        if len(rows) > SEARCHED:
            rows = np.random.default_rng(self.seed).choice(rows, SEARCHED, replace=False)
        inputs = [each[rows] for each in self.inputs_]
        targets, variance = self.targets_[rows], self.variance_[rows]
        grams = [each @ each.T for each in inputs]
        distances = [_squared_distances(inputs[g], inputs[g]) for g in self.smooth_]
        default = _Parameters.default(len(grams), len(distances))
        diagonal = np.diag_indices(len(rows))

        def loss(vector: Floats) -> tuple[float, Floats]:
            p = _Parameters.of(vector, default)
            kernel = np.full((len(rows), len(rows)), OFFSET)
            for log_variance, gram in zip(p.linear, grams, strict=True):
                kernel += np.exp(log_variance) * gram
            smooth = [
                np.exp(s - d / (2 * np.exp(2 * length)))
                for s, length, d in zip(p.smooth, p.length, distances, strict=True)
            ]
            kernel += sum(smooth)
            noise = np.exp(p.noise) * variance
            kernel[diagonal] += noise + _jitter(np.diagonal(kernel))
            astray = (vector - default.vector) / _PRIOR_SD
            try:
                factor = cholesky(kernel, lower=True, check_finite=False)
            except LinAlgError:  # rounding has left no likelihood here: back to the default
                far = float(astray @ astray)
                return _NO_LIKELIHOOD * (1 + far), 2 * _NO_LIKELIHOOD * astray / _PRIOR_SD
            dual = cho_solve((factor, True), targets, check_finite=False)
            # Of the log likelihood: 2 dL = tr((inverse - dual dual') dK).
            slope = cho_solve((factor, True), np.eye(len(rows)), check_finite=False)
            slope -= np.outer(dual, dual)
            gradient = [
                *(np.exp(v) * np.vdot(slope, g) for v, g in zip(p.linear, grams, strict=True)),
                *(np.vdot(slope, s) for s in smooth),
                *(
                    np.vdot(slope, s * d) / np.exp(2 * length)
                    for s, d, length in zip(smooth, distances, p.length, strict=True)
                ),
                np.vdot(slope[diagonal], noise),
            ]
            value = targets @ dual / 2 + np.log(factor[diagonal]).sum() + astray @ astray / 2
            return float(value), np.array(gradient) / 2 + astray / _PRIOR_SD

        bounds = [(value - 12, value + 12) for value in default.vector]
        with threadpool_limits(1):  # matrices this small only lose by being shared among threads
            found = minimize(
                loss,
                default.vector,
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 60},
            )
        return _Parameters.of(found.x, default)


def _jitter(diagonal: Floats) -> float:
    """Return a variance that nearly always keeps a kernel of this diagonal positive definite in
    double precision, however strong it is."""
    return _LEAST_NOISE + 1e-9 * float(np.mean(diagonal))


def _squared_distances(left: Floats, right: Floats) -> Floats:
    """``(n, d)`` and ``(m, d)`` -> ``(n, m)``, by one product of matrices."""
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)
    return np.asarray(np.maximum(squares - 2 * left @ right.T, 0))
