"""Candidates of the automatic predictor, and their predictions of samples that are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from esm_host.encoding.base import Layout
from esm_host.evaluation.accuracy import assign_folds
from esm_host.predictors.base import Floats, Samples
from esm_host.predictors.design import INDUCING, Design
from esm_host.predictors.process import Process
from esm_host.predictors.readout import said

SOURCES = "sources"
"""Group of columns that say what other devices would take."""
WITH_SOURCES, WITHOUT_SOURCES = "log, additive", "log, additive, without sources"
CROSS_VALIDATED = 150
"""Samples up to which processes are fitted anew without each fold; above, the few parameters of
their kernels know the sample that is left out, which no longer shows."""
FOLDS = 10
_INTERACTING = ("operations", "counts")
"""Groups whose columns may matter together; the others are sums already."""


def fit_candidates(
    samples: Samples,
    layout: Layout | None,
    seed: int,
    like: Mapping[str, Process] | None = None,
    points: int = INDUCING,
) -> dict[str, Process]:
    """Processes on log latency and on latency itself with errors in proportion, additive and with
    smooth interactions; where a group says what other devices would take (:data:`SOURCES`), one
    that does not know it.

    Args:
        samples: all with positive weights.
        like: candidates of much the same samples, where the search for parameters may begin.
        points: inducing points, at most.
    """
    x, latency_ms, weights = samples
    names = list(layout.groups) if layout else ["all"]
    interacting = [name for name in names if name in _INTERACTING] or names
    design = Design.of(x, layout, interacting, seed, points)
    kinds: list[tuple[str, Sequence[str], Sequence[str], str]] = [
        (f"{target}, {kind}", names, smooth, target)
        for target in ("log", "raw")
        for kind, smooth in (("additive", ()), ("smooth", interacting))
    ]
    if SOURCES in names:  # which may be of no use here
        kinds.append((WITHOUT_SOURCES, [name for name in names if name != SOURCES], (), "log"))
    fitted: dict[str, Process] = {}
    for name, linear, smooth, target in kinds:
        process = Process(linear, smooth, target, seed)
        # Parameters of one are much like those of the next.
        first = fitted.get("log, additive")
        near = like[name] if like else fitted.get(name.replace("raw", "log"), first)
        process.fit(design, x, latency_ms, weights, near)
        fitted[name] = process
    return fitted


def left_out(
    candidates: Mapping[str, Process], samples: Samples, layout: Layout | None, seed: int
) -> tuple[Floats, Floats]:
    """Means and standard deviations of log latencies, of each sample by others, ``(candidates,
    n)``.

    Args:
        candidates: fitted to these samples.
    """
    x, latency_ms, weights = samples
    n = len(latency_ms)
    if n > CROSS_VALIDATED or n < 3:
        parts = [process.left_out_ for process in candidates.values()]
        means, stds = zip(*parts, strict=True)
        return np.stack(means), np.stack(stds)
    mean, std = np.empty((2, len(candidates), n))
    fold = assign_folds(np.zeros(n, dtype=np.int64), FOLDS, seed)
    for number in range(int(fold.max()) + 1):
        own, others = fold == number, fold != number
        members = fit_candidates(
            (x[others], latency_ms[others], weights[others]), layout, seed, candidates
        )
        processes = list(members.values())
        answers = said(processes, [True] * len(processes), x[own])
        for row, (process, answer) in enumerate(zip(processes, answers, strict=True)):
            mean[row, own], std[row, own] = process.in_log(answer)
    return mean, std
