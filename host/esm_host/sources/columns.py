"""Tables of others, by columns that their owner names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.dataset.benchmarks import LATENCY, LatencyTable, accuracies, codes_of, measured
from esm_host.errors import DatasetError, UsageError
from esm_host.sources.formats import stem
from esm_models.errors import InvalidSpaceError

UNITS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds in each."""


def read_columns(
    path: Path,
    name: str | None = None,
    architecture: str | None = None,
    latencies: Mapping[str, str] | None = None,
    unit: str = "ms",
    settings: Mapping[str, Any] | None = None,
) -> LatencyTable:
    """Reads a CSV, TSV or Parquet file. Accuracies are kept where columns are called ``acc_TASK``.

    Args:
        name: of the table that it becomes; the file's unless given.
        architecture: column with architectures: as JSON, as cells of NAS-Bench-201, or as 22 block
            numbers of FBNet; by default ``architecture`` or ``arch``, or the four columns of
            Once-for-all.
        latencies: column -> device; by default all columns ``lat_ms_DEVICE``.
        unit: of the columns in ``latencies``, in :data:`UNITS`.
        settings: of the search space, such as its resolution; its own unless given.

    Raises:
        UsageError: there is no such file, column or unit.
        DatasetError: the file cannot be read, or its architectures are of no known space.
    """
    if unit not in UNITS:
        raise UsageError(f"--unit '{unit}': choose {', '.join(UNITS)}")
    if unit != "ms" and not latencies:
        raise UsageError(f"--unit {unit} is of columns that --latency COLUMN=DEVICE names")
    frame = read_frame(path)
    chosen = dict(latencies or {})
    if not chosen:
        chosen = {c: c.removeprefix(LATENCY) for c in frame.columns if c.startswith(LATENCY)}
    has = f"it has {', '.join(map(repr, frame.columns[:20]))}"
    if not chosen:
        raise UsageError(
            f"{path} has no column {LATENCY}DEVICE: name one with --latency COLUMN=DEVICE; {has}"
        )
    for column in (*chosen, *([architecture] if architecture else [])):
        if column not in frame:
            raise UsageError(f"{path} has no column '{column}': {has}")
    try:
        space, codes = codes_of(_searched(frame, architecture), settings)
    except ValueError as error:
        if settings and isinstance(error.__cause__, InvalidSpaceError):  # not the file's fault
            raise UsageError.of_space(error.__cause__) from error
        raise DatasetError(
            f"{path} has no architectures of a known space ({error}): --architecture names their "
            "column"
        ) from error
    scale = UNITS[unit]
    latency_ms = {device: measured(scale * _floats(frame, c, path)) for c, device in chosen.items()}
    if not any(np.isfinite(values).any() for values in latency_ms.values()):
        raise DatasetError(f"{path} has no latency above 0 in {', '.join(chosen)}")
    try:
        accuracy_percent = accuracies(frame)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path} has accuracies that are no numbers ({error})") from error
    return LatencyTable(name or stem(path), space, codes, latency_ms, accuracy_percent)


def _searched(frame: pd.DataFrame, architecture: str | None) -> pd.DataFrame:
    """Where the architectures are looked for."""
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
            f"column '{column}' of {path} is not of numbers: {str(wrong.iloc[0])[:80]!r}"
        )
    return np.asarray(numbers.to_numpy(dtype=float, na_value=np.nan))


def read_frame(path: Path) -> pd.DataFrame:
    """A CSV, TSV or Parquet file as it is.

    Raises:
        UsageError: there is no such file.
        DatasetError: it cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",")
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}") from error
    except Exception as error:  # pandas and pyarrow have many
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(f"{path} cannot be read ({text})") from error
    frame.columns = frame.columns.map(str)
    return frame
