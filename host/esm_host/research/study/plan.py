"""Tasks of a study, and the keys of their results."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding import make_encoder
from esm_host.encoding.base import Encoder
from esm_host.errors import UsageError
from esm_host.predictors import make_predictor, predictor_class
from esm_host.predictors.base import Predictor
from esm_host.predictors.lookup import neighbours
from esm_host.predictors.lookup_file import load_lookup_table
from esm_host.research.study.data import DataSet, find_rows
from esm_host.research.study.settings import Method, StudySettings
from esm_host.research.study.task import Rows, Task, TaskName
from esm_protos.plugins import split

_FORMAT = "1"
"""Version of the tasks' computations; a change invalidates older results."""


@dataclass(frozen=True, eq=False)
class PlannedTask:
    """Task with the key of its result, equal for the same predictor on the same data."""

    key: str
    task: Task


def plan(settings: StudySettings, data: Sequence[DataSet]) -> list[PlannedTask]:
    """Return all tasks of a study, in the order of its file.

    Training and test samples depend on the seed only, not on the predictor. A larger training set
    contains the smaller ones.

    Raises:
        UsageError: a predictor cannot be made, or does not suit an encoding or the data.
    """
    tasks = []
    for data_set in data:
        encoded = _encoded(settings, data_set)
        for device in data_set.latency_ms:
            tasks += _of_device(settings, data_set, device, encoded)
    return tasks


def draw(
    present: NDArray[np.bool_], seed: int, largest: int, test: int | None
) -> tuple[Rows, Rows]:
    """Return the rows of the largest training set and of the test set.

    Smaller training sets are the first rows of the largest.

    Args:
        present: Rows with a latency, ``(n,)``. Devices with different ones have the same draw
            except for these.
        seed: Random seed.
        largest: Size of the largest training set.
        test: Size of the test set; None for all remaining rows.
    """
    order = np.random.default_rng(seed).permutation(len(present))
    order = order[present[order]]
    if test is None:
        return order[:largest], order[largest:]
    return order[test : test + largest], order[:test]


_Encoded = Mapping[str, tuple[Encoder, NDArray[np.float32]]]


def _encoded(settings: StudySettings, data: DataSet) -> _Encoded:
    """Return the encoder and the encodings of the data, by name of the encoding."""
    encoders = {m.encoding: make_encoder(m.encoding, data.space) for m in settings.methods}
    return {name: (encoder, encoder.encode_codes(data.codes)) for name, encoder in encoders.items()}


def _of_device(
    settings: StudySettings, data: DataSet, device: str, encoded: _Encoded
) -> list[PlannedTask]:
    latency_ms = data.latency_ms[device]
    present, largest = np.isfinite(latency_ms), max(data.sizes)
    drawn = [draw(present, seed, largest, settings.test) for seed in range(settings.seeds)]
    tasks = []
    for method in settings.methods:
        encoder, encodings = encoded[method.encoding]

        def add(
            predictors: Sequence[Predictor],
            size: int,
            train: Sequence[Rows],
            test: Sequence[Rows],
            fixed_size: bool,
            method: Method = method,
            encodings: NDArray[np.float32] = encodings,
        ) -> None:
            name = TaskName(
                *(data.name, device, method.label, method.predictor, method.encoding),
                size=size,
                fixed_size=fixed_size,
            )
            task = Task(
                *(name, predictors, encodings, latency_ms, data.weights, data.depth, data.bins),
                train=train,
                test=test,
                coverage=settings.coverage,
                keep_predictions=settings.keep_predictions,
            )
            tasks.append(PlannedTask(_key(task), task))

        tests = [test for _, test in drawn]
        cls = predictor_class(method.predictor)
        params = {**method.params, **_table(data, method, cls, encoder)}
        if cls.trains_on_neighbours:
            rows = _neighbours(data, method)
            rows = rows[present[rows]]
            # Its training set is excluded from its test set only.
            unseen = [np.setdiff1d(test, rows) for test in tests]
            predictors = _make(settings, method, encoder, params)
            add(predictors, len(rows), [rows] * settings.seeds, unseen, True)
            continue
        for size in data.sizes:
            predictors = _make(settings, method, encoder, params)
            add(predictors, size, [train[:size] for train, _ in drawn], tests, False)
    return tasks


def _make(
    settings: StudySettings, method: Method, encoder: Encoder, params: Mapping[str, Any]
) -> list[Predictor]:
    try:
        return [
            make_predictor(method.predictor, encoder, seed, **params)
            for seed in range(settings.seeds)
        ]
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"'{method.label}' cannot be made ({error}): correct its params or its encoding"
        ) from error


def _neighbours(data: DataSet, method: Method) -> Rows:
    """Return the rows from which a lookup table is made."""
    wanted = neighbours(data.space)
    rows = find_rows(data.codes, wanted)
    if (rows < 0).any():
        raise UsageError(
            f"'{method.label}' needs {len(wanted)} neighbouring architectures, but "
            f"'{data.name}' has {(rows >= 0).sum()}: leave it out"
        )
    return rows


def _table(data: DataSet, method: Method, cls: type[Predictor], encoder: Encoder) -> dict[str, Any]:
    """Return the lookup table, for a predictor that adds up the latencies of parts."""
    if "table_ms" not in inspect.signature(cls).parameters or "table_ms" in method.params:
        return {}
    if data.lookup_table is None:
        raise UsageError(
            f"'{method.label}' needs a lookup table of '{data.name}': give the [[data]] "
            "lookup_table = FILE, or leave it out"
        )
    return {"table_ms": load_lookup_table(data.lookup_table, encoder)}


def _key(task: Task) -> str:
    """Return a key of everything that determines the result, and of nothing else."""
    digest = hashlib.sha256(_FORMAT.encode())
    name = task.name
    params = task.predictors[0].get_params(deep=False)
    for text in (
        *(name.data, name.device, _told(name.predictor), _told(name.encoding), str(name.size)),
        *(str(task.coverage), str(task.bins), str(task.keep_predictions)),
        *(f"{key}={_text(params[key])}" for key in sorted(params)),
    ):
        digest.update(text.encode() + b"\0")
    arrays: tuple[NDArray[Any], ...] = (task.encodings, task.latency_ms, task.weights)
    for array in (*arrays, *task.train, *task.test):
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
    classes = [split(each)[1] for each in (name.predictor, name.encoding)]
    words = (name.data, name.device, *classes, str(name.size))
    readable = "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
    return f"{readable[:120]}-{digest.hexdigest()[:16]}"


def _told(plugin: str) -> str:
    """Return a plug-in's name; of one in a user's file the class and what the file says."""
    path, class_name = split(plugin)
    if path is None:
        return plugin
    return f"{class_name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _text(value: object) -> str:
    return f"{value.dtype}{value.tolist()}" if isinstance(value, np.ndarray) else repr(value)
