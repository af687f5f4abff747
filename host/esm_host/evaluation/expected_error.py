"""Expected errors of a predictor by bin, from samples that were chosen and not drawn.

Chosen samples are not typical of their bin, so their errors are not averaged. They tell how large
errors are in units of the standard deviation that the predictor reports. The mean standard
deviation of random architectures of a bin, times this ratio, is the bin's expected error (a
model-assisted estimate: Saerndal, Swensson and Wretman 1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Floats = NDArray[np.float64]

_BETWEEN_BINS = 0.15
"""Least standard deviation of the logarithm of the ratio between bins."""
_SPREAD = 0.75
"""Least relative standard deviation of absolute errors; that of a normal error is 0.756."""


@dataclass(frozen=True, eq=False)
class ExpectedErrors:
    """Mean absolute relative errors by bin.

    Attributes:
        estimate: Estimates, ``(bins,)``.
        upper: Upper confidence bounds, ``(bins,)``.
    """

    estimate: Floats
    upper: Floats


def expected_errors(
    errors: Floats,
    stds: Floats,
    bins: NDArray[np.integer],
    mean_std: Floats,
    confidence: float,
) -> ExpectedErrors:
    """Return the expected errors of each bin.

    The logarithm of the ratio of errors to standard deviations is normal over the bins, with mean
    and variance from the samples (empirical Bayes).

    Args:
        errors: Relative errors of held-out predictions, ``(n,)``.
        stds: Their relative standard deviations as the predictor reports them, ``(n,)``.
        bins: Bin of each sample, ``(n,)``.
        mean_std: Mean relative standard deviation of random architectures by bin, ``(bins,)``.
        confidence: Probability that a bin's error is at most its bound.
    """
    ratios = np.abs(errors) / stds
    overall, variance = _mean(ratios)
    own = [_mean(ratios[bins == number]) for number in range(len(mean_std))]
    logs, variances = (np.array(values) for values in zip(*own, strict=True))
    known = np.isfinite(variances)
    apart = (logs[known] - overall) ** 2 - variances[known]
    between = max(_BETWEEN_BINS**2, float(apart.mean()) if known.any() else 0.0)
    prior = between + variance
    share = np.where(known, prior / (prior + np.where(known, variances, 1)), 0)
    ratio = overall + share * (np.where(known, logs, overall) - overall)
    deviation = np.sqrt(prior * (1 - share))
    upper = np.exp(ratio + float(norm.ppf(confidence)) * deviation)
    return ExpectedErrors(np.exp(ratio) * mean_std, upper * mean_std)


def _mean(ratios: Floats) -> tuple[float, float]:
    """Return the logarithm of the mean and its variance; infinite without ratios."""
    if not len(ratios):
        return 0.0, float("inf")
    mean = max(float(ratios.mean()), 1e-6)
    relative = max(float(ratios.std()) / mean, _SPREAD)
    return float(np.log(mean)), relative**2 / len(ratios)
