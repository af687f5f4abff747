"""Formats of files that can be imported."""

from __future__ import annotations

import enum
from pathlib import Path

from esm_host.arguments import argument
from esm_host.errors import UsageError


class Format(enum.StrEnum):
    """Format of a file that can be imported."""

    columns = "columns"
    """CSV, TSV or Parquet file with named columns."""
    help = "help"
    """Folder of HELP's data."""
    hw_nas_bench = "hw-nas-bench"
    """Pickle file of HW-NAS-Bench."""


def format_of(path: Path) -> Format:
    """Return the format of a file by its ending, or of a folder by its content.

    Raises:
        UsageError: the path does not exist, or its format is unknown.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}")
    if path.is_dir():
        if (path / "settings.json").exists():
            raise UsageError(f"{path} is a campaign: use its folder as a source, without an import")
        if (path / "latency").is_dir():
            return Format.help
        raise UsageError(f"{path} has no folder 'latency': give a folder of HELP's data, or a file")
    if path.suffix in (".pickle", ".pkl"):
        return Format.hw_nas_bench
    if stem(path) != path.name:
        return Format.columns
    raise UsageError(f"{path} has an unknown format: give {argument('format')} {', '.join(Format)}")


def stem(path: Path) -> str:
    """Return a table's file name without its ending."""
    for ending in (".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz"):
        if path.name.endswith(ending):
            return path.name.removesuffix(ending)
    return path.name
