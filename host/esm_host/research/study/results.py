"""A study's folder: a small file per finished task, and data frames of all of them."""

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
from esm_host.research.study.plan import Planned
from esm_host.research.study.settings import StudySettings
from esm_host.research.study.task import Outcome

SCHEMA_VERSION = 1

_LIBRARIES = ("esm-profiler", "numpy", "scikit-learn", "scipy", "torch")


class StudyFolder:
    """Where a study keeps everything: names of its files, and how tasks get there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tasks = path / "tasks"
        self.predictions = path / "predictions"
        self.plots = path / "plots"
        self.manifest = path / "study.json"
        self.results = path / "results.parquet"
        self.tables = path / "tables.md"

    def prepare(self) -> None:
        """Makes the folders.

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
        """Whether there is a result of a task that did not fail."""
        try:
            failure = pd.read_parquet(self.tasks / f"{key}.parquet", columns=["failure"])
        except Exception:  # none yet, or damaged: it is computed (again)
            return False
        return not failure["failure"].any()

    def keep(self, key: str, outcome: Outcome) -> None:
        """Writes what came of a task, each file whole or not at all, the result last."""
        if outcome.predictions is not None:
            write_frame(outcome.predictions, self.predictions / f"{key}.parquet")
        write_frame(outcome.rows, self.tasks / f"{key}.parquet")

    def describe(self, settings: StudySettings, tasks: Sequence[Planned]) -> None:
        """Writes which of the files are the study's, and what it was made with."""
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
    """A study, finished or not, read from its folder.

    Attributes:
        metrics: columns of :meth:`results` that its tables and plots show.
    """

    path: Path
    metrics: tuple[str, ...]
    _tasks: Sequence[dict[str, Any]]

    @property
    def missing(self) -> int:
        """Number of tasks that have no result yet."""
        return len(self._tasks) - len(self._frames)

    def results(self) -> pd.DataFrame:
        """A row per finished task and seed.

        Columns: ``data``, ``device``, ``label``, ``predictor``, ``encoding``, ``size`` (samples to
        train on, as asked for), ``fixed_size`` (True where the predictor asks for certain ones,
        and size is how many), ``seed``, ``train_samples``, ``test_samples``, ``tau`` (Kendall's),
        ``spearman``, ``accuracy_percent``, ``coverage_percent`` (measurements within the
        predictor's intervals) and ``width_percent`` (of the intervals, as a share of the
        measurement), NaN without intervals; ``fit_s`` and ``query_s`` (of all test samples), wall
        time; ``bins`` and ``bin_accuracy_percent`` (lists, see :meth:`accuracy_by_bin`);
        ``failure``, empty unless it failed.
        """
        return self._all.copy()

    def failures(self) -> pd.DataFrame:
        """A row per task that failed: ``data``, ``device``, ``label``, ``size``, ``failure``."""
        failed = self._all[self._all["failure"] != ""]
        columns = ["data", "device", "label", "size", "failure"]
        return failed[columns].drop_duplicates(ignore_index=True)

    def accuracy_by_bin(self) -> pd.DataFrame:
        """A row per task, seed and depth bin with test samples: ``data``, ``device``, ``label``,
        ``encoding``, ``size``, ``seed``, ``bin`` (its depths), ``accuracy_percent``."""
        columns = ["data", "device", "label", "encoding", "size", "seed"]
        frame = self._all[[*columns, "bins", "bin_accuracy_percent"]]
        frame = frame.explode(["bins", "bin_accuracy_percent"], ignore_index=True)
        frame = frame.rename(columns={"bins": "bin", "bin_accuracy_percent": "accuracy_percent"})
        frame["accuracy_percent"] = frame["accuracy_percent"].astype(float)
        return frame.dropna(subset="accuracy_percent").reset_index(drop=True)

    def predictions(self) -> pd.DataFrame:
        """Of the first seed, a row per task and test sample, where the study kept them: ``data``,
        ``device``, ``label``, ``encoding``, ``size``, ``row`` (of the data), ``depth``,
        ``measured_ms``, ``predicted_ms``."""
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
            raise DatasetError(f"{self.path} holds no results yet: esm-host study makes them")
        # Lists of numbers come back as arrays; a column of them is one of objects.
        frame = pd.concat(self._frames, ignore_index=True)
        for name in ("bins", "bin_accuracy_percent"):
            frame[name] = frame[name].map(np.ndarray.tolist)
        return frame


def load_study(path: str | Path) -> Study:
    """Opens a study's folder for reading.

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
        raise UsageError(f"{path} is no study: make one with esm-host study FILE") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{folder.manifest} is damaged ({error}): esm-host study FILE writes it again"
        ) from error


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow has many
        raise DatasetError(
            f"{path} is damaged ({str(error).splitlines()[0]}): delete it, and esm-host study "
            "FILE makes it again"
        ) from error


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """As Parquet, whole or not at all."""
    draft = path.with_name(path.name + ".part")
    frame.to_parquet(draft, compression="zstd", index=False)
    os.replace(draft, path)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
