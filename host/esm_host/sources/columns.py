"""Reader of tables whose columns the user names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.arguments import argument, either
from esm_host.dataset.benchmarks import (
    ENERGY,
    LATENCY,
    LatencyTable,
    accuracies,
    codes_of,
    plausible_latencies,
    positive,
)
from esm_host.errors import DatasetError, UsageError
from esm_host.sources.formats import stem
from esm_models.errors import InvalidSpaceError
from esm_protos.nearest import unknown

UNITS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds per unit."""
ENERGY_UNITS = {"J": 1e3, "mJ": 1.0, "uJ": 1e-3, "nJ": 1e-6}
"""Millijoules per unit."""
_NAMED = {
    LATENCY: either("latencies={COLUMN: DEVICE}", "--latency COLUMN=DEVICE"),
    ENERGY: either("energies={COLUMN: DEVICE}", "--energy COLUMN=DEVICE"),
}
"""Argument that names columns, by the prefix of those that need no name."""


def read_columns(
    path: Path,
    name: str | None = None,
    architecture: str | None = None,
    latencies: Mapping[str, str] | None = None,
    unit: str = "ms",
    settings: Mapping[str, Any] | None = None,
    energies: Mapping[str, str] | None = None,
    energy_unit: str = "mJ",
) -> LatencyTable:
    """Read a CSV, TSV or Parquet file; columns ``acc_TASK`` are kept as accuracies.

    Args:
        path: Path of the file.
        name: Name of the new table; None uses the file's.
        architecture: Column with the architectures: JSON, cells of NAS-Bench-201, or 22 block
            numbers of FBNet. None uses ``architecture``, ``arch``, or the four columns of
            Once-for-all.
        latencies: Devices by column. If neither latencies nor energies are named, all columns
            ``lat_ms_DEVICE`` and ``energy_mj_DEVICE`` are read.
        unit: Unit of the columns in ``latencies``, from :data:`UNITS`.
        settings: Settings of the search space, such as its resolution; None uses its defaults.
        energies: Devices by column, as for latencies.
        energy_unit: Unit of the columns in ``energies``, from :data:`ENERGY_UNITS`.

    Raises:
        UsageError: the file, a column or a unit does not exist.
        DatasetError: the file cannot be read, or its architectures are of no built-in space.
    """
    for kind, named, given, units in (
        ("unit", latencies, unit, UNITS),
        ("energy_unit", energies, energy_unit, ENERGY_UNITS),
    ):
        if given not in units:
            raise UsageError(unknown(kind.replace("_", " "), given, units))
        if units[given] != 1 and not named:
            cure = _NAMED[LATENCY if kind == "unit" else ENERGY]
            raise UsageError(f"{argument(kind)} {given} needs columns that {cure} names")
    frame = read_frame(path)
    timed, fed = dict(latencies or {}), dict(energies or {})
    if not timed and not fed:
        timed, fed = (
            {c: c.removeprefix(prefix) for c in frame.columns if c.startswith(prefix)}
            for prefix in (LATENCY, ENERGY)
        )
    chosen = [*timed, *fed]
    has = f"it has {', '.join(map(repr, frame.columns[:20]))}"
    if not chosen:
        raise UsageError(
            f"{path} has no column {LATENCY}DEVICE: name one with {_NAMED[LATENCY]} or "
            f"{_NAMED[ENERGY]}; {has}"
        )
    for column in (*chosen, *([architecture] if architecture else [])):
        if column not in frame:
            names = [str(each) for each in frame.columns]
            raise UsageError(unknown("column", column, names, where=f"of {path}", choices=has))
    try:
        space, codes = codes_of(_searched(frame, architecture), settings)
    except ValueError as error:
        if settings and isinstance(error.__cause__, InvalidSpaceError):  # the file is valid
            raise UsageError.of_space(error.__cause__) from error
        raise DatasetError(
            f"{path} has no architectures of a known space ({error}): name their column with "
            f"{argument('architecture')}"
        ) from error
    latency_ms = {
        device: plausible_latencies(UNITS[unit] * _floats(frame, column, path))
        for column, device in timed.items()
    }
    energy_mj = {
        device: positive(ENERGY_UNITS[energy_unit] * _floats(frame, column, path))
        for column, device in fed.items()
    }
    if not any(np.isfinite(v).any() for v in (*latency_ms.values(), *energy_mj.values())):
        what = " or ".join(["latency"] * bool(timed) + ["energy"] * bool(fed))
        raise DatasetError(f"{path} has no {what} above 0 in {', '.join(chosen)}")
    try:
        accuracy_percent = accuracies(frame)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path} has accuracies that are not numbers ({error})") from error
    return LatencyTable(name or stem(path), space, codes, latency_ms, accuracy_percent, energy_mj)


def _searched(frame: pd.DataFrame, architecture: str | None) -> pd.DataFrame:
    """Return the frame in which the architectures are looked up."""
    if architecture is None:
        return frame
    is_json = frame[architecture].astype(str).str.lstrip().str.startswith("{").any()
    searched = frame[[architecture]].rename(columns={architecture: _FORMS[bool(is_json)]})
    searched.attrs = frame.attrs
    return searched


_FORMS = ("arch", "architecture")


def _floats(frame: pd.DataFrame, column: str, path: Path) -> NDArray[np.float64]:
    numbers = pd.to_numeric(frame[column], errors="coerce")
    wrong = frame.loc[numbers.isna() & frame[column].notna(), column]
    if len(wrong):
        raise DatasetError(
            f"column '{column}' of {path} must hold numbers: {str(wrong.iloc[0])[:80]!r}"
        )
    return np.asarray(numbers.to_numpy(dtype=float, na_value=np.nan))


def read_frame(path: Path) -> pd.DataFrame:
    """Read a CSV, TSV or Parquet file.

    Raises:
        UsageError: the file does not exist.
        DatasetError: the file cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",")
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}") from error
    except Exception as error:  # pandas and pyarrow raise many types
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path} cannot be read ({text})") from error
    frame.columns = frame.columns.map(str)
    return frame
