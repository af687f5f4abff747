"""Which of the formats that can be imported a file is in."""

from __future__ import annotations

import enum
from pathlib import Path

from esm_host.errors import UsageError


class Format(enum.StrEnum):
    columns = "columns"
    """CSV, TSV or Parquet, by columns."""
    help = "help"
    """A folder of HELP's data."""
    hw_nas_bench = "hw-nas-bench"
    """The pickle of HW-NAS-Bench."""


def format_of(path: Path) -> Format:
    """By the file's ending, or by what is in the folder.

    Raises:
        UsageError: there is no such file or folder, or it does not tell.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_dir():
        if (path / "settings.json").exists():
            raise UsageError(f"{path} is a campaign: it is a source as it is, by its folder's name")
        if (path / "latency").is_dir():
            return Format.help
        raise UsageError(f"{path} has no folder latency: give one of HELP's data, or a file")
    if path.suffix in (".pickle", ".pkl"):
        return Format.hw_nas_bench
    if stem(path) != path.name:
        return Format.columns
    raise UsageError(f"{path} does not tell its format: give --format {', '.join(Format)}")


def stem(path: Path) -> str:
    """A table's file name without its ending."""
    for ending in (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz"):
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name
