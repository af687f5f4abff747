"""BANANAS: an ensemble of multilayer perceptrons on the paths of a cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from esm_host.predictors.base import Floats, Predictor, Samples
from esm_host.predictors.mlp import MLPPredictor


class BANANASPredictor(Predictor):
    """Mean of three large MLPs that differ in their seeds (White et al. 2019).

    "BANANAS: Bayesian Optimization with Neural Architectures for Neural Architecture Search". It
    uses the encoding ``path``, or ``operation-one-hot`` for spaces without paths. The networks are
    those of the predictor ``mlp-large``, as in the predictor study (Laube et al. 2022). The loss is
    the squared error. The paper's loss, relative to a bound below the best accuracy, has no meaning
    for latencies. The standard deviation is the networks' spread, as in the paper. It is smaller
    than their error.

    Args:
        members: Number of networks.
        hidden: Hyperparameter of :class:`esm_host.predictors.mlp.MLPPredictor`, as the following
            ones.
        seed: Random seed, from which the networks' seeds follow.
    """

    knows_std = True

    def __init__(
        self,
        members: int = 3,
        hidden: int = 32,
        layers: int = 6,
        learning_rate: float = 0.01,
        weight_decay: float = 3e-4,
        epochs: int = 30,
        min_steps: int = 800,
        batch_size: int = 32,
        gain: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.members = members
        self.hidden = hidden
        self.layers = layers
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.min_steps = min_steps
        self.batch_size = batch_size
        self.gain = gain
        self.seed = seed

    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        self._fit_all([self], [(encodings, latency_ms, weights)])

    @classmethod
    def _fit_all(cls, predictors: Sequence[Self], samples: Sequence[Samples]) -> None:
        """Train all networks of all ensembles at once."""
        networks, parts = [], []
        for predictor, part in zip(predictors, samples, strict=True):
            predictor.networks_ = predictor._networks()
            networks += predictor.networks_
            parts += [part] * predictor.members
        MLPPredictor.fit_all(networks, parts)

    def _networks(self) -> list[MLPPredictor]:
        params = {key: value for key, value in self.get_params().items() if key != "members"}
        seeds = np.random.SeedSequence(self.seed).generate_state(self.members).tolist()
        return [MLPPredictor(**{**params, "seed": seed}) for seed in seeds]

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        return self._predict_with_std(encodings)[0]

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        each = np.stack([network.predict(encodings) for network in self.networks_])
        return each.mean(axis=0), each.std(axis=0)
