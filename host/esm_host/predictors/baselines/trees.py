"""Random forest of the predictor study."""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from esm_host.predictors.base import Floats
from esm_host.predictors.standard import StandardPredictor


def leaf_size(samples: int) -> int:
    """Return the smallest number of samples per leaf of boosted trees: a tenth, from 1 to 10."""
    return min(max(samples // 10, 1), 10)


class ForestPredictor(StandardPredictor):
    """Random forest: mean of fully grown trees, each split on a third of the columns.

    The standard deviation is the spread of the trees. Hyperparameters were chosen as for
    :class:`StandardPredictor`: neither all columns nor two samples per leaf are better.

    Args:
        trees: Number of trees.
        share: Share of the columns per split.
        seed: Random seed of the samples and columns.
    """

    knows_std = True

    def __init__(self, trees: int = 100, share: float = 1 / 3, seed: int = 0) -> None:
        self.trees = trees
        self.share = share
        self.seed = seed

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        model = RandomForestRegressor(
            self.trees, max_features=self.share, random_state=self.seed, n_jobs=1
        )
        self.model_ = model.fit(x, y, weights)

    def _recall(self, x: Floats) -> Floats:
        result: Floats = self.model_.predict(x)
        return result

    def _recall_with_std(self, x: Floats) -> tuple[Floats, Floats]:
        each = np.array([tree.predict(x) for tree in self.model_.estimators_])
        # Trees may all agree, which is not certainty.
        return self._recall(x), np.maximum(each.std(axis=0), 1e-3)
