"""Predictors that need no training: true latencies with deviations like a real predictor's.

Deviations of predictors are no normal distribution: most are small and some are large (Laube et
al., What to expect of hardware metric predictors in NAS, Fig. 2), as a mixture of normals has it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Deviations:
    """The shape of a distribution of deviations: a mixture of normals, of any scale.

    Attributes:
        weights: of the normals; their sum is 1.
        means, stds: of each.
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.dot(self.weights, self.means))

    @property
    def std(self) -> float:
        """Of the whole mixture."""
        square = np.dot(self.weights, np.square(self.stds) + np.square(self.means))
        return float(np.sqrt(square - self.mean**2))

    def scaled(self) -> Deviations:
        """The same shape with mean 0 and standard deviation 1."""
        means, stds = np.array(self.means) - self.mean, np.array(self.stds)
        return Deviations(
            self.weights, tuple((means / self.std).tolist()), tuple((stds / self.std).tolist())
        )

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], std: float = 1.0) -> Floats:
        """Independent deviations with mean 0 and this standard deviation, whatever the scale."""
        shapes = self.scaled()
        edges = np.cumsum(shapes.weights)[:-1]
        which = np.searchsorted(edges, rng.random(shape), side="right")
        drawn = rng.standard_normal(shape)
        drawn *= std * np.array(shapes.stds)[which]
        drawn += std * np.array(shapes.means)[which]
        return drawn


def fit_deviations(deviations: ArrayLike, components: int = 2, seed: int = 0) -> Deviations:
    """The mixture of normals that a real predictor's deviations are likeliest under.

    Args:
        deviations: predicted minus true, ``(n,)``, in any unit.
        components: how many normals; one is a normal distribution.

    Raises:
        ValueError: fewer deviations than components, or all are the same.
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
"""Two normals, fitted to what the multilayer perceptron misses NAS-Bench-201 latencies of 1080ti_1,
silver_4114, titanx_256 and samsung_s7 by, after 124 and 500 samples, each scaled to standard
deviation 1 and all pooled."""
