"""Expected errors of a predictor by bin, from samples that were chosen and not drawn.

Chosen samples are not typical of their bin, so their errors are not averaged. They tell how large
errors are in units of the standard deviation that the predictor reports, and whether this ratio
grows with the latency: large networks may vary more from moment to moment, and fewer of them are
chosen because they take longer. The standard deviations of random architectures of a bin, times
their ratios, give the bin's expected error (a model-assisted estimate: Saerndal, Swensson and
Wretman 1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from esm_host.evaluation.accuracy import FASTEST_MS

Floats = NDArray[np.float64]

_BETWEEN_BINS = 0.15
"""Least standard deviation of the logarithm of the ratio between bins."""
_SPREAD = 0.75
"""Least relative standard deviation of absolute errors; that of a normal error is 0.756."""
_GROWTH = 1.0
"""Prior standard deviation of the ratio's power of the latency."""
_STEPS = 20


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions of ``n`` architectures by a predictor that has not seen them.

    Attributes:
        latency_ms: Predicted latencies, ms, ``(n,)``.
        stds: Their relative standard deviations as the predictor reports them, ``(n,)``.
        bins: Bins of the architectures, ``(n,)``.
    """

    latency_ms: Floats
    stds: Floats
    bins: NDArray[np.integer]

    @property
    def sizes(self) -> Floats:
        """Log latencies, ``(n,)``; some predictors give values that are not positive."""
        return np.log(np.maximum(self.latency_ms, FASTEST_MS))


@dataclass(frozen=True, eq=False)
class ExpectedErrors:
    """Mean absolute relative errors by bin; NaN for a bin without population.

    Attributes:
        estimate: Estimates, ``(bins,)``.
        upper: Upper confidence bounds, ``(bins,)``.
    """

    estimate: Floats
    upper: Floats


def expected_errors(
    samples: Predicted, errors: Floats, population: Predicted, bins: int, confidence: float
) -> ExpectedErrors:
    """Return the expected errors of each bin.

    The ratio of an error to its standard deviation is a power of the latency times a factor of the
    bin, whose logarithm is normal over the bins (empirical Bayes).

    Args:
        samples: Held-out predictions of samples.
        errors: Their relative errors, ``(n,)``.
        population: Predictions of random architectures.
        bins: Number of bins.
        confidence: Probability that a bin's error is at most its bound.
    """
    ratios = np.abs(errors) / samples.stds
    sizes = samples.sizes
    centre = float(sizes.mean())
    power, power_variance = _growth(ratios, sizes - centre)
    ratios = ratios * np.exp(-power * (sizes - centre))
    overall, variance = _mean(ratios)
    own = [_mean(ratios[samples.bins == number]) for number in range(bins)]
    logs, variances = (np.array(values) for values in zip(*own, strict=True))
    known = np.isfinite(variances)
    apart = (logs[known] - overall) ** 2 - variances[known]
    between = max(_BETWEEN_BINS**2, float(apart.mean()) if known.any() else 0.0)
    prior = between + variance
    share = np.where(known, prior / (prior + np.where(known, variances, 1)), 0)
    ratio = overall + share * (np.where(known, logs, overall) - overall)
    typical, larger = _of_population(population, centre, power, bins)
    # The own samples of a bin already have some of its latencies.
    nearer = np.array(
        [
            (sizes[samples.bins == number] - centre).mean() if known[number] else 0
            for number in range(bins)
        ]
    )
    beyond = larger - share * nearer
    deviation = np.sqrt(prior * (1 - share) + power_variance * beyond**2)
    upper = np.exp(ratio + float(norm.ppf(confidence)) * deviation)
    return ExpectedErrors(np.exp(ratio) * typical, upper * typical)


def _growth(ratios: Floats, sizes: Floats) -> tuple[float, float]:
    """Return the power of the latency by which ratios grow, and its variance.

    A generalised linear model with the variance of a gamma distribution and a logarithmic link.

    Args:
        ratios: Absolute errors in standard deviations, ``(n,)``.
        sizes: Centred log latencies, ``(n,)``.
    """
    design = np.stack([np.ones_like(sizes), sizes], axis=1)
    precision = design.T @ design / _SPREAD**2 + np.diag([0, _GROWTH**-2])
    weights = np.array([np.log(max(float(ratios.mean()), 1e-6)), 0.0])
    for _ in range(_STEPS):
        pull = design.T @ (ratios * np.exp(-design @ weights) - 1) / _SPREAD**2
        pull[1] -= weights[1] / _GROWTH**2
        weights = weights + np.clip(np.linalg.solve(precision, pull), -1, 1)
    return float(weights[1]), float(np.linalg.inv(precision)[1, 1])


def _of_population(
    population: Predicted, centre: float, power: float, bins: int
) -> tuple[Floats, Floats]:
    """Return the mean of standard deviation times power, and the mean log latency, ``(bins,)``."""
    sizes = population.sizes - centre
    expected = population.stds * np.exp(power * sizes)
    typical, larger = np.full((2, bins), np.nan)
    for number in np.unique(population.bins).tolist():
        rows = population.bins == number
        typical[number] = expected[rows].mean()
        larger[number] = np.average(sizes[rows], weights=expected[rows])
    return typical, larger


def _mean(ratios: Floats) -> tuple[float, float]:
    """Return the logarithm of the mean and its variance; infinite without ratios."""
    if not len(ratios):
        return 0.0, float("inf")
    mean = max(float(ratios.mean()), 1e-6)
    relative = max(float(ratios.std()) / mean, _SPREAD)
    return float(np.log(mean)), relative**2 / len(ratios)
