"""Task of a study: one predictor on one device with one training size, for all seeds."""

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
class TaskName:
    """Name of a task, as in the columns of the results.

    Attributes:
        data: Name of the data set.
        device: Name of the device.
        label: Label of the predictor.
        predictor: Name of the predictor.
        encoding: Name of the encoding.
        size: Size of the training set.
        fixed_size: Whether the predictor has a training set of its own.
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
    """Everything that a worker needs, on any machine.

    Attributes:
        name: Name of the task.
        predictors: Unfitted predictors, one per seed.
        encodings: Encodings, ``(n, d)``.
        latency_ms: Latencies, ms, ``(n,)``.
        weights: Weights, ``(n,)``.
        depth: Depths, ``(n,)``.
        bins: Depth bins.
        train: Rows of the training set, for each seed.
        test: Rows of the test set, for each seed.
        coverage: Share of the latencies that prediction intervals should hold.
        keep_predictions: Whether to keep the predictions of the first seed.
    """

    name: TaskName
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
class TaskResult:
    """Result of a task.

    Attributes:
        rows: One row per seed (:meth:`esm_host.research.study.results.Study.results`).
        predictions: ``row``, ``depth``, ``measured_ms``, ``predicted_ms`` of the first seed; None
            if they are not kept or the task failed.
    """

    rows: pd.DataFrame
    predictions: pd.DataFrame | None


def compute(task: Task) -> TaskResult:
    """Fit and evaluate the predictors; an error becomes part of the result."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _compute(task)
    except Exception as error:  # a predictor may raise anything
        text = " ".join(str(error).split())[:500]
        message = f"{type(error).__name__}: {text}" if text else type(error).__name__
        rows = [_row(task, seed, failure=message) for seed in range(len(task.predictors))]
        return TaskResult(pd.DataFrame(rows), None)


def _compute(task: Task) -> TaskResult:
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
    return TaskResult(pd.DataFrame(rows), kept)


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
