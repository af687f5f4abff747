"""Gaussian process with a kernel per group of columns.

Latency is nearly a sum over operators, so a linear model on the right columns is hard to beat. The
right columns depend on the device and on the number of samples. They may be single blocks, counts
by unit or costs of the whole network. Here every group has a linear kernel whose weight maximises
the marginal likelihood. Ten samples then rely on what all blocks share, a thousand on the blocks
themselves.

Linear kernels are solved in their columns. Smooth ones are approximated by inducing points
(Quiñonero-Candela and Rasmussen 2005, the subset of regressors). With as many of these as samples
the process is exact. With fewer, time and memory are proportional to the samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from esm_host.predictors.base import Floats
from esm_host.predictors.design import Design, squared_distances
from esm_host.predictors.evidence import OFFSET, Kernels, jitter, most_likely
from esm_host.predictors.regression import regress

SEARCHED = 300
"""Largest number of samples for the search of the kernels' parameters; the fit uses all."""
_ROUNDING, _UNSEEN = 6e-8, 1e-3
"""Rounding error of single precision, and its tolerated share of the noise's standard deviation."""
_SAME_PLACE = 1e-6
"""Extra variance of an inducing point, in units of the kernel's, so that equal points differ."""


@dataclass(frozen=True, eq=False)
class Smooth:
    """Squared-exponential kernel, as a sum over inducing points.

    Attributes:
        group: Group of columns.
        variance: Logarithm of the variance.
        length: Logarithm of the length scale.
        dual: Weights of the inducing points, ``(m, 1 + DRAWS)``: the mean, then draws.
    """

    group: str
    variance: float
    length: float
    dual: Floats


class Process:
    """Gaussian process on log latency (or latency), a sum of kernels over a design's groups.

    After :meth:`fit`, ``left_out_`` has the means and standard deviations of log latencies, each
    ``(n,)``. A sample is predicted from all others, with kernel parameters fitted to all.

    Args:
        linear: Groups with a linear kernel; constant groups are left out.
        smooth: Groups with a squared-exponential kernel, too, for effects that are not additive.
        target: ``"log"``, or ``"raw"`` for latencies with errors in proportion to them.
        seed: Random seed of the choice of :data:`SEARCHED` samples, and of draws.
    """

    def __init__(
        self, linear: Sequence[str], smooth: Sequence[str], target: str, seed: int = 0
    ) -> None:
        self.linear = linear
        self.smooth = smooth
        self.target = target
        self.seed = seed

    def fit(
        self,
        design: Design,
        encodings: NDArray[np.float32],
        latency_ms: Floats,
        weights: Floats,
        like: Process | None = None,
    ) -> None:
        """Fit to samples, all with positive weights.

        Args:
            design: Design of the samples.
            encodings: Encodings, ``(n, d)``.
            latency_ms: Latencies, ms, ``(n,)``.
            weights: Weights, ``(n,)``.
            like: Similar fitted process, at whose parameters the search begins; None for the
                default.
        """
        self.design = design
        self._standardise(latency_ms, weights)
        inputs = design.inputs(encodings)
        linear = [name for name in self.linear if name in design.groups]
        smooth = [name for name in self.smooth if name in design.inducing]
        self.kernels_ = k = self._search(inputs, Kernels.default(linear, smooth), like)
        joined, roots = self._features(inputs)
        self.noise_ = math.exp(k.noise)
        noise = self.noise_ * self.variance_ + jitter((joined**2).sum(axis=1))
        posterior = regress(joined, self.targets_, noise, self.seed)
        known = np.maximum(posterior.left_out_std**2 - noise, 0)
        self.left_out_ = self._in_log(posterior.left_out_mean, known)
        widths = [inputs.shape[1], 1, *(len(root) for root in roots)]
        slopes, constant, *smooths = np.split(posterior.weights, np.cumsum(widths)[:-1])
        self.slopes_ = slopes * self._deviation[:, None]
        self.constant_ = math.sqrt(OFFSET) * constant[0]
        self.smooth_ = [
            Smooth(name, variance, length, solve_triangular(root, dual, lower=True, trans=1))
            for (name, (variance, length)), root, dual in zip(
                k.smooth.items(), roots, smooths, strict=True
            )
        ]

    @property
    def _deviation(self) -> Floats:
        """Prior standard deviation of the weight of every column, ``(d,)``."""
        deviation = np.zeros(len(self.design.centre))
        for name, log_variance in self.kernels_.linear.items():
            deviation[self.design.groups[name]] = math.exp(log_variance / 2)
        return deviation

    def _features(self, inputs: Floats) -> tuple[Floats, list[Floats]]:
        """Return features whose weights have a prior variance of 1, and roots of the kernels.

        The features are the columns, the constant, and those of every smooth kernel, ``(n, k)``.
        """
        features = [inputs * self._deviation, np.full((len(inputs), 1), math.sqrt(OFFSET))]
        roots = []
        for name, (variance, length) in self.kernels_.smooth.items():
            points = self.design.inducing[name]
            among = _near(squared_distances(points, points), variance, length)
            among[np.diag_indices(len(points))] += _SAME_PLACE * math.exp(variance)
            roots.append(cholesky(among, lower=True))
            own = squared_distances(points, inputs[:, self.design.groups[name]])
            features.append(solve_triangular(roots[-1], _near(own, variance, length), lower=True).T)
        return np.concatenate(features, axis=1), roots

    def joint_features(
        self, encodings: NDArray[np.float32], values: Floats
    ) -> tuple[Floats, float]:
        """Return features whose products are the prior covariance of log latencies, ``(n, k)``.

        The second result is the variance of a measured log latency.

        Args:
            encodings: Encodings, ``(n, d)``.
            values: Result of :func:`~esm_host.predictors.readout.evaluate` for this process.
        """
        features = self._features(self.design.inputs(encodings))[0]
        if self.log_:
            return features * self.scale_, self.noise_ * self.scale_**2
        shares = self.scale_ / self._as_latency(values[:, 0])
        return features * shares[:, None], self.noise_ * (self.scale_ / self.usual_ms_) ** 2

    @property
    def single(self) -> bool:
        """Whether the error of single precision is negligible beside the noise."""
        squares = sum(
            math.exp(2 * s.variance) * float(s.dual[:, 0] @ s.dual[:, 0]) for s in self.smooth_
        )
        return bool(_ROUNDING**2 * squares < _UNSEEN**2 * self.noise_)

    def _standardise(self, latency_ms: Floats, weights: Floats) -> None:
        self.log_ = self.target == "log"
        targets = np.log(latency_ms) if self.log_ else latency_ms
        self.usual_ms_ = float(np.average(latency_ms))
        if not self.log_:
            weights = weights * (self.usual_ms_ / latency_ms) ** 2
        self.variance_ = 1 / weights
        self.least_ms_ = float(latency_ms.min()) / 10  # a sum may be zero or negative
        self.mean_ = float(np.average(targets, weights=weights))
        self.scale_ = float(targets.std()) or abs(self.mean_) or 1.0
        self.targets_ = (targets - self.mean_) / self.scale_

    def _search(self, inputs: Floats, default: Kernels, like: Process | None) -> Kernels:
        rows = np.arange(len(self.targets_))
        if len(rows) > SEARCHED:
            rows = np.random.default_rng(self.seed).choice(rows, SEARCHED, replace=False)
        return most_likely(
            default,
            {name: inputs[rows, at] for name, at in self.design.groups.items()},
            self.targets_[rows],
            self.variance_[rows],
            default.like(like.kernels_) if like else None,
        )

    def linear_function(self) -> tuple[float, Floats]:
        """Return log latency (or latency) as a linear function of the columns.

        Returns:
            The constant, and the weight of every column, ``(d,)``.

        Raises:
            ValueError: a kernel is smooth.
        """
        if self.smooth_:
            raise ValueError("a smooth kernel is not a linear function")
        weights = self.scale_ * self.design.scale * self.slopes_[:, 0]
        constant = self.mean_ + self.scale_ * self.constant_[0]
        return float(constant - self.design.centre @ weights), weights

    def in_log(self, values: Floats) -> tuple[Floats, Floats]:
        """Return means and standard deviations of log latencies, ``(n,)``.

        Args:
            values: Result of :func:`~esm_host.predictors.readout.evaluate` for this process.
        """
        return self._in_log(values[:, 0], values[:, 1])

    def _in_log(self, mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
        """Convert means and variances without noise to log latencies and standard deviations."""
        if self.log_:
            std = np.sqrt(variance + self.noise_)
            return mean * self.scale_ + self.mean_, std * self.scale_
        latency_ms = self._as_latency(mean)
        share = (latency_ms / self.usual_ms_) ** 2
        std = np.sqrt(variance + self.noise_ * share)
        return np.log(latency_ms), std * self.scale_ / latency_ms

    def _as_latency(self, targets: Floats) -> Floats:
        values = targets * self.scale_ + self.mean_
        return np.asarray(np.exp(values) if self.log_ else np.maximum(values, self.least_ms_))


def _near(distances: Floats, variance: float, length: float) -> Floats:
    """Return the covariance at squared distances."""
    return np.asarray(np.exp(variance - distances / (2 * math.exp(2 * length))))
