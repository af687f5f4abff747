"""The networks of a cross-validation: they judge the predictor, and disagree where it is unsure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoding
from esm_host.evaluation.accuracy import assign_folds
from esm_host.predictors.base import Predictor

Floats = NDArray[np.float64]

FASTEST_MS = 1e-3
"""No network runs faster; a predictor may say so where it has seen nothing."""


def cross_validate(
    make_predictor: Callable[[int], Predictor],
    encodings: Encoding,
    latency_ms: Floats,
    weights: Floats,
    strata: NDArray[np.int64],
    folds: int,
    seed: int,
) -> tuple[Floats, list[Predictor]]:
    """Out-of-fold predictions, ``(n,)``, and the predictors that made them.

    Args:
        make_predictor: a fresh, unfitted predictor; members by number, so that each may start
            from other weights (Lakshminarayanan et al. 2017).
        encodings: ``(n, d)``.
        latency_ms: ``(n,)``.
        weights: how much each sample counts in training, ``(n,)``.
        strata: bin of each sample, ``(n,)``.
    """
    fold = assign_folds(strata, folds, seed)
    numbers = range(int(fold.max()) + 1)
    committee = [make_predictor(number) for number in numbers]
    others = [np.flatnonzero(fold != number) for number in numbers]
    type(committee[0]).fit_all(
        committee, [(encodings[rows], latency_ms[rows], weights[rows]) for rows in others]
    )
    predicted = np.empty(len(fold))
    for number, member in enumerate(committee):
        rows = np.flatnonzero(fold == number)
        predicted[rows] = member.predict(encodings[rows])
    return predicted, committee


def choose(
    committee: list[Predictor], encodings: Encoding, seconds: Callable[[Floats], Floats], count: int
) -> NDArray[np.int64]:
    """The candidates that teach most per second of the device's time.

    Query by committee: predictors trained on different parts of the data disagree where the data
    do not decide (Seung et al. 1992; for regression by variance, Krogh and Vedelsby 1995). The
    standard deviation is taken relative to the prediction, as accuracy is, and divided by the
    expected cost, the usual return on investment (Settles 2009, section 6.6).

    Args:
        committee: fitted predictors, two at least.
        encodings: of the candidates, ``(n, d)``.
        seconds: of the device's time that models of such latencies (milliseconds) take.

    Returns:
        Rows of the best ``count`` candidates, best first; the earlier one where two are equal.
    """
    each = [np.maximum(member.predict(encodings), FASTEST_MS) for member in committee]
    mean = np.mean(each, axis=0)
    gain = np.std(each, axis=0) / mean / seconds(mean)
    return np.argsort(-gain, kind="stable")[:count]
