"""Cross-validated perceptrons, a candidate of the automatic predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from esm_host.evaluation.accuracy import assign_folds
from esm_host.predictors.base import Floats

if TYPE_CHECKING:
    from esm_host.predictors.mlp import MLPPredictor

NETWORKS = 5


class FoldNetworks:
    """Multilayer perceptrons of three wide layers, one per fold, trained together.

    Each member is trained without its fold. The prediction is the members' mean. After :meth:`fit`,
    ``left_out_`` has the means and standard deviations of log latencies, each ``(n,)``. They are
    predicted by the member trained without the sample.

    Args:
        seed: Random seed of folds, initial weights and batches.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats) -> None:
        from esm_host.predictors.mlp import MLPPredictor  # torch is slow to load

        fold = assign_folds(np.zeros(len(latency_ms), dtype=np.int64), NETWORKS, self.seed)
        self.members_ = [
            MLPPredictor(
                hidden=128,
                layers=3,
                learning_rate=0.003,
                weight_decay=1e-3,
                epochs=20,
                min_steps=800,
                batch_size=64,
                seed=NETWORKS * self.seed + number,
            )
            for number in range(NETWORKS)
        ]
        seen = [np.flatnonzero(fold != number) for number in range(NETWORKS)]
        MLPPredictor.fit_all(
            self.members_, [(encodings[r], latency_ms[r], weights[r]) for r in seen]
        )
        self.least_ms_ = float(latency_ms.min()) / 10  # the output of a network has no bound
        means = np.empty(len(fold))
        for number, member in enumerate(self.members_):
            own = fold == number
            means[own] = self._log(member, encodings[own])
        errors = np.log(latency_ms) - means
        self.std_ = float(np.sqrt(np.average(errors**2, weights=weights)))
        self.left_out_ = means, np.full(len(fold), self.std_)

    def in_log(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Return log latencies and their standard deviations, ``(n,)``."""
        mean = np.mean([self._log(member, encodings) for member in self.members_], axis=0)
        return mean, np.full(len(mean), self.std_)

    def _log(self, member: MLPPredictor, encodings: NDArray[np.float32]) -> Floats:
        return np.log(np.maximum(member.predict(encodings), self.least_ms_))
