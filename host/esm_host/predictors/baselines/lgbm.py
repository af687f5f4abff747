"""LightGBM of the predictor study (Ke et al. 2017)."""

from __future__ import annotations

import numpy as np
from lightgbm import Booster, Dataset, train

from esm_host.predictors.base import Floats
from esm_host.predictors.baselines.trees import leaf_size
from esm_host.predictors.standard import StandardPredictor


class LightGBMPredictor(StandardPredictor):
    """Boosted trees of 8 leaves, each on half of the columns.

    A leaf holds :func:`leaf_size` samples. With the library's default of 20, fewer than 40 samples
    would give only the mean. Hyperparameters were chosen as for :class:`StandardPredictor`: more
    leaves are worse.

    Args:
        trees: Number of trees.
        leaves: Largest number of leaves of a tree.
        learning_rate: Factor of each tree.
        seed: Random seed of the columns.
    """

    def __init__(
        self, trees: int = 500, leaves: int = 8, learning_rate: float = 0.05, seed: int = 0
    ) -> None:
        self.trees = trees
        self.leaves = leaves
        self.learning_rate = learning_rate
        self.seed = seed

    def _learn(self, x: Floats, y: Floats, weights: Floats) -> None:
        params = {
            "objective": "regression",
            "num_leaves": self.leaves,
            "learning_rate": self.learning_rate,
            "feature_fraction": 0.5,
            "min_data_in_leaf": leaf_size(len(x)),
            "min_data_in_bin": 1,
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": 1,
            "seed": self.seed,
            "verbosity": -1,
        }
        self.model_: Booster = train(params, Dataset(x, y, weight=weights), self.trees)

    def _recall(self, x: Floats) -> Floats:
        return np.asarray(self.model_.predict(x, num_threads=1), dtype=np.float64)
