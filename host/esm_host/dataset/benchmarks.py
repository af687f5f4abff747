"""Tables of latencies and energies, stored as architecture codes and numeric columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from esm_protos.nearest import unknown

LATENCY = "lat_ms_"
"""Prefix of the names of latency columns."""
ENERGY = "energy_mj_"
"""Prefix of the names of energy columns."""
_ACCURACY = "acc_"

_LEAST_MS = 0.5
_LEAST_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Architectures of one space with latencies, energies and accuracies, row by row.

    Attributes:
        name: Name of the table.
        space: Search space of the architectures.
        codes: Codes of the architectures, shape ``(n, *space.code_shape)``.
        latency_ms: Latencies by device, ms, shape ``(n,)``; NaN where missing.
        accuracy_percent: Accuracies by task, percent, shape ``(n,)``; empty in tables without
            them.
        energy_mj: Energies per inference by device, millijoules, shape ``(n,)``; NaN where
            missing. Empty in tables without them.
    """

    name: str
    space: SearchSpace
    codes: Codes
    latency_ms: Mapping[str, NDArray[np.float64]]
    accuracy_percent: Mapping[str, NDArray[np.float64]]
    energy_mj: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.codes)

    def latency_of(self, device: str) -> NDArray[np.float64]:
        """Return the latencies of one device, ms, shape ``(n,)``.

        Raises:
            UsageError: the table has no such device.
        """
        if device not in self.latency_ms:
            raise UsageError(unknown("device", device, self.latency_ms, where=f"of {self.name}"))
        return self.latency_ms[device]


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a Parquet table.

    Raises:
        UsageError: the file does not exist.
        DatasetError: the file cannot be read.
    """
    try:
        return pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}") from error
    except Exception as error:  # pyarrow raises many types
        text = str(error).splitlines()[0]
        raise DatasetError(f"{path} cannot be read as Parquet ({text})") from error


def read_benchmark(path: Path) -> LatencyTable:
    """Read a Parquet table of architectures.

    The columns determine the space (:func:`codes_of`). Latencies are in columns
    ``lat_ms_DEVICE``, energies in ``energy_mj_DEVICE``, accuracies in ``acc_TASK``.

    Raises:
        UsageError: the file does not exist.
        DatasetError: the file holds no such table, or is damaged.
    """
    frame = read_parquet(path)
    try:
        space, codes = codes_of(frame)
        latency_ms = _prefixed(frame, LATENCY)
        energy_mj = _prefixed(frame, ENERGY)
        accuracy_percent = accuracies(frame)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path} is not a table of architectures ({error})") from error
    if "architecture" not in frame:  # a table of another program
        latency_ms = {device: plausible_latencies(values) for device, values in latency_ms.items()}
        energy_mj = {device: positive(values) for device, values in energy_mj.items()}
    return LatencyTable(path.stem, space, codes, latency_ms, accuracy_percent, energy_mj)


def write_table(table: LatencyTable, path: Path) -> None:
    """Write a table of any built-in space in the format of :func:`read_benchmark`."""
    columns: dict[str, object] = {
        "architecture": [json.dumps(a.to_json()) for a in table.space.decode(table.codes)]
    }
    columns |= {LATENCY + device: values for device, values in table.latency_ms.items()}
    columns |= {ENERGY + device: values for device, values in table.energy_mj.items()}
    columns |= {_ACCURACY + task: values for task, values in table.accuracy_percent.items()}
    frame = pd.DataFrame(columns)
    frame.attrs["space"] = table.space.settings()
    frame.to_parquet(path, index=False, compression="zstd")


def accuracies(frame: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Return the accuracies of a table by task, percent, shape ``(n,)``.

    Raises:
        TypeError, ValueError: an accuracy column holds something other than numbers.
    """
    return _prefixed(frame, _ACCURACY)


def _prefixed(frame: pd.DataFrame, prefix: str) -> dict[str, NDArray[np.float64]]:
    """Return the columns with this prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): frame[name].to_numpy(float)
        for name in frame.columns
        if name.startswith(prefix)
    }


def plausible_latencies(latency_ms: ArrayLike) -> NDArray[np.float64]:
    """Return published latencies, shape ``(n,)``, with implausible values replaced by NaN.

    Public tables hold a few hundred values thousands of times below the others of their device. A
    value is implausible if it is not positive and finite. It is also implausible below both 0.5
    ms and a twentieth of the device's median.
    """
    values = positive(latency_ms)
    if np.isfinite(values).any():
        values[values < min(_LEAST_MS, _LEAST_SHARE * float(np.nanmedian(values)))] = np.nan
    return values


def positive(values: ArrayLike) -> NDArray[np.float64]:
    """Return published values, shape ``(n,)``, with NaN where one is not positive and finite."""
    found = np.array(values, dtype=float)
    found[~(np.isfinite(found) & (found > 0))] = np.nan
    return found


def codes_of(
    frame: pd.DataFrame, settings: Mapping[str, Any] | None = None
) -> tuple[SearchSpace, Codes]:
    """Return the search space of a table and the codes of its architectures.

    The columns determine the space:

    - ``architecture``: architectures as JSON, as :func:`write_table` writes them.
    - ``arch``: cells of NAS-Bench-201, or 22 block numbers of FBNet.
    - ``depth``, ``kernel``, ``expand`` and ``resolution``: Once-for-all.

    Only built-in spaces are accepted, because a table must not decide which file is run.

    Args:
        frame: The table.
        settings: Settings of the space, such as its resolution. None uses those that
            :func:`write_table` stored, or the defaults of the space.

    Raises:
        ValueError: the table has no architectures, or none of a built-in space.
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
    raise ValueError(
        "it needs a column 'architecture' or 'arch', or columns 'depth', 'kernel' and 'expand'"
    )


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
        raise ValueError(unknown("space", name[:80], SPACES))
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
            raise ValueError(f"row {row} is not a cell of NAS-Bench-201: {cell[:80]!r}")
        rows.append([index[operation] for operation in found.groups()])
    return space, np.array(rows, dtype=np.int16).reshape(len(rows), *space.code_shape)


# The benchmark's order of block types; ours is by rising cost.
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
        raise ValueError("it has no column 'resolution'")
    return space, codes


def _numbers(rows: Sequence[str], what: str, count: int) -> NDArray[np.int64]:
    """Return numbers joined by ``_``, shape ``(n, count)``."""
    found = []
    for row, text in enumerate(rows, start=1):
        parts = str(text).split("_")
        if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(
                f"row {row} needs {count} {what} joined by '_', not {str(text)[:80]!r}"
            )
        found.append([int(part) for part in parts])
    return np.array(found, dtype=np.int64)


def _places(values: ArrayLike, choices: Sequence[int], what: str) -> NDArray[np.int64]:
    """Return the index of each value in rising choices."""
    numbers = np.asarray(values, dtype=float)
    places = np.searchsorted(choices, numbers).clip(max=len(choices) - 1)
    wrong = np.asarray(choices)[places] != numbers
    if wrong.any():
        row, value = int(np.argwhere(wrong)[0][0]) + 1, numbers[wrong][0]
        allowed = ", ".join(map(str, choices))
        raise ValueError(f"row {row} has the {what} {value:g}: choose {allowed}")
    return np.asarray(places, dtype=np.int64)
