"""Folder of a study: a file per finished task, and data frames of all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from esm_host.arguments import argument
from esm_host.atomic import write_json
from esm_host.errors import DatasetError, UsageError
from esm_host.research.study.plan import PlannedTask
from esm_host.research.study.settings import StudySettings
from esm_host.research.study.task import TaskResult
from esm_host.typed import typed

SCHEMA_VERSION = 1

_LIBRARIES = ("esm-profiler", "numpy", "scikit-learn", "scipy", "torch")


class StudyFolder:
    """Files of a study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tasks = path / "tasks"
        self.predictions = path / "predictions"
        self.plots = path / "plots"
        self.manifest = path / "study.json"
        self.results = path / "results.parquet"
        self.tables = path / "tables.md"

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            UsageError: they cannot be made.
        """
        try:
            for folder in (self.tasks, self.predictions, self.plots):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be made ({error.strerror}): give another {argument('results')}"
            ) from error

    def done(self, key: str) -> bool:
        """Return whether there is a result of a task that did not fail."""
        try:
            failure = pd.read_parquet(self.tasks / f"{key}.parquet", columns=["failure"])
        except Exception:  # missing or damaged: compute it
            return False
        return not failure["failure"].any()

    def keep(self, key: str, result: TaskResult) -> None:
        """Write the result of a task, each file atomically and the rows last."""
        if result.predictions is not None:
            write_frame(result.predictions, self.predictions / f"{key}.parquet")
        write_frame(result.rows, self.tasks / f"{key}.parquet")

    def describe(self, settings: StudySettings, tasks: Sequence[PlannedTask]) -> None:
        """Write the manifest: the study's tasks and the versions of its libraries."""
        versions = {name: found for name in _LIBRARIES if (found := _version(name))}
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "versions": versions,
            "seeds": settings.seeds,
            "test": settings.test,
            "coverage_percent": 100 * settings.coverage,
            "metrics": list(settings.metrics),
            "tasks": [{"key": task.key, **asdict(task.task.name)} for task in tasks],
        }
        write_json(self.manifest, manifest)


@dataclass(frozen=True, eq=False)
class Study:
    """Study that has ended or not, as read from its folder.

    Attributes:
        path: Folder of the study.
        metrics: Columns of :meth:`results` in its tables and plots.
    """

    path: Path
    metrics: tuple[str, ...]
    _tasks: Sequence[dict[str, Any]]

    @property
    def missing(self) -> int:
        """Number of tasks without a result."""
        return len(self._tasks) - len(self._frames)

    def results(self) -> pd.DataFrame:
        """Return a row per finished task and seed.

        Columns:
            ``data``, ``device``, ``label``, ``predictor``, ``encoding``, ``seed``: Task and seed.
            ``size``: Requested size of the training set.
            ``fixed_size``: Whether the predictor has a training set of its own, whose size is
                ``size``.
            ``train_samples``, ``test_samples``: Sizes of the sets.
            ``tau``, ``spearman``, ``accuracy_percent``: Kendall's tau, Spearman's correlation,
                accuracy.
            ``coverage_percent``: Share of the latencies within the prediction intervals; NaN
                without intervals.
            ``width_percent``: Width of the intervals relative to the latency; NaN without
                intervals.
            ``fit_s``, ``query_s``: Wall time of the fit, and of all predictions, s.
            ``bins``, ``bin_accuracy_percent``: Lists (:meth:`accuracy_by_bin`).
            ``failure``: Error message, empty if there is none.
        """
        return self._all.copy()

    def failures(self) -> pd.DataFrame:
        """Return a row per failed task: ``data``, ``device``, ``label``, ``size``, ``failure``."""
        failed = self._all[self._all["failure"] != ""]
        columns = ["data", "device", "label", "size", "failure"]
        return failed[columns].drop_duplicates(ignore_index=True)

    def accuracy_by_bin(self) -> pd.DataFrame:
        """Return a row per task, seed and depth bin with test samples.

        Columns: ``data``, ``device``, ``label``, ``encoding``, ``size``, ``seed``, ``bin`` (range
        of depths), ``accuracy_percent``.
        """
        columns = ["data", "device", "label", "encoding", "size", "seed"]
        frame = self._all[[*columns, "bins", "bin_accuracy_percent"]]
        frame = frame.explode(["bins", "bin_accuracy_percent"], ignore_index=True)
        frame = frame.rename(columns={"bins": "bin", "bin_accuracy_percent": "accuracy_percent"})
        frame["accuracy_percent"] = frame["accuracy_percent"].astype(float)
        return frame.dropna(subset="accuracy_percent").reset_index(drop=True)

    def predictions(self) -> pd.DataFrame:
        """Return a row per task and test sample of the first seed, if the study kept predictions.

        Columns: ``data``, ``device``, ``label``, ``encoding``, ``size``, ``row`` (of the data),
        ``depth``, ``measured_ms``, ``predicted_ms``.
        """
        columns = ["data", "device", "label", "encoding", "size"]
        frames = []
        for task in self._tasks:
            path = StudyFolder(self.path).predictions / f"{task['key']}.parquet"
            if path.exists():
                kept = _read(path)
                frames.append(kept.assign(**{c: task[c] for c in columns})[[*columns, *kept]])
        if frames:
            return pd.concat(frames, ignore_index=True)
        return pd.DataFrame(columns=[*columns, "row", "depth", "measured_ms", "predicted_ms"])

    @cached_property
    def _frames(self) -> list[pd.DataFrame]:
        frames = []
        for task in self._tasks:
            path = StudyFolder(self.path).tasks / f"{task['key']}.parquet"
            if path.exists():
                frames.append(_read(path).assign(label=task["label"]))
        return frames

    @cached_property
    def _all(self) -> pd.DataFrame:
        if not self._frames:
            raise DatasetError(f"{self.path} holds no results yet: make them with esm-host study")
        # Parquet returns lists as arrays.
        frame = pd.concat(self._frames, ignore_index=True)
        for name in ("bins", "bin_accuracy_percent"):
            frame[name] = frame[name].map(np.ndarray.tolist)
        return frame


@typed
def load_study(path: str | Path) -> Study:
    """Open the folder of a study for reading.

    Raises:
        UsageError: there is no study.
        DatasetError: it is damaged.
    """
    folder = StudyFolder(Path(path))
    try:
        manifest = json.loads(folder.manifest.read_text())
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise DatasetError(
                f"{folder.manifest} is of another version: use the esm-profiler that wrote it"
            )
        return Study(folder.path, tuple(manifest["metrics"]), manifest["tasks"])
    except FileNotFoundError:
        raise UsageError(f"{path} is not a study: make one with esm-host study FILE") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{folder.manifest} is damaged ({error}): write it again with esm-host study FILE"
        ) from error


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises many classes
        raise DatasetError(
            f"{path} is damaged ({str(error).splitlines()[0]}): delete it and make it again with "
            "esm-host study FILE"
        ) from error


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as Parquet, atomically."""
    draft = path.with_name(path.name + ".part")
    frame.to_parquet(draft, compression="zstd", index=False)
    os.replace(draft, path)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
