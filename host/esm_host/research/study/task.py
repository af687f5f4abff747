"""One task of a study: one predictor on one device with one number of samples, all seeds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.evaluation.accuracy import accuracy_by_bin
from esm_host.predictors.base import Predictor
from esm_host.research.study.metrics import coverage_and_width, interval, ranking_and_accuracy
from esm_host.sampling.bins import DepthBins, depth_range

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Name:
    """What a task is of, as the columns of the results have it.

    Attributes:
        size: samples to train on.
        fixed_size: whether the predictor asks for certain architectures, so that sizes do not
            apply to it.
    """

    data: str
    device: str
    label: str
    predictor: str
    encoding: str
    size: int
    fixed_size: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """All that a worker needs, on whichever machine it is.

    Attributes:
        predictors: one per seed, not fitted.
        encodings: ``(n, d)``; ``latency_ms``, ``weights`` and ``depth`` are ``(n,)``.
        train: rows that each is fitted to.
        test: rows that each is judged on.
        coverage: that intervals are made for, a share.
        keep_predictions: of the first seed.
    """

    name: Name
    predictors: Sequence[Predictor]
    encodings: NDArray[np.float32]
    latency_ms: NDArray[np.float64]
    weights: NDArray[np.float64]
    depth: NDArray[np.int64]
    bins: DepthBins
    train: Sequence[Rows]
    test: Sequence[Rows]
    coverage: float
    keep_predictions: bool


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a task.

    Attributes:
        rows: one per seed; columns as of
            :meth:`esm_host.research.study.results.Study.results`.
        predictions: ``row``, ``depth``, ``measured_ms``, ``predicted_ms`` of the first seed; None
            where they are not kept or it failed.
    """

    rows: pd.DataFrame
    predictions: pd.DataFrame | None


def compute(task: Task) -> Outcome:
    """Fits and judges; what goes wrong becomes the outcome."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _compute(task)
    except Exception as error:  # others' code, on data that nobody has seen
        text = " ".join(str(error).split())[:500]
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        rows = [_row(task, seed, failure=message) for seed in range(len(task.predictors))]
        return Outcome(pd.DataFrame(rows), None)


def _compute(task: Task) -> Outcome:
    x, y, weights = task.encodings, task.latency_ms, task.weights
    began = time.perf_counter()
    samples = [(x[rows], y[rows], weights[rows]) for rows in task.train]
    type(task.predictors[0]).fit_all(task.predictors, samples)
    fit_s = (time.perf_counter() - began) / len(task.predictors)
    rows, kept = [], None
    for seed, (predictor, test) in enumerate(zip(task.predictors, task.test, strict=True)):
        began = time.perf_counter()
        predicted_ms = predictor.predict(x[test])
        query_s = time.perf_counter() - began
        if not np.isfinite(predicted_ms).all():
            raise ValueError("some predictions are not finite")
        measured_ms, depth = y[test], task.depth[test]
        found: dict[str, Any] = dict(ranking_and_accuracy(measured_ms, predicted_ms))
        ends = interval(predictor, x[test], task.coverage)
        if ends is not None:
            found |= coverage_and_width(measured_ms, *ends)
        by_bin = accuracy_by_bin(depth, measured_ms, predicted_ms, task.bins)
        found["bin_accuracy_percent"] = [b.accuracy_percent for b in by_bin]
        rows.append(_row(task, seed, fit_s=fit_s, query_s=query_s, **found))
        if task.keep_predictions and seed == 0:
            columns: dict[str, NDArray[Any]] = {"row": test, "depth": depth}
            columns |= {"measured_ms": measured_ms, "predicted_ms": predicted_ms}
            kept = pd.DataFrame(columns)
    return Outcome(pd.DataFrame(rows), kept)


_NUMBERS = (
    *("tau", "spearman", "accuracy_percent", "coverage_percent", "width_percent"),
    *("fit_s", "query_s"),
)


def _row(task: Task, seed: int, failure: str = "", **found: Any) -> dict[str, Any]:
    name, bins = task.name, task.bins
    depths = [bins.depths(number) for number in range(bins.count)]
    return {
        "data": name.data,
        "device": name.device,
        "label": name.label,
        "predictor": name.predictor,
        "encoding": name.encoding,
        "size": name.size,
        "fixed_size": name.fixed_size,
        "seed": seed,
        "train_samples": len(task.train[seed]),
        "test_samples": len(task.test[seed]),
        **{number: found.get(number, float("nan")) for number in _NUMBERS},
        "bins": [depth_range(each[0], each[-1]) for each in depths],
        "bin_accuracy_percent": found.get("bin_accuracy_percent", [float("nan")] * bins.count),
        "failure": failure,
    }
