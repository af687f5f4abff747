"""XGBoost of the predictor study (Chen and Guestrin 2016)."""

from __future__ import annotations

import numpy as np
from xgboost import XGBRegressor

from esm_host.predictors.base import Floats
from esm_host.predictors.baselines.trees import leaf_size
from esm_host.predictors.standard import StandardPredictor


class XGBoostPredictor(StandardPredictor):
    """Boosted trees of depth 3, each on half of the columns and four fifths of the samples.

    Hyperparameters were chosen as for :class:`StandardPredictor`. Latency is nearly additive, so
    deeper trees and leaves smaller than :func:`leaf_size` are worse.

    Args:
        trees: Number of trees.
        depth: Depth of a tree.
        learning_rate: Factor of each tree.
        seed: Random seed of the samples and columns.
    """

    def __init__(
        self, trees: int = 1000, depth: int = 3, learning_rate: float = 0.05, seed: int = 0
    ) -> None:
        self.trees = trees
        self.depth = depth
        self.learning_rate = learning_rate
        self.seed = seed

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        model = XGBRegressor(
            n_estimators=self.trees,
            max_depth=self.depth,
            learning_rate=self.learning_rate,
            colsample_bytree=0.5,
            subsample=0.8,
            min_child_weight=leaf_size(len(x)),
            random_state=self.seed,
            n_jobs=1,
        )
        self.model_ = model.fit(x, y, sample_weight=weights)

    def _recall(self, x: Floats) -> Floats:
        return np.asarray(self.model_.predict(x), dtype=np.float64)
