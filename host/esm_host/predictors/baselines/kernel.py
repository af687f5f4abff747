"""Kernel methods of the predictor study in scikit-learn: support vectors and Gaussian process."""

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

    Hyperparameters were chosen as for :class:`StandardPredictor`. The grid had penalties 1 to 100,
    widths 0.01 and 0.05, and gamma 0.01 to 1.

    Args:
        penalty: Penalty of errors (``C``), in standard deviations of the latency.
        width: Width of the tube in which errors cost nothing (``epsilon``), in the same unit.
        gamma: Parameter of the kernel, times the number of columns.
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
    """Exact Gaussian process (Rasmussen 2003) with a Matérn kernel (5/2) and noise.

    All columns share one length scale. Every fit maximises the evidence for length, variance and
    noise. A sample of weight w has the noise's variance over w. The standard deviation is that of a
    measurement, noise included. The kernel was chosen as for :class:`StandardPredictor`: smoothness
    3/2 and the Gaussian kernel differ little.

    Args:
        most: Largest number of random samples for the evidence; the fit uses all.
        seed: Random seed of their choice.
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
            # A parameter is at its bound if nothing varies or there is no noise.
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
