"""Committee of the predictors of a cross-validation.

Their out-of-fold errors give the accuracy, their disagreement the uncertainty.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoding
from esm_host.evaluation.accuracy import FASTEST_MS, assign_folds
from esm_host.predictors.base import Predictor

Floats = NDArray[np.float64]


def cross_validate(
    make_predictor: Callable[[int], Predictor],
    encodings: Encoding,
    latency_ms: Floats,
    weights: Floats,
    strata: NDArray[np.int64],
    folds: int,
    seed: int,
) -> tuple[Floats, Floats, list[Predictor]]:
    """Return out-of-fold predictions, their standard deviations, and the predictors.

    Predictions are in ms, shape ``(n,)``. Standard deviations are shares of them, shape ``(n,)``;
    1 from predictors that do not know theirs.

    Args:
        make_predictor: Factory of unfitted predictors, by member. Each may start from other
            weights (Lakshminarayanan et al. 2017).
        encodings: Encodings, shape ``(n, d)``.
        latency_ms: Latencies, ms, shape ``(n,)``.
        weights: Training weights, shape ``(n,)``.
        strata: Bin of each sample, shape ``(n,)``.
        folds: Number of folds.
        seed: Random seed of the folds.
    """
    fold = assign_folds(strata, folds, seed)
    numbers = range(int(fold.max()) + 1)
    committee = [make_predictor(number) for number in numbers]
    others = [np.flatnonzero(fold != number) for number in numbers]
    type(committee[0]).fit_all(
        committee, [(encodings[rows], latency_ms[rows], weights[rows]) for rows in others]
    )
    predicted, stds = np.empty((2, len(fold)))
    for number, member in enumerate(committee):
        rows = np.flatnonzero(fold == number)
        predicted[rows], stds[rows] = with_std(member, encodings[rows])
    return predicted, stds, committee


def with_std(predictor: Predictor, encodings: Encoding) -> tuple[Floats, Floats]:
    """Return predictions, ms, and their standard deviations as shares, shape ``(n,)`` each."""
    if not predictor.knows_std:
        return predictor.predict(encodings), np.ones(len(encodings))
    predicted, std = predictor.predict(encodings, return_std=True)
    return predicted, std / predicted


def choose(
    committee: list[Predictor], encodings: Encoding, seconds: Callable[[Floats], Floats], count: int
) -> NDArray[np.int64]:
    """Return the candidates with the largest information gain per second of device time.

    Query by committee: predictors trained on different parts of the data disagree where the data
    are not decisive (Seung et al. 1992; for regression by variance, Krogh and Vedelsby 1995). The
    gain is the standard deviation relative to the prediction. It is divided by the expected cost,
    the usual return on investment (Settles 2009, section 6.6).

    Args:
        committee: Two or more fitted predictors.
        encodings: Encodings of the candidates, shape ``(n, d)``.
        seconds: Function from latencies, ms, to device time, s.
        count: Number of candidates to choose.

    Returns:
        Rows of the best ``count`` candidates, best first; the earlier one of equals.
    """
    each = [np.maximum(member.predict(encodings), FASTEST_MS) for member in committee]
    mean = np.mean(each, axis=0)
    gain = np.std(each, axis=0) / mean / seconds(mean)
    return np.argsort(-gain, kind="stable")[:count]
