"""Linear models of the predictor study: least squares, ridge and Bayesian regression."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import BayesianRidge, LinearRegression, RidgeCV

from esm_host.predictors.base import Floats
from esm_host.predictors.standard import StandardPredictor


class LinearPredictor(StandardPredictor):
    """Least squares; of many solutions, as with one-hot columns, the smallest.

    With about as many samples as columns it overfits the noise; ridge regression does not.
    """

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        self.model_ = LinearRegression().fit(x, y, weights)

    def _recall(self, x: Floats) -> Floats:
        result: Floats = self.model_.predict(x)
        return result


class RidgePredictor(StandardPredictor):
    """Ridge regression (Saunders et al. 1998), its penalty chosen by leave-one-out error.

    The penalty is one of 22 from 0.001 to 10,000, three per decade. Every fit chooses it from its
    own samples.
    """

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        with np.errstate(invalid="ignore"):  # one sample has no error when left out
            self.model_ = RidgeCV(np.logspace(-3, 4, 22)).fit(x, y, weights)

    def _recall(self, x: Floats) -> Floats:
        result: Floats = self.model_.predict(x)
        return result


class BayesianPredictor(StandardPredictor):
    """Bayesian linear regression (Bishop, 3.5); the evidence chooses penalty and noise.

    The standard deviation is that of a measurement, noise included.
    """

    knows_std = True

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        self.model_ = BayesianRidge().fit(x, y, weights)

    def _recall(self, x: Floats) -> Floats:
        result: Floats = self.model_.predict(x)
        return result

    def _recall_with_std(self, x: Floats) -> tuple[Floats, Floats]:
        mean, std = self.model_.predict(x, return_std=True)
        return mean, std
