"""Objectives of a search: parsing them and reading where their values come from."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.dataset.benchmarks import codes_of
from esm_host.dataset.campaign_metric import CAMPAIGN_METRICS
from esm_host.encoding import make_encoder
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.parallel import map_unordered
from esm_host.plugins import read_module
from esm_host.search.front import Floats
from esm_host.search.genes import keys
from esm_host.search.latency import ENERGY_DELAY, LATENCY, quantity
from esm_host.search.problem import Measure, Objective
from esm_host.search.table import TableMeasure
from esm_host.sources.columns import read_frame
from esm_models.architecture import Architecture
from esm_models.errors import ModelsError
from esm_models.space import Codes, SearchSpace
from esm_protos.nearest import unknown
from esm_protos.plugins import described
from esm_protos.text import counted

COUNTED = {
    "flops": "flops",
    "parameters": "parameters",
    "params": "parameters",
    "memory": "memory_bytes",
}
"""Quantities counted from the network, by the names that users give."""

MEASURED = {
    **{name: metric.key for name, metric in CAMPAIGN_METRICS.items()},
    "energy_delay": ENERGY_DELAY,
}
"""Quantities of every device, by the names that users give. They are minimised."""

_WAYS = {"min": False, "max": True}
_PARTS = 4  # per process, so that the processes finish at about the same time


@dataclass(frozen=True)
class ObjectiveSpec:
    """Objective as given by the user.

    Attributes:
        name: A key of :data:`MEASURED` or :data:`COUNTED`, or a name of the user's own.
        source: Source of a user's own quantity, else ``""``.
        maximise: Whether larger is better.
    """

    name: str
    source: str
    maximise: bool

    @property
    def quantity(self) -> str:
        """Name of the quantity, without the device."""
        if self.source:
            return self.name
        return {**MEASURED, **COUNTED}[self.name]

    @property
    def is_measured(self) -> bool:
        """Whether each device has its own value."""
        return not self.source and self.name in MEASURED

    def objectives(self, devices: Sequence[str]) -> list[Objective]:
        """Return the objectives; what is measured becomes one objective per device.

        Args:
            devices: Prefixes of the devices' quantities.
        """
        if self.is_measured:
            return [Objective(quantity(self.quantity, device)) for device in devices]
        return [Objective(self.quantity, self.maximise)]


def parse_objective(text: str) -> ObjectiveSpec:
    """Parse a key of :data:`MEASURED` or :data:`COUNTED`, or ``NAME=SOURCE``.

    ``:min`` or ``:max`` may follow. By default users' own quantities are maximised and all
    others are minimised.

    Raises:
        UsageError: the text is none of these.
    """
    name, equals, source = text.partition("=")
    rest, colon, way = (source if equals else name).rpartition(":")
    if not colon or way not in _WAYS:
        rest, way = (source if equals else name), "max" if equals else "min"
    name = name.strip() if equals else rest.strip()
    source = rest.strip() if equals else ""
    known = (*MEASURED, *COUNTED)
    taken = ("latency", LATENCY, *COUNTED)
    if equals and (not source or not name.isidentifier() or name in taken):
        raise UsageError(
            f"{argument('objectives')} '{text}': give a NAME of your own and its source, as "
            "accuracy=table.parquet:COLUMN, accuracy=a.py:FUNCTION or accuracy=a.onnx:ENCODING"
        )
    if not equals and name not in known:
        choices = "choose latency, flops, params, memory, energy, peak_memory, energy_delay, or "
        choices += "NAME=SOURCE, as "
        choices += "accuracy=table.parquet:COLUMN"
        refused = unknown("objective", name, known, choices=choices)
        raise UsageError(f"{argument('objectives')}: {refused}")
    if not equals and name in MEASURED and _WAYS[way]:
        raise UsageError(f"{argument('objectives')} '{text}': {name} is minimised, write {name}")
    return ObjectiveSpec(name, source, _WAYS[way])


def read_measure(spec: ObjectiveSpec, space: SearchSpace) -> Measure:
    """Return the measure of a quantity that the user brings.

    Raises:
        UsageError: there is no such file, column, function or encoding.
        DatasetError: the file is damaged, or of another search space.
    """
    path, colon, what = spec.source.rpartition(":")
    if not colon or not what:
        raise UsageError(
            f"{argument('objectives')} {spec.name}={spec.source}: name the column, function or "
            "encoding, as table.parquet:COLUMN, file.py:FUNCTION or file.onnx:ENCODING"
        )
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{argument('objectives')} {spec.name}: there is no file {path}")
    if file.suffix in (".parquet", ".csv", ".tsv"):
        return _table(spec.name, file, what, space)
    if file.suffix == ".py":
        return _Function(spec.name, file, load_function(file, what), space)
    if file.suffix == ".onnx":
        return _OnnxPredictor(spec.name, file, make_encoder(what, space))
    raise UsageError(
        f"{argument('objectives')} {spec.name}: {path} is no .parquet, .csv, .py or .onnx file"
    )


def _table(name: str, path: Path, column: str, space: SearchSpace) -> TableMeasure:
    frame = read_frame(path)
    values = next((frame[c] for c in (column, f"acc_{column}") if c in frame), None)
    if values is None:
        others = [str(c) for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])]
        raise UsageError(unknown("column", column, others, where=f"of {path}"))
    try:
        numbers = values.to_numpy(float)
    except (TypeError, ValueError):
        raise UsageError(
            f"{path} has no numbers in its column '{column}': choose another"
        ) from None
    try:
        if "architecture" in frame:  # present for users' own spaces as well
            found = [space.read(json.loads(text)) for text in frame["architecture"]]
            codes = space.encode(found)
        else:
            settings = {"resolution": None if space.resolutions else space.resolution}
            other, codes = codes_of(frame, settings)
            if other.name != space.name:
                raise ValueError(f"it is of {other.name}, not of {space.name}")
            if space.contexts:
                codes = space.encode([space.read(each) for each in other.decode(codes)])
    except (TypeError, ValueError, ModelsError) as error:
        raise DatasetError(f"{path} is not a table of {space.name} ({error})") from error
    if not len(codes):
        raise DatasetError(f"{path} lists no architecture: give a table that does")
    known = TableMeasure(name, codes, numbers)
    same = known(codes)[name] == numbers
    if not (same | np.isnan(numbers)).all():
        raise DatasetError(
            f"{path} gives several values of '{column}' for one architecture, in row "
            f"{np.argmin(same | np.isnan(numbers)) + 1} and later: keep one row of each"
        )
    return known


def load_function(path: Path, name: str) -> Callable[[Sequence[Architecture]], Any]:
    """Return a function from a user's Python file, which is run.

    Raises:
        UsageError: the file cannot be run, or has no such function.
    """
    module = read_module(path, f"function '{name}'")
    function: Callable[[Sequence[Architecture]], Any] | None = getattr(module, name, None)
    if not callable(function):
        own = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        raise UsageError(unknown("function", name, own, where=f"of {path}"))
    return function


class _Function:
    """Measure by a user's function, called once per architecture."""

    def __init__(
        self,
        name: str,
        path: Path,
        function: Callable[[Sequence[Architecture]], Any],
        space: SearchSpace,
    ) -> None:
        self._name = name
        self._path = path
        self._function = function
        self._space = space
        self._values: dict[bytes, float] = {}

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        names = [key.tobytes() for key in keys(codes)]
        fresh = {name: row for row, name in enumerate(names) if name not in self._values}
        if fresh:
            fresh_values = self._compute(codes[list(fresh.values())])
            self._values.update(zip(fresh, fresh_values.tolist(), strict=True))
        return {self._name: np.array([self._values[name] for name in names])}

    def _compute(self, codes: Codes) -> NDArray[np.float64]:
        """Compute the values in parts (see :func:`esm_host.parallel.parallel`)."""
        workers = joblib.effective_n_jobs()
        parts = np.array_split(codes, min(len(codes), _PARTS * workers) if workers > 1 else 1)
        tasks = [
            _Task(number, self._name, self._path, self._function, self._space.decode(part))
            for number, part in enumerate(parts)
        ]
        values = dict(map_unordered(_evaluate, tasks))
        return np.concatenate([values[number] for number in range(len(tasks))])


@dataclass(frozen=True)
class _Task:
    number: int
    name: str
    path: Path
    function: Callable[[Sequence[Architecture]], Any]
    architectures: Sequence[Architecture]


def _evaluate(task: _Task) -> tuple[int, NDArray[np.float64]]:
    try:
        found = task.function(task.architectures)
        # A generator runs, and fails, here.
        values = np.asarray(list(found) if isinstance(found, Iterator) else found, dtype=float)
    except (Exception, SystemExit) as error:  # anything that a user's function may do
        raise EsmError(
            f"the objective {task.name} failed: {described(error, task.path)}"
        ) from error
    if values.shape != (len(task.architectures),):
        count = " x ".join(map(str, values.shape)) or "one"
        raise EsmError(
            f"the objective {task.name} returned {count} values for "
            f"{len(task.architectures)} architectures: let it return a number for each"
        )
    return task.number, values


def _on_a_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class _OnnxPredictor:
    """Measure by a fitted predictor in ONNX: one value per encoding."""

    def __init__(self, name: str, path: Path, encoder: Any) -> None:
        import onnxruntime

        self._name = name
        self._encoder = encoder
        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise DatasetError(
                f"{path} is not an ONNX model ({str(error).splitlines()[0]}): give a fitted "
                "predictor"
            ) from error
        inputs = self._session.get_inputs()
        for asked in inputs[:1]:
            columns = asked.shape[1:]
            if len(columns) != 1 or (isinstance(columns[0], int) and columns[0] != len(encoder)):
                raise UsageError(
                    f"{path} takes {asked.shape}, but encoding {encoder.name} of "
                    f"{encoder.space.name} has {counted(len(encoder), 'column')}: name the "
                    "encoding it was fitted on"
                )
        self._inputs = [each.name for each in inputs]
        try:
            self._compute(np.zeros((3, len(encoder)), np.float32))
        except Exception as error:  # ONNX Runtime raises classes of its own
            raise UsageError(
                f"{path} is not a predictor ({_on_a_line(error)}): its input must be float32 "
                "encodings, in a batch of any size, and its output a number for each"
            ) from error

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        return {self._name: self._compute(self._encoder.encode_codes(codes))}

    def _compute(self, encodings: NDArray[np.float32]) -> Floats:
        (asked,) = self._inputs
        (values, *_) = self._session.run(None, {asked: encodings})
        return np.asarray(values, dtype=float).reshape(len(encodings))
