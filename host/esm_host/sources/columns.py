"""Tables of others, by columns that their owner names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from esm_host.dataset.benchmarks import LatencyTable, codes_of
from esm_host.errors import DatasetError, UsageError
from esm_models.errors import ModelsError

UNITS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "ns": 1e-6}
"""Milliseconds in each."""

_PREFIX = "lat_ms_"


def read_columns(
    path: Path,
    name: str,
    architecture: str | None = None,
    latencies: Mapping[str, str] | None = None,
    unit: str = "ms",
) -> LatencyTable:
    """Reads a CSV or Parquet file.

    Args:
        name: of the table that it becomes.
        architecture: column with architectures: as JSON, as cell strings of NAS-Bench-201, or as
            22 block numbers of FBNet; by default ``architecture`` or ``arch``, or the four columns
            of Once-for-all.
        latencies: column -> device; by default all columns ``lat_ms_DEVICE``.
        unit: of the latencies, in :data:`UNITS`. What is missing or not positive is missing.

    Raises:
        UsageError: there is no such file, column or unit.
        DatasetError: the file cannot be read, or its architectures are of no known space.
    """
    if unit not in UNITS:
        raise UsageError(f"--unit {unit}: choose {', '.join(UNITS)}")
    frame = _read(path)
    chosen = dict(latencies or {})
    if not chosen:
        chosen = {c: c.removeprefix(_PREFIX) for c in frame.columns if c.startswith(_PREFIX)}
    if not chosen:
        raise UsageError(
            f"{path} has no column {_PREFIX}DEVICE: name one with --latency COLUMN=DEVICE; it has "
            f"{', '.join(frame.columns[:20])}"
        )
    for column in (*chosen, *([architecture] if architecture else [])):
        if column not in frame:
            raise UsageError(
                f"{path} has no column '{column}': it has {', '.join(frame.columns[:20])}"
            )
    if architecture:
        text = frame[architecture].astype(str)
        form = "architecture" if text.iloc[:1].str.startswith("{").any() else "arch"
        searched = pd.DataFrame({form: text})
    else:
        searched = frame
    try:
        space, codes = codes_of(searched)
    except (KeyError, ValueError, IndexError, ModelsError) as error:
        raise DatasetError(
            f"{path} has no architectures of a known space ({str(error) or 'it has no rows'}): "
            "name their column with --architecture"
        ) from error
    latency_ms = {}
    for column, device in chosen.items():
        try:
            values = frame[column].to_numpy(float) * UNITS[unit]
        except ValueError as error:
            raise DatasetError(f"column '{column}' of {path} is not of numbers") from error
        latency_ms[device] = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    return LatencyTable(name, space, codes, latency_ms, {})


def _read(path: Path) -> pd.DataFrame:
    read = pd.read_csv if path.suffix in (".csv", ".tsv", ".gz") else pd.read_parquet
    options = {"sep": "\t"} if path.suffix == ".tsv" else {}
    try:
        frame: pd.DataFrame = read(path, **options)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}") from error
    except Exception as error:  # pandas and pyarrow have many
        raise DatasetError(f"{path} cannot be read ({str(error).splitlines()[0]})") from error
    return frame
