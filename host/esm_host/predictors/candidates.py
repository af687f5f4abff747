"""What the automatic predictor chooses from: each says what it expects of what it has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Protocol as Role

import numpy as np
from numpy.typing import NDArray

from esm_host.evaluation.accuracy import assign_folds
from esm_host.predictors.base import Floats
from esm_host.predictors.multi_kernel import MultiKernelGP

if TYPE_CHECKING:
    from esm_host.predictors.mlp import MLPPredictor

CROSS_VALIDATED = 150
"""Samples up to which a process is fitted anew without each fold; above, the few parameters of
its kernel know the sample that is left out, which no longer shows."""
FOLDS = 10
NETWORKS = 5


class Candidate(Role):
    """Learns log latencies."""

    def fit(
        self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats
    ) -> object: ...

    def left_out(self) -> tuple[Floats, Floats]:
        """Of each sample, by others: mean and standard deviation, ``(n,)``."""

    def mean(self, encodings: NDArray[np.float32]) -> Floats:
        """Of others, ``(n,)``."""

    def mean_and_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Of others, ``(n,)``."""


class Process:
    """A Gaussian process."""

    def __init__(self, process: MultiKernelGP) -> None:
        self.process = process

    def fit(self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats) -> None:
        self.process.fit(encodings, latency_ms, weights)
        if len(latency_ms) > CROSS_VALIDATED or len(latency_ms) < 3:
            self._left_out = self.process.in_log(*self.process.left_out())
            return
        fold = assign_folds(np.zeros(len(latency_ms), dtype=np.int64), FOLDS, self.process.seed)
        mean, std = np.empty(len(fold)), np.empty(len(fold))
        for number in range(int(fold.max()) + 1):
            own, others = fold == number, fold != number
            member = MultiKernelGP(**self.process.get_params(deep=False))
            member.fit(encodings[others], latency_ms[others], weights[others])
            mean[own], std[own] = member.in_log(*member.predict_target(encodings[own]))
        self._left_out = mean, std

    def left_out(self) -> tuple[Floats, Floats]:
        return self._left_out

    def mean(self, encodings: NDArray[np.float32]) -> Floats:
        return np.log(self.process.predict(encodings))

    def mean_and_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        return self.process.in_log(*self.process.predict_target(encodings))


class FoldNetworks:
    """Multilayer perceptrons, three wide layers, trained together.

    Each has seen all folds but its own, of which it tells how far to trust them; their mean
    predicts.

    Args:
        seed: of folds, initial weights and batches.
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
        self.least_ms_ = float(latency_ms.min()) / 10  # a network may say anything
        means = np.empty(len(fold))
        for number, member in enumerate(self.members_):
            own = fold == number
            means[own] = self._log(member, encodings[own])
        errors = np.log(latency_ms) - means
        self.std_ = float(np.sqrt(np.average(errors**2, weights=weights)))
        self._left_out = means, np.full(len(fold), self.std_)

    def left_out(self) -> tuple[Floats, Floats]:
        return self._left_out

    def mean(self, encodings: NDArray[np.float32]) -> Floats:
        return np.asarray(np.mean([self._log(m, encodings) for m in self.members_], axis=0))

    def mean_and_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        means = self.mean(encodings)
        return means, np.full(len(means), self.std_)

    def _log(self, member: MLPPredictor, encodings: NDArray[np.float32]) -> Floats:
        return np.log(np.maximum(member.predict(encodings), self.least_ms_))
