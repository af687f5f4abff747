"""Settings of a study, read from a TOML file."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esm_host import encoding, predictors
from esm_host.errors import UsageError
from esm_host.plugins import plugin_class
from esm_protos.nearest import unknown
from esm_protos.plugins import Family, split

METRICS = {
    "tau": "Kendall's tau",
    "spearman": "Spearman's rank correlation",
    "accuracy_percent": "accuracy (%)",
}
"""Metrics in tables and plots: column of the results and title."""

DEFAULT_ENCODING = "default"
"""Name that stands for the predictor's usual encoding."""


@dataclass(frozen=True)
class Method:
    """Predictor on an encoding, with a label in tables and plots.

    Attributes:
        predictor: Name of the predictor.
        encoding: Name of the encoding.
        label: Label in tables and plots.
        params: Hyperparameters that differ from the defaults.
    """

    predictor: str
    encoding: str
    label: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSource:
    """Latency table, or folder of a campaign.

    Attributes:
        path: Parquet file, or folder.
        is_run: Whether it is the folder of a campaign.
        devices: Columns of a table, empty for all. For a campaign a name of the device, empty for
            its own.
        name: Name of the data set in tables and plots; None for the usual one.
        lookup_table: File of a lookup table, for predictors that need one.
        sizes: Sizes of the training sets; None for those of the study.
    """

    path: Path
    is_run: bool = False
    devices: tuple[str, ...] = ()
    name: str | None = None
    lookup_table: Path | None = None
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class StudySettings:
    """Settings of a study: every method on every device of every data set with every size.

    Attributes:
        methods: Predictors and encodings.
        data: Data sets.
        sizes: Rising sizes of the training sets; larger ones contain the smaller.
        seeds: Number of repeats with other samples and random numbers.
        test: Number of test samples; None for all outside the training sets.
        coverage: Share of the latencies that prediction intervals should hold.
        keep_predictions: Whether to keep the predictions of the first seed, for plots.
        metrics: Names in :data:`METRICS` for tables and plots.
    """

    methods: tuple[Method, ...]
    data: tuple[DataSource, ...]
    sizes: tuple[int, ...]
    seeds: int = 10
    test: int | None = 2000
    coverage: float = 0.9
    keep_predictions: bool = False
    metrics: tuple[str, ...] = ("tau", "accuracy_percent")


def read_study(path: Path) -> StudySettings:
    """Read the file of a study.

    Paths are relative to the file. ``~`` and environment variables are expanded.

    Raises:
        UsageError: there is no such file, or it has an error.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # skips a byte order mark
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: write one as in docs/study.md") from None
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{path} cannot be read as text ({error})") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML ({error})") from error
    return _Reader(path).study(document)


class _Reader:
    """Reader of the file, whose errors name the file and the key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def study(self, document: dict[str, Any]) -> StudySettings:
        self._check_keys(document, ("study", "data"), "the file")
        study, data = document.get("study"), document.get("data")
        if not isinstance(study, dict):
            raise self._error("needs a table [study] with predictors and sizes")
        if not isinstance(data, list) or not data or not all(isinstance(d, dict) for d in data):
            raise self._error('needs [[data]] with table = "FILE.parquet" or run = "DIR"')
        known = ("predictors", "encodings", "sizes", "seeds", "test", "coverage")
        self._check_keys(study, (*known, "keep_predictions", "metrics"), "[study]")
        for key in ("predictors", "sizes"):
            if key not in study:
                raise self._error(f"[study] needs {key}, a list")
        optional: dict[str, Any] = {}
        if "seeds" in study:
            optional["seeds"] = self._number(study["seeds"], "seeds", 1, 1000)
        if "test" in study:
            optional["test"] = self._test(study["test"])
        if "coverage" in study:
            optional["coverage"] = self._coverage(study["coverage"])
        if "keep_predictions" in study:
            if not isinstance(study["keep_predictions"], bool):
                raise self._error("keep_predictions must be true or false")
            optional["keep_predictions"] = study["keep_predictions"]
        if "metrics" in study:
            metrics = self._list(study["metrics"], "metrics")
            optional["metrics"] = tuple(self._name(m, METRICS, "metrics") for m in metrics)
        return StudySettings(
            methods=self._methods(study),
            data=tuple(self._source(entry) for entry in data),
            sizes=self._sizes(study["sizes"]),
            **optional,
        )

    def _methods(self, study: dict[str, Any]) -> tuple[Method, ...]:
        common = self._encodings(study.get("encodings", DEFAULT_ENCODING), "encodings")
        methods: list[Method] = []
        for entry in self._list(study["predictors"], "predictors"):
            if isinstance(entry, str):
                entry = {"predictor": entry}
            if not isinstance(entry, dict) or "predictor" not in entry:
                raise self._error(
                    "predictors must be names, or tables such as "
                    '{predictor = "mlp", encoding = "fcc"}'
                )
            self._check_keys(entry, ("predictor", "encoding", "label", "params"), "predictors")
            name = self._plugin(entry["predictor"], predictors.FAMILY, "predictors")
            encodings = (
                self._encodings(entry["encoding"], "encoding") if "encoding" in entry else common
            )
            label, params = entry.get("label", split(name)[1]), entry.get("params", {})
            if not isinstance(label, str) or not label.strip():
                raise self._error(f"label of '{name}' must be a text")
            if not isinstance(params, dict):
                raise self._error(f"params of '{name}' must be a table, such as {{hidden = 128}}")
            for each in encodings:
                used = predictors.entry(name).encoding if each == DEFAULT_ENCODING else each
                own = label if len(encodings) == 1 else f"{label} {split(used)[1]}"
                methods.append(Method(name, used, own, params))
        labels = [method.label for method in methods]
        for label in labels:
            if labels.count(label) > 1:
                raise self._error(
                    f"predictors has '{label}' twice: give each its own label = \"...\""
                )
        return tuple(methods)

    def _encodings(self, value: Any, key: str) -> list[str]:
        names = [value] if isinstance(value, str) else self._list(value, key)
        found = [self._plugin(n, encoding.FAMILY, key, (DEFAULT_ENCODING,)) for n in names]
        return list(dict.fromkeys(found))

    def _source(self, entry: dict[str, Any]) -> DataSource:
        known = ("table", "run", "devices", "name", "lookup_table", "sizes")
        self._check_keys(entry, known, "[[data]]")
        if ("table" in entry) == ("run" in entry):
            raise self._error('each [[data]] needs either table = "FILE.parquet" or run = "DIR"')
        is_run = "run" in entry
        devices = self._list(entry["devices"], "devices") if "devices" in entry else []
        if not all(isinstance(device, str) for device in devices):
            raise self._error("devices must be texts")
        if is_run and len(devices) > 1:
            raise self._error("a run has one device: give one name in devices, or leave it out")
        if "name" in entry and not isinstance(entry["name"], str):
            raise self._error("name must be a text")
        lookup_table = None
        if "lookup_table" in entry:
            lookup_table = self._file(entry["lookup_table"], "lookup_table")
        path = self._file(entry["run" if is_run else "table"], "run" if is_run else "table")
        sizes = self._sizes(entry["sizes"]) if "sizes" in entry else None
        different = tuple(dict.fromkeys(devices))
        return DataSource(path, is_run, different, entry.get("name"), lookup_table, sizes)

    def _sizes(self, value: Any) -> tuple[int, ...]:
        sizes = {self._number(size, "sizes", 1, 10**7) for size in self._list(value, "sizes")}
        return tuple(sorted(sizes))

    def _file(self, value: Any, key: str) -> Path:
        if not isinstance(value, str) or not value:
            raise self._error(f"{key} must be a path")
        expanded = os.path.expanduser(os.path.expandvars(value))
        if "$ESM_DATA" in expanded or "${ESM_DATA}" in expanded:
            raise self._error(
                f"{key} is in $ESM_DATA, which is not set: export ESM_DATA=DIR, the folder of the "
                "public latency tables (see docs/study.md)"
            )
        if "$" in expanded:
            raise self._error(f"{key} '{value}' has a variable that is not set: export it")
        return self._path.parent / expanded

    def _test(self, value: Any) -> int | None:
        if isinstance(value, str):
            if value != "rest":
                raise self._error(f"test '{value}': give a number of samples, or \"rest\"")
            return None
        return self._number(value, "test", 2, 10**7)

    def _coverage(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise self._error(f"coverage {value} is not between 0 and 1")
        return float(value)

    def _number(self, value: Any, key: str, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self._error(f"{key}: {value!r} is not a whole number from {low} to {high}")
        return value

    def _list(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise self._error(f"{key} must be a list with one entry or more")
        return value

    def _plugin(self, value: Any, family: Family, key: str, others: Sequence[str] = ()) -> str:
        """Return the name of a plug-in; its class is loaded where it is of a file.

        Args:
            others: words that may stand for one.
        """
        path, class_name = split(value) if isinstance(value, str) else (None, "")
        if path is None:
            return self._name(value, [*others, *family.names()], key)
        place = self._file(str(path), key).resolve()
        name = f"{place}:{class_name}" if class_name else str(place)
        try:
            plugin_class(family, name)
        except UsageError as error:
            raise self._error(f"{key}: {error}") from error
        return name

    def _name(self, value: Any, known: Collection[str], key: str) -> str:
        if not isinstance(value, str) or value not in known:
            raise self._error(f"{key}: {unknown('name', str(value), known)}")
        return value

    def _check_keys(self, table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        for key in table:
            if key not in known:
                raise self._error(unknown("key", key, known, where=f"in {where}"))

    def _error(self, text: str) -> UsageError:
        return UsageError(f"{self._path}: {text}")
