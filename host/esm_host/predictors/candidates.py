"""Candidates of the automatic predictor, and their held-out predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from esm_host.encoding.base import Layout
from esm_host.evaluation.accuracy import assign_folds
from esm_host.predictors.base import Floats, Samples
from esm_host.predictors.design import INDUCING, Design
from esm_host.predictors.process import Process
from esm_host.predictors.readout import evaluate

SOURCES = "sources"
"""Group of columns with latencies predicted for other devices."""
WITH_SOURCES, WITHOUT_SOURCES = "log, additive", "log, additive, without sources"
CROSS_VALIDATED = 150
"""Largest training set for which processes are fitted anew without each fold.

In larger ones the few kernel parameters, fitted to all samples, bias held-out predictions only
negligibly.
"""
FOLDS = 10
_INTERACTING = ("operations", "counts")
"""Groups whose columns may interact; the others are sums already."""


def fit_candidates(
    samples: Samples,
    layout: Layout | None,
    seed: int,
    like: Mapping[str, Process] | None = None,
    points: int = INDUCING,
) -> dict[str, Process]:
    """Return fitted processes by name.

    Targets are log latency, and latency with errors in proportion. For each there is an additive
    process and one with smooth interactions. If there is a group :data:`SOURCES`, a further one
    leaves it out.

    Args:
        samples: Samples, all with positive weights.
        layout: Groups of columns; None makes all columns one group.
        seed: Random seed.
        like: Candidates of similar samples, at whose parameters the search begins.
        points: Largest number of inducing points.
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
    if SOURCES in names:  # sources may not help on this device
        kinds.append((WITHOUT_SOURCES, [name for name in names if name != SOURCES], (), "log"))
    fitted: dict[str, Process] = {}
    for name, linear, smooth, target in kinds:
        process = Process(linear, smooth, target, seed)
        # Similar processes have similar parameters: begin the search there.
        first = fitted.get("log, additive")
        near = like[name] if like else fitted.get(name.replace("raw", "log"), first)
        process.fit(design, x, latency_ms, weights, near)
        fitted[name] = process
    return fitted


def left_out(
    candidates: Mapping[str, Process], samples: Samples, layout: Layout | None, seed: int
) -> tuple[Floats, Floats]:
    """Return held-out means and standard deviations of log latencies, ``(candidates, n)`` each.

    Args:
        candidates: Candidates, fitted to these samples.
        samples: Samples, all with positive weights.
        layout: Groups of columns; None makes all columns one group.
        seed: Random seed.
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
        outputs = evaluate(processes, [True] * len(processes), x[own])
        for row, (process, output) in enumerate(zip(processes, outputs, strict=True)):
            mean[row, own], std[row, own] = process.in_log(output)
    return mean, std
