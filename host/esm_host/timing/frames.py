"""Data frames of a timing, just measured or read from the JSON of ``esm-host time --json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Self

import numpy as np
import pandas as pd

from esm_host.errors import NotATimingError, UsageError
from esm_host.evaluation.device_states import STATE_COLUMNS, state_row
from esm_host.timing.fed import fed_text
from esm_host.timing.metrics import energy_columns, metrics_of, value_of
from esm_host.typed import typed
from esm_protos.messages import DeviceState
from esm_protos.metrics import Metric
from esm_protos.paces import WEIGHTLESS
from esm_protos.text import counted

_TEXTS = ("failure", "verdict", "energy_source", "energy_covers", "energy_problem")
READ = (2, 3)
"""Readable schema versions: 2 has latencies as measured, 3 at the device's usual pace."""


@dataclass(frozen=True, eq=False)
class TimingFile:
    """Timing as data frames. A result is a model in one case on one device, numbered from 0.

    Attributes:
        path: File of the timing; None if it was not read from a file.
        data: JSON of the timing.
    """

    path: Path | None
    data: Mapping[str, Any] = field(repr=False)

    @classmethod
    @typed
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Build from the JSON of a timing."""
        return cls(None, json.loads(json.dumps(data, allow_nan=False)))

    @typed
    def save(self, path: str | Path) -> Path:
        """Write the JSON with all samples, as ``esm-host time --json`` does; return the path.

        Raises:
            UsageError: the file cannot be written.
        """
        path = Path(path)
        try:
            path.write_text(json.dumps(self.data, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        return path

    @property
    def context(self) -> dict[str, Any]:
        """Time of the timing, versions, settings and devices."""
        context: dict[str, Any] = self.data["context"]
        return context

    @property
    def devices(self) -> dict[str, Any]:
        """Data by device: ``info``, ``states``, ``references``, ``usual``, ``busy_s``..."""
        devices: dict[str, Any] = self.context["devices"]
        return devices

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt cut the timing short on any device."""
        return any(entry.get("interrupted", False) for entry in self.devices.values())

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Metrics of this version, and further ones that the devices report."""
        return metrics_of(self.data)

    def results(self) -> pd.DataFrame:
        """Return a row per result.

        Columns: ``result``, ``label`` (unique among all results), ``name`` (unique among those of
        a device), ``model``, ``device``, ``batch``, ``threads``, ``own_threads`` (the provider
        chose their number), ``shapes`` and ``dims`` (as text), ``assumed`` (number of dimensions
        taken as 1), ``fed`` (shapes and types of all inputs, as text), ``status``, ``failure``, a
        column per metric (docs/timing.md; NaN if missing), ``low_ms`` and ``high_ms`` (95 %
        interval), ``provider``, ``verdict``, ``warnings`` (a tuple), ``energy_source``,
        ``energy_covers`` and ``energy_problem`` (None without ``energy``; the problem is empty if
        the energy is stable).
        """
        rows = []
        for number, result in enumerate(self._results):
            failure = result["failure"]
            interval = result["ci95_ms"] or (None, None)
            rows.append(
                {
                    "result": number,
                    "label": self.labels[number],
                    "name": self.names[number],
                    "model": result["model"],
                    "device": result["device"],
                    "batch": result["case"]["batch"],
                    "threads": result["case"]["threads"],
                    "own_threads": result.get("own_threads", False),
                    "shapes": _shapes(result["case"]["shapes"]),
                    "dims": _dims(result["case"]),
                    "assumed": len(result.get("assumed", ())),
                    "fed": fed_text((i["name"], i["type"], i["dims"]) for i in result["inputs"]),
                    "status": result["status"],
                    "failure": failure and f"{failure['kind']}: {failure['message']}",
                    **{
                        metric.field: value_of(result, metric, self.data["schema_version"])
                        for metric in self.metrics
                    },
                    "low_ms": interval[0],
                    "high_ms": interval[1],
                    "provider": result["provider"],
                    "verdict": result["verdict"],
                    "warnings": tuple(result["warnings"]),
                    **energy_columns(result, self.devices[result["device"]]),
                }
            )
        frame = pd.DataFrame(rows)
        fields = [metric.field for metric in self.metrics]
        numbers = [*fields, "low_ms", "high_ms", "batch", "threads"]
        if not rows:
            return frame
        # pandas would turn None among texts into NaN.
        texts = {name: pd.Series([row[name] for row in rows], dtype=object) for name in _TEXTS}
        return frame.astype(dict.fromkeys(numbers, float)).assign(**texts)

    def _repr_html_(self) -> str:
        """Return the main columns of the results as HTML, for notebooks."""
        frame = self.results()
        columns = ["label", "trimmed_mean_ms", "ci95_percent", "verdict", "failure"]
        shown = [name for name in columns if name in frame and frame[name].notna().any()]
        html: str = frame[shown].to_html(index=False, na_rep="", border=0)
        return html

    def samples(self) -> pd.DataFrame:
        """Return a row per counted run, in time order: ``result``, ``start_s``, ``latency_ms``."""
        frames = [
            pd.DataFrame(
                {
                    "result": number,
                    "start_s": pd.Series(result["starts_ms"], dtype=float) / 1e3,
                    "latency_ms": pd.Series(result["samples_ms"], dtype=float),
                }
            )
            for number, result in enumerate(self._results)
            if result["samples_ms"]
        ]
        empty = pd.DataFrame(columns=["result", "start_s", "latency_ms"])
        return pd.concat(frames, ignore_index=True) if frames else empty

    def operators(self) -> pd.DataFrame:
        """Return the time per inference of each operator in the profiled results.

        Columns: ``result``, ``op_type``, ``provider``, ``calls``, ``ms``, ``share_percent``.
        """
        frame = self._profiled("operators", ["op_type", "provider", "calls", "ms"])
        total = frame.groupby("result")["ms"].transform("sum")
        return frame.assign(share_percent=100 * frame["ms"] / total)

    def nodes(self) -> pd.DataFrame:
        """Return the nodes of the profiled results, slowest first.

        Columns: ``result``, ``name``, ``op_type``, ``provider``, ``ms``.
        """
        return self._profiled("nodes", ["name", "op_type", "provider", "ms"])

    def comparisons(self) -> pd.DataFrame:
        """Return a row per compared pair of results.

        Columns: ``scope``, ``device``, ``of`` and ``to`` (the results; ``to`` is the fastest),
        ``ratio``, ``low`` and ``high`` (its 95 % interval), ``paired``, ``different``.
        """
        names = ["scope", "device", "of", "to", "ratio", "low", "high", "paired", "different"]
        rows = [
            {**entry, "low": entry["ci95"][0], "high": entry["ci95"][1]} if entry["ci95"] else entry
            for entry in self.data["comparisons"]
        ]
        return pd.DataFrame(rows, columns=names)

    def states(self) -> pd.DataFrame:
        """Return the states of the devices, a row per moment.

        Columns: ``device``, ``part`` (number of the block, from 0), and those of
        :func:`~esm_host.evaluation.device_states.state_row`.
        """
        rows = []
        for device, entry in self.devices.items():
            part, last = 0, float("-inf")
            for data in entry["states"]:
                state = DeviceState.from_json(data)
                part += state.at_ns < last
                last = state.at_ns
                rows.append({"device": device, "part": part, **state_row(state)})
        return pd.DataFrame(rows, columns=["device", "part", *STATE_COLUMNS])

    def paces(self) -> pd.DataFrame:
        """Return the paces of the devices, a row per visit of a reference model.

        Columns: ``device``, ``block``, ``reference``, ``at_s``, ``slower_percent``, ``usual``.
        ``slower_percent`` compares with the usual latency, or with the median of this timing if
        the device has no history; ``usual`` tells which. Empty for files of version 2.
        """
        rows = []
        for device, entry in self.devices.items():
            for reference in entry.get("references", ()):
                at_s, latency_ms = _visits(reference)
                base_ms = _usual_ms(entry, reference).get(reference["name"])
                slower = latency_ms / (base_ms or _median_ms(entry, reference)) - 1
                rows += [
                    {
                        "device": device,
                        "block": reference["block"],
                        "reference": reference["name"],
                        "at_s": at,
                        "slower_percent": 100 * value,
                        "usual": base_ms is not None,
                    }
                    for at, value in zip(at_s, slower, strict=True)
                ]
        columns = ["device", "block", "reference", "at_s", "slower_percent", "usual"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def names(self) -> list[str]:
        """Name of each result, unique on its device: the file, and what differs in the case."""
        results = self._results
        names = _short([result["model"] for result in results])
        for text in _PARTS:
            said = [text(result) for result in results]
            among: dict[tuple[str, str], set[str]] = {}
            for name, result, part in zip(names, results, said, strict=True):
                among.setdefault((name, result["device"]), set()).add(part)
            if any(len(parts) > 1 for parts in among.values()):
                names = [" · ".join(filter(None, pair)) for pair in zip(names, said, strict=True)]
        return names

    @cached_property
    def labels(self) -> list[str]:
        """Name of each result, with its device if there are several."""
        devices = [str(result["device"]) for result in self._results]
        if len(set(devices)) < 2:
            return self.names
        return [" · ".join(pair) for pair in zip(self.names, devices, strict=True)]

    @property
    def _results(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.data["results"]
        return results

    def _profiled(self, part: str, names: list[str]) -> pd.DataFrame:
        rows = [
            {"result": number, **entry}
            for number, result in enumerate(self._results)
            if result["profile"]
            for entry in result["profile"][part]
        ]
        return pd.DataFrame(rows, columns=["result", *names])


class TimingInterrupt(KeyboardInterrupt):
    """Interrupt of a timing that has results.

    Attributes:
        timing: Timing until the interrupt; its devices are marked ``interrupted``.
    """

    def __init__(self, timing: TimingFile) -> None:
        super().__init__("interrupted; the results until then are in this error's .timing")
        self.timing = timing


_PARTS: tuple[Callable[[Mapping[str, Any]], str], ...] = (
    lambda result: "" if (batch := result["case"]["batch"]) is None else f"batch {batch}",
    lambda result: _dims(result["case"]),
    lambda result: _threads(result["case"]["threads"]),
    lambda result: result["case"].get("provider") or "",
    lambda result: _shapes(result["case"]["shapes"]),
    lambda result: str(result["case"]["inputs_sha256"] or "")[:8],
)


def _usual_ms(device: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """Return the usual latencies of all reference models on the provider of one; {} if unknown."""
    usual = device.get("usual")
    if "provider" in reference:  # older files have one provider
        usual = device["usual_by_provider"][reference["provider"]]
    return dict(zip(usual["references"], usual["latency_ms"], strict=True)) if usual else {}


def _visits(reference: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the start of each visit, s, and its latency, ms, both of shape (visits,).

    The latency is the median of the visit, or its fastest run for a model with hardly any weights.
    """
    samples_ms, starts_ms = (np.array(reference[name]) for name in ("samples_ms", "starts_ms"))
    per_visit = min(reference["runs_per_visit"], len(samples_ms))
    full = len(samples_ms) // per_visit
    visits = samples_ms[: full * per_visit].reshape(full, per_visit)
    quickest = reference["weight_bytes"] < WEIGHTLESS
    told = visits.min(axis=1) if quickest else np.median(visits, axis=1)
    return starts_ms[::per_visit][:full] / 1e3, told


def _median_ms(device: Mapping[str, Any], reference: Mapping[str, Any]) -> float:
    """Return the median over the visits of a reference model in all blocks of its provider."""
    own = [reference.get(key) for key in ("name", "provider")]
    visits = [
        _visits(entry)[1]
        for entry in device["references"]
        if [entry.get(key) for key in ("name", "provider")] == own
    ]
    return float(np.median(np.concatenate(visits)))


def _threads(threads: int | None) -> str:
    return "" if threads is None else counted(threads, "thread")


def _dims(case: Mapping[str, Any]) -> str:
    """Return the sizes of symbols as text; older files have none."""
    return ", ".join(f"{symbol}={size}" for symbol, size in case.get("dims", {}).items())


def _shapes(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in shapes.items())


def _short(paths: list[str]) -> list[str]:
    """Return the file names; whole paths for files of the same name."""

    def homonyms(name: str) -> Iterator[str]:
        return (path for path in paths if PurePath(path).name == name)

    return [
        name if len(set(homonyms(name := PurePath(path).name))) == 1 else path for path in paths
    ]


@typed
def load_timing(path: str | Path) -> TimingFile:
    """Read a file that ``esm-host time --json FILE`` wrote.

    Raises:
        UsageError: the file cannot be read.
        NotATimingError: the file is not a timing, or is damaged.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NotATimingError(
            f"{path} is not JSON: give a file that esm-host time --json FILE wrote"
        ) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise NotATimingError(
            f"{path} is not a timing: give a file that esm-host time --json FILE wrote"
        )
    found = data["schema_version"]
    if found not in READ or data.get("kind") != "timing":
        raise NotATimingError(
            f"{path} has schema version {found}, kind {data.get('kind', 'unknown')}; this program "
            f"reads timings of version {' and '.join(map(str, READ))}: time again with esm-host "
            "time --json"
        )
    timing = TimingFile(path, data)
    try:
        for frame in (timing.results, timing.samples, timing.operators, timing.nodes):
            frame()
        timing.comparisons()
        timing.states()
        timing.paces()
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise NotATimingError(
            f"{path} lacks a part of a timing ({type(error).__name__}: {error}): time again with "
            "esm-host time --json"
        ) from error
    return timing
