"""Choice of the candidates that a campaign measures next, by what they teach its predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.table import Samples
from esm_host.encoding.base import Encoder
from esm_host.predictors.base import JointPredictor, Predictor
from esm_host.sampling.informative import (
    NOISE,
    most_informative,
    posterior_features,
    prior_features,
)
from esm_models.architecture import Architecture

Floats = NDArray[np.float64]

DeviceTimes = Callable[[Floats], Floats]
"""Function that converts latencies, ms, shape ``(n,)``, to device times, s, shape ``(n,)``."""


def choose_next(
    pool: Sequence[Architecture],
    n: int,
    encoder: Encoder,
    predictor: Predictor,
    samples: Samples,
    weights: Floats,
    seconds: DeviceTimes,
    strata: NDArray[np.integer],
    shares: Sequence[int],
) -> NDArray[np.intp]:
    """Return the rows to measure next.

    The covariance is that of the predictor, if it is a :class:`JointPredictor`. Otherwise it is
    the prior one of its encoding.

    Args:
        pool: Candidates.
        n: Number of rows.
        encoder: Encoder of the predictor.
        predictor: Predictor trained on the samples.
        samples: Samples so far.
        weights: Training weight of each sample.
        seconds: Function from latencies to device times.
        strata: Bin of each candidate.
        shares: Number of rows of each bin.
    """
    encodings, known = encoder.encode([*pool, *samples.architectures]), slice(len(pool), None)
    if isinstance(predictor, JointPredictor):
        features, noise = predictor.joint_features(encodings)
    else:
        features, noise = prior_features(encodings, encoder.layout.groups), NOISE
    left = posterior_features(
        features[: len(pool)], features[known], noise * weights.mean() / weights
    )
    latency_ms = predictor.predict(encodings[: len(pool)])
    return most_informative(left, n, seconds(latency_ms), noise, strata, shares)
