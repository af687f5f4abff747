"""The kernel methods of the predictor study that scikit-learn has: support vectors, Gaussian
process."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.svm import SVR

from esm_host.predictors.base import Floats
from esm_host.predictors.standard import StandardPredictor


class SVRPredictor(StandardPredictor):
    """Support vector regression with a Gaussian kernel (Cortes and Vapnik 1995).

    Chosen as :class:`StandardPredictor` says, from a grid of penalties 1 to 100, widths 0.01 and
    0.05, and gamma 0.01 to 1.

    Args:
        penalty: of errors (``C``), in standard deviations of the latency.
        width: of the tube in which errors cost nothing (``epsilon``), likewise.
        gamma: of the kernel, times the number of columns.
    """

    def __init__(self, penalty: float = 30.0, width: float = 0.05, gamma: float = 0.03) -> None:
        self.penalty = penalty
        self.width = width
        self.gamma = gamma

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        model = SVR(C=self.penalty, epsilon=self.width, gamma=self.gamma / x.shape[1])
        self.model_ = model.fit(x, y, weights)

    def _recall(self, x: Floats) -> Floats:
        result: Floats = self.model_.predict(x)
        return result


class GPPredictor(StandardPredictor):
    """Exact Gaussian process (Rasmussen 2003), Matérn kernel (5/2) and noise.

    One length for all columns: the evidence decides on it, the variance and the noise, in every
    fit. A sample of weight w has the noise's variance over w. The standard deviation is that of a
    measurement, the noise included. Chosen as :class:`StandardPredictor` says: smoothness 3/2 and
    the Gaussian kernel differ little from 5/2.

    Args:
        most: samples, drawn at random, on which the evidence is maximised; all are used then.
        seed: of that draw.
    """

    knows_std = True

    def __init__(self, most: int = 500, seed: int = 0) -> None:
        self.most = most
        self.seed = seed

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        some = np.random.default_rng(self.seed).permutation(len(x))[: self.most]
        length = x.shape[1] ** 0.5
        kernel = ConstantKernel(1, (1e-3, 1e5)) * Matern(
            length, (0.1 * length, 1000 * length), nu=2.5
        ) + WhiteKernel(0.1, (1e-6, 10))
        with warnings.catch_warnings():
            # At a bound: nothing varies, or there is no noise.
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = GaussianProcessRegressor(kernel).fit(x[some], y[some]).kernel_
        self.noise_ = float(fitted.k2.noise_level)
        model = GaussianProcessRegressor(fitted.k1, alpha=self.noise_ / weights, optimizer=None)
        self.model_ = model.fit(x, y)

    def _recall(self, x: Floats) -> Floats:
        result: Floats = self.model_.predict(x)
        return result

    def _recall_with_std(self, x: Floats) -> tuple[Floats, Floats]:
        mean, std = self.model_.predict(x, return_std=True)
        return mean, np.sqrt(std**2 + self.noise_)
