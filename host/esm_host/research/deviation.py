"""Simulated predictors: true latencies plus deviations like those of a real predictor.

The deviations of predictors are not normal: most are small and some are large (Laube et al., What
to expect of hardware metric predictors in NAS, Fig. 2). A mixture of normals has this shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Deviations:
    """Shape of a distribution of deviations, as a mixture of normals of any scale.

    Attributes:
        weights: Weights of the normals; their sum is 1.
        means: Mean of each normal.
        stds: Standard deviation of each normal.
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.dot(self.weights, self.means))

    @property
    def std(self) -> float:
        """Standard deviation of the mixture."""
        square = np.dot(self.weights, np.square(self.stds) + np.square(self.means))
        return float(np.sqrt(square - self.mean**2))

    def scaled(self) -> Deviations:
        """Return the same shape with mean 0 and standard deviation 1."""
        means, stds = np.array(self.means) - self.mean, np.array(self.stds)
        return Deviations(
            self.weights, tuple((means / self.std).tolist()), tuple((stds / self.std).tolist())
        )

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], std: float = 1.0) -> Floats:
        """Return independent deviations with mean 0 and this standard deviation."""
        shapes = self.scaled()
        edges = np.cumsum(shapes.weights)[:-1]
        which = np.searchsorted(edges, rng.random(shape), side="right")
        drawn = rng.standard_normal(shape)
        drawn *= std * np.array(shapes.stds)[which]
        drawn += std * np.array(shapes.means)[which]
        return drawn


def fit_deviations(deviations: ArrayLike, components: int = 2, seed: int = 0) -> Deviations:
    """Fit a mixture of normals to the deviations of a real predictor, by maximum likelihood.

    Args:
        deviations: Predicted minus true latencies, ``(n,)``, in any unit.
        components: Number of normals.
        seed: Random seed.

    Raises:
        ValueError: there are fewer deviations than components, or all are equal.
    """
    from sklearn.mixture import GaussianMixture

    values = np.asarray(deviations, dtype=np.float64)
    if len(values) < max(components, 2) or not np.ptp(values) > 0:
        raise ValueError(f"{len(values)} deviations do not make a distribution: give more")
    unit = values.std()
    mixture = GaussianMixture(components, random_state=seed, max_iter=1000, tol=1e-6)
    mixture.fit(values[:, None] / unit)
    order = np.argsort(mixture.covariances_[:, 0, 0])
    return Deviations(
        tuple(mixture.weights_[order].tolist()),
        tuple((unit * mixture.means_[order, 0]).tolist()),
        tuple((unit * np.sqrt(mixture.covariances_[order, 0, 0])).tolist()),
    )


TYPICAL = Deviations(weights=(0.89, 0.11), means=(0.03, -0.27), stds=(0.81, 1.90))
"""Mixture of two normals, fitted to deviations of the multilayer perceptron on NAS-Bench-201.

The devices are 1080ti_1, silver_4114, titanx_256 and samsung_s7, with 124 and 500 training samples.
Each set of deviations is scaled to standard deviation 1; all are pooled.
"""
