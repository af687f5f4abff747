"""Tables of latencies, as codes of their search spaces and columns of numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from esm_host.errors import DatasetError, UsageError
from esm_models.architecture import Architecture
from esm_models.errors import ModelsError
from esm_models.space import Codes, SearchSpace
from esm_models.spaces import SPACES, load_space

LATENCY = "lat_ms_"
"""What names of columns of latencies begin with."""
_ACCURACY = "acc_"

_LEAST_MS = 0.5
_LEAST_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Architectures of one space with what is known of them, row by row.

    Attributes:
        codes: ``(n, *space.code_shape)``.
        latency_ms: by device, ``(n,)``; NaN where it is missing.
        accuracy_percent: by task, ``(n,)``; of some tables only.
    """

    name: str
    space: SearchSpace
    codes: Codes
    latency_ms: Mapping[str, NDArray[np.float64]]
    accuracy_percent: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.codes)

    def latency_of(self, device: str) -> NDArray[np.float64]:
        """Of one device, ``(n,)``.

        Raises:
            UsageError: there is no such device.
        """
        if device not in self.latency_ms:
            raise UsageError(
                f"{self.name} has no device '{device}': choose {', '.join(self.latency_ms)}"
            )
        return self.latency_ms[device]


def read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet table as it is.

    Raises:
        UsageError: there is no such file.
        DatasetError: it cannot be read.
    """
    try:
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}") from error
    except Exception as error:  # pyarrow has many
        text = str(error).splitlines()[0]
        raise DatasetError(f"{path} cannot be read as Parquet ({text})") from error


def read_benchmark(path: Path) -> LatencyTable:
    """Reads a Parquet table of architectures.

    Of which space, its columns tell (:func:`codes_of`). Latencies are in ``lat_ms_DEVICE``,
    accuracies in ``acc_TASK``.

    Raises:
        UsageError: there is no such file.
        DatasetError: it is no such table, or damaged.
    """
    frame = read_parquet(path)
    try:
        space, codes = codes_of(frame)
        latency_ms = {
            name.removeprefix(LATENCY): frame[name].to_numpy(float)
            for name in frame.columns
            if name.startswith(LATENCY)
        }
        accuracy_percent = accuracies(frame)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path} is no table of architectures ({error})") from error
    if "architecture" not in frame:  # not one that we wrote
        latency_ms = {device: measured(values) for device, values in latency_ms.items()}
    return LatencyTable(path.stem, space, codes, latency_ms, accuracy_percent)


def write_table(table: LatencyTable, path: Path) -> None:
    """Writes what :func:`read_benchmark` reads, of any search space of the project."""
    columns: dict[str, object] = {
        "architecture": [json.dumps(a.to_json()) for a in table.space.decode(table.codes)]
    }
    columns |= {LATENCY + device: values for device, values in table.latency_ms.items()}
    columns |= {_ACCURACY + task: values for task, values in table.accuracy_percent.items()}
    frame = pd.DataFrame(columns)
    frame.attrs["space"] = table.space.settings()
    frame.to_parquet(path, index=False, compression="zstd")


def accuracies(frame: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """By task, percent, ``(n,)``.

    Raises:
        TypeError, ValueError: a column of them holds something else than numbers.
    """
    return {
        name.removeprefix(_ACCURACY): frame[name].to_numpy(float)
        for name in frame.columns
        if name.startswith(_ACCURACY)
    }


def measured(latency_ms: ArrayLike) -> NDArray[np.float64]:
    """Latencies of others, ``(n,)``, NaN where what is there was not measured: nothing, zero or
    less, or next to nothing. Public tables have a few hundred values thousands of times below the
    others of their device; what is below 0.5 ms and a twentieth of the device's median is such."""
    values = np.array(latency_ms, dtype=float)
    values[~(np.isfinite(values) & (values > 0))] = np.nan
    if np.isfinite(values).any():
        values[values < min(_LEAST_MS, _LEAST_SHARE * float(np.nanmedian(values)))] = np.nan
    return values


def codes_of(
    frame: pd.DataFrame, settings: Mapping[str, Any] | None = None
) -> tuple[SearchSpace, Codes]:
    """The search space whose architectures these are, and their codes.

    Its columns tell which: ``architecture`` with architectures as JSON, as :func:`write_table`
    makes it; of the public tables, ``arch`` with cells of NAS-Bench-201 or with 22 block numbers
    of FBNet, or ``depth``, ``kernel``, ``expand`` and ``resolution`` of Once-for-all. Own spaces
    are none of them: a table must not say which file is run.

    Args:
        settings: of the space, such as its resolution; by default what :func:`write_table` noted,
            else the space's own.

    Raises:
        ValueError: there are none, or they are of no space of the project.
    """
    if not len(frame):
        raise ValueError("it has no rows")
    try:
        if "architecture" in frame:
            return _json(frame, settings)
        if "arch" in frame:
            form = _nasbench201 if "|" in str(frame["arch"].iloc[0]) else _fbnet
            return form(frame["arch"].astype(str).tolist(), settings or {})
        if {"depth", "kernel", "expand"} <= set(frame.columns):
            return _ofa(frame, settings or {})
    except ModelsError as error:
        raise ValueError(str(error)) from error
    raise ValueError("it has no column architecture, nor arch, nor depth, kernel and expand")


def _json(frame: pd.DataFrame, settings: Mapping[str, Any] | None) -> tuple[SearchSpace, Codes]:
    architectures = []
    for row, text in enumerate(frame["architecture"], start=1):
        try:
            architectures.append(Architecture.from_json(json.loads(text)))
        except (TypeError, ValueError, RecursionError, ModelsError) as error:
            raise ValueError(f"row {row}: {error}") from error
    noted = frame.attrs.get("space")
    if settings is None and isinstance(noted, dict):
        settings = {name: value for name, value in noted.items() if (name, value) != _FREE}
    settings = dict(settings or {})
    name = str(settings.pop("name", architectures[0].space))
    if name not in SPACES:
        raise ValueError(f"they are of {name[:80]!r}, not of {', '.join(SPACES)}")
    space = load_space(name, **settings)
    for row, architecture in enumerate(architectures, start=1):
        try:
            space.validate(architecture)
        except ModelsError as error:
            raise ValueError(f"row {row}: {error}") from error
    return space, space.encode(architectures)


_FREE = ("resolution", "free")
_CELL = re.compile(r"\|X~0\|\+\|X~0\|X~1\|\+\|X~0\|X~1\|X~2\|".replace("X", r"(\w+)"))


def _nasbench201(cells: Sequence[str], settings: Mapping[str, Any]) -> tuple[SearchSpace, Codes]:
    space = load_space("nasbench201", **settings)
    index = {option.label: code for code, option in enumerate(space.options)}
    rows = []
    for row, cell in enumerate(cells, start=1):
        found = _CELL.fullmatch(cell.strip())
        if not found or not index.keys() >= set(found.groups()):
            raise ValueError(f"row {row} holds no cell of NAS-Bench-201: {cell[:80]!r}")
        rows.append([index[operation] for operation in found.groups()])
    return space, np.array(rows, dtype=np.int16).reshape(len(rows), *space.code_shape)


# The benchmark's order of block types; ours is from the cheapest to the dearest.
_FBNET_ORDER = (
    *("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6"),
    *("k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip"),
)


def _fbnet(rows: Sequence[str], settings: Mapping[str, Any]) -> tuple[SearchSpace, Codes]:
    space = load_space("fbnet", **settings)
    labels = [option.label for option in space.options]
    order = np.array([labels.index(label) for label in _FBNET_ORDER], dtype=np.int16)
    depths = [depth for (depth,) in space.depths]
    numbers = _numbers(rows, "blocks", sum(depths))
    blocks = order[_places(numbers, range(len(order)), "block")]
    codes = np.full((len(rows), *space.code_shape), -1, dtype=np.int16)
    begin = 0
    for unit, depth in enumerate(depths):
        codes[:, unit, :depth] = blocks[:, begin : begin + depth]
        begin += depth
    return space, codes


def _ofa(frame: pd.DataFrame, settings: Mapping[str, Any]) -> tuple[SearchSpace, Codes]:
    space = load_space("ofa", **settings)
    units, most = space.unit_count, space.max_unit_depth
    depth = _numbers(frame["depth"], "depths", units)
    _places(depth, space.depths[0], "depth")
    present = np.arange(most) < depth[..., None]
    options = np.zeros(present.shape, dtype=np.int64)
    columns = {"kernel": frame["kernel"], "expansion": frame["expand"]}
    for feature in space.features:
        numbers = _numbers(columns[feature.name], feature.name, units * most)
        choices = [int(value) for value in feature.values]
        slots = np.where(present, numbers.reshape(present.shape), choices[0])
        options = options * len(choices) + _places(slots, choices, feature.name)
    codes = np.full((len(frame), *space.code_shape), -1, dtype=np.int16)
    space.blocks_of(codes)[:] = np.where(present, options, -1)
    if "resolution" in frame:
        sides = frame["resolution"].to_numpy()
        choices = list(space.resolutions) or [space.resolution]
        codes[:, units:, 0] = _places(sides, choices, "resolution")[:, None]
    elif space.resolutions:
        raise ValueError("it has no column resolution")
    return space, codes


def _numbers(rows: Sequence[str], what: str, count: int) -> NDArray[np.int64]:
    """Numbers joined by ``_``, ``(n, count)``."""
    found = []
    for row, text in enumerate(rows, start=1):
        parts = str(text).split("_")
        if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"row {row} holds no {count} {what} joined by _: {str(text)[:80]!r}")
        found.append([int(part) for part in parts])
    return np.array(found, dtype=np.int64)


def _places(values: ArrayLike, choices: Sequence[int], what: str) -> NDArray[np.int64]:
    """Where each value is among rising choices."""
    numbers = np.asarray(values, dtype=float)
    places = np.searchsorted(choices, numbers).clip(max=len(choices) - 1)
    wrong = np.asarray(choices)[places] != numbers
    if wrong.any():
        row, value = int(np.argwhere(wrong)[0][0]) + 1, numbers[wrong][0]
        allowed = ", ".join(map(str, choices))
        raise ValueError(f"row {row} has the {what} {value:g}: choose {allowed}")
    return np.asarray(places, dtype=np.int64)
