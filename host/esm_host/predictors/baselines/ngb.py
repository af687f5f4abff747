"""NGBoost of the predictor study (Duan et al. 2020)."""

from __future__ import annotations

import numpy as np
from ngboost import NGBRegressor
from sklearn.tree import DecisionTreeRegressor

from esm_host.predictors.base import Floats
from esm_host.predictors.baselines.trees import leaf_size
from esm_host.predictors.standard import StandardPredictor


class NGBoostPredictor(StandardPredictor):
    """Boosted trees for mean and spread of a normal distribution, by natural gradients.

    Depth and leaves are those of XGBoost. A third of the columns per tree and the number of trees
    keep a fit to seconds. The standard deviation is that of a measurement.

    Args:
        trees: Number of trees for each of mean and spread.
        depth: Depth of a tree.
        learning_rate: Factor of each tree.
        seed: Random seed of the columns.
    """

    knows_std = True

    def __init__(
        self, trees: int = 200, depth: int = 3, learning_rate: float = 0.1, seed: int = 0
    ) -> None:
        self.trees = trees
        self.depth = depth
        self.learning_rate = learning_rate
        self.seed = seed

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        # A normal distribution cannot be fitted to constant latencies.
        self.model_ = None if np.ptp(y) == 0 else self._model(len(x)).fit(x, y, weights)

    def _model(self, samples: int) -> NGBRegressor:
        tree = DecisionTreeRegressor(
            max_depth=self.depth, min_samples_leaf=leaf_size(samples), random_state=self.seed
        )
        return NGBRegressor(
            Base=tree,
            n_estimators=self.trees,
            learning_rate=self.learning_rate,
            col_sample=1 / 3,
            random_state=self.seed,
            verbose=False,
        )

    def _recall(self, x: Floats) -> Floats:
        return self._recall_with_std(x)[0]

    def _recall_with_std(self, x: Floats) -> tuple[Floats, Floats]:
        if self.model_ is None:
            return np.zeros(len(x)), np.ones(len(x))
        normal = self.model_.pred_dist(x)
        return normal.loc, normal.scale
