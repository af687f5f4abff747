"""Sparse Gaussian process of the predictor study, with GPyTorch."""

from __future__ import annotations

import gpytorch
import numpy as np
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import InducingPointKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood

from esm_host.predictors.base import Floats
from esm_host.predictors.networks import one_thread
from esm_host.predictors.standard import StandardPredictor


class _Model(gpytorch.models.ExactGP):  # type: ignore[misc]  # without types
    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        inducing: torch.Tensor,
        likelihood: GaussianLikelihood,
    ) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = ConstantMean()
        kernel = ScaleKernel(RBFKernel())
        # Latency is nearly additive: the fit needs long initial length scales.
        kernel.base_kernel.lengthscale = 3 * x.shape[1] ** 0.5
        kernel.outputscale = 10
        self.covar_module = InducingPointKernel(kernel, inducing, likelihood)

    def forward(self, x: torch.Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


class SparseGPPredictor(StandardPredictor):
    """Gaussian process on a few inducing points (Titsias 2009).

    The study cites Candela and Rasmussen (2005), who unify such approximations. The kernel is
    Gaussian with one length scale. Adam maximises the bound of the evidence for length, variances
    and points. The standard deviation is that of a measurement, noise included.

    Args:
        inducing: Largest number of inducing points, which begin at samples.
        steps: Number of steps of Adam.
        learning_rate: Learning rate of Adam.
        seed: Random seed of the choice of points.
    """

    knows_std = True
    uses_weights = False

    def __init__(
        self, inducing: int = 200, steps: int = 60, learning_rate: float = 0.1, seed: int = 0
    ) -> None:
        self.inducing = inducing
        self.steps = steps
        self.learning_rate = learning_rate
        self.seed = seed

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        some = np.random.default_rng(self.seed).permutation(len(x))[: self.inducing]
        columns, targets = torch.from_numpy(x), torch.from_numpy(y)
        likelihood = GaussianLikelihood().double()
        model = _Model(columns, targets, columns[some].clone(), likelihood).double()
        likelihood.noise = 0.1
        evidence = ExactMarginalLogLikelihood(likelihood, model)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        with one_thread():
            for _ in range(self.steps):
                optimizer.zero_grad()
                (-evidence(model(columns), targets)).backward()
                optimizer.step()
        self.model_ = model.eval()

    def _recall(self, x: Floats) -> Floats:
        return self._recall_with_std(x)[0]

    def _recall_with_std(self, x: Floats) -> tuple[Floats, Floats]:
        with torch.no_grad(), gpytorch.settings.debug(False):
            latency = self.model_.likelihood(self.model_(torch.from_numpy(x)))
            return latency.mean.numpy(), latency.stddev.numpy()
