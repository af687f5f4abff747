"""Tables of latencies, as codes of their search spaces and columns of numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.errors import DatasetError, UsageError
from esm_models.architecture import Architecture
from esm_models.errors import ModelsError
from esm_models.space import Codes, SearchSpace
from esm_models.spaces import load_space

LEAST_MS = 0.5
"""Nothing in these tables runs faster; what says so was not measured."""

_LATENCY = "lat_ms_"
_ACCURACY = "acc_"


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


def read_benchmark(path: Path) -> LatencyTable:
    """Reads a Parquet table of architectures.

    Of which space, its columns tell: ``architecture`` with architectures as JSON, as
    :func:`write_table` makes it; of the public tables, ``arch`` with cell strings or with 22 block
    numbers, or ``depth``, ``kernel``, ``expand`` and ``resolution``. Latencies are in
    ``lat_ms_DEVICE``, accuracies in ``acc_TASK``.

    Raises:
        UsageError: there is no such file.
        DatasetError: it is none of these tables, or damaged.
    """
    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}") from error
    except Exception as error:  # pyarrow has many
        text = str(error).splitlines()[0]
        raise DatasetError(f"{path} cannot be read as Parquet ({text})") from error
    try:
        space, codes = codes_of(frame)
    except (KeyError, ValueError, IndexError, ModelsError) as error:
        raise DatasetError(f"{path} is no table of architectures ({error})") from error
    latency_ms = {}
    for name in frame.columns:
        if name.startswith(_LATENCY):
            values = frame[name].to_numpy(float)
            latency_ms[name.removeprefix(_LATENCY)] = np.where(values >= LEAST_MS, values, np.nan)
    accuracy = {
        name.removeprefix(_ACCURACY): frame[name].to_numpy(float)
        for name in frame.columns
        if name.startswith(_ACCURACY)
    }
    return LatencyTable(path.stem, space, codes, latency_ms, accuracy)


def write_table(table: LatencyTable, path: Path) -> None:
    """Writes what :func:`read_benchmark` reads, of any search space."""
    columns: dict[str, object] = {
        "architecture": [json.dumps(a.to_json()) for a in table.space.decode(table.codes)]
    }
    columns |= {_LATENCY + device: values for device, values in table.latency_ms.items()}
    columns |= {_ACCURACY + task: values for task, values in table.accuracy_percent.items()}
    frame = pd.DataFrame(columns)
    frame.attrs["space"] = table.space.settings()
    frame.to_parquet(path, index=False, compression="zstd")


def codes_of(frame: pd.DataFrame) -> tuple[SearchSpace, Codes]:
    """The search space whose architectures these are, and their codes.

    Raises:
        KeyError, ValueError, IndexError, ModelsError: there are none, or they are of no space.
    """
    if "architecture" in frame:
        return _json(frame)
    if "arch" not in frame:
        return _ofa(frame)
    return (_nasbench201 if "|" in frame["arch"].iloc[0] else _fbnet)(frame["arch"].tolist())


def _json(frame: pd.DataFrame) -> tuple[SearchSpace, Codes]:
    architectures = [Architecture.from_json(json.loads(text)) for text in frame["architecture"]]
    if not architectures:
        raise ValueError("it has no rows")
    settings = dict(frame.attrs.get("space", {}))
    name = str(settings.pop("name", architectures[0].space))
    if settings.get("resolution") == "free":
        del settings["resolution"]
    space = load_space(name, **settings)
    return space, space.encode(architectures)


def _nasbench201(cells: Sequence[str]) -> tuple[SearchSpace, Codes]:
    space = load_space("nasbench201")
    index = {option.label: code for code, option in enumerate(space.options)}
    rows = [
        [index[edge.partition("~")[0]] for edge in cell.replace("+", "").split("|") if edge]
        for cell in cells
    ]
    return space, np.array(rows, dtype=np.int16).reshape(len(rows), *space.code_shape)


# The benchmark's order of block types; ours is from the cheapest to the dearest.
_FBNET_ORDER = (
    *("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6"),
    *("k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip"),
)


def _fbnet(rows: Sequence[str]) -> tuple[SearchSpace, Codes]:
    space = load_space("fbnet")
    labels = [option.label for option in space.options]
    order = np.array([labels.index(label) for label in _FBNET_ORDER], dtype=np.int16)
    blocks = order[np.array([row.split("_") for row in rows], dtype=np.int64)]
    depths = [depth for (depth,) in space.depths]
    if blocks.shape[1] != sum(depths):
        raise ValueError(f"{blocks.shape[1]} blocks instead of {sum(depths)}")
    codes = np.full((len(rows), *space.code_shape), -1, dtype=np.int16)
    begin = 0
    for unit, depth in enumerate(depths):
        codes[:, unit, :depth] = blocks[:, begin : begin + depth]
        begin += depth
    return space, codes


def _ofa(frame: pd.DataFrame) -> tuple[SearchSpace, Codes]:
    space = load_space("ofa")
    units, most = space.unit_count, space.max_unit_depth

    def numbers(column: str) -> NDArray[np.int64]:
        return np.array([row.split("_") for row in frame[column]], dtype=np.int64)

    kernel, expansion = (numbers(name).reshape(-1, units, most) for name in ("kernel", "expand"))
    kernels, expansions = (np.array(feature.values, dtype=int) for feature in space.features)
    options = np.searchsorted(kernels, kernel) * len(expansions)
    options += np.searchsorted(expansions, expansion)
    codes = np.full((len(frame), *space.code_shape), -1, dtype=np.int16)
    present = np.arange(most) < numbers("depth")[..., None]
    space.blocks_of(codes)[:] = np.where(present, options, -1)
    codes[:, -1, 0] = np.searchsorted(space.resolutions, frame["resolution"])
    return space, codes
