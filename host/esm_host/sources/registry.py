"""Where imported tables are, and what there is to learn from for a search space."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from esm_host.dataset.benchmarks import LatencyTable, read_benchmark, write_table
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.run import load_run
from esm_host.sources.source import Source
from esm_models.space import SearchSpace

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def folder() -> Path:
    """``$ESM_SOURCES``, or ``$XDG_DATA_HOME/esm/sources``."""
    if given := os.environ.get("ESM_SOURCES"):
        return Path(given)
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "esm" / "sources"


def keep(table: LatencyTable, replace: bool = False) -> Path:
    """Keeps a table under its name; returns the file.

    Raises:
        UsageError: the name cannot be one, or is taken and ``replace`` is false.
    """
    if not _NAME.fullmatch(table.name):
        raise UsageError(f"--name '{table.name}': give letters, digits, '.', '_' and '-'")
    path = folder() / f"{table.name}.parquet"
    if path.exists() and not replace:
        raise UsageError(f"there is a source '{table.name}': add --replace, or give another --name")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    write_table(table, draft)
    draft.replace(path)
    return path


def remove(name: str) -> None:
    """Forgets an imported table.

    Raises:
        UsageError: there is none of that name.
    """
    path = folder() / f"{name}.parquet"
    if not _NAME.fullmatch(name) or not path.exists():
        raise UsageError(f"there is no imported source '{name}': esm-host sources list has them")
    path.unlink()


def tables() -> list[str]:
    """Names of the imported tables."""
    return sorted(path.stem for path in folder().glob("*.parquet"))


def campaigns(runs: Path) -> list[Path]:
    """Folders of campaigns in a folder."""
    return sorted(path.parent for path in runs.glob("*/settings.json"))


def load(name: str) -> list[Source]:
    """The sources of an imported table, of one of its devices (``TABLE/DEVICE``), of a Parquet
    file, or of a campaign's folder.

    Raises:
        UsageError: there is nothing of that name.
        DatasetError: it is damaged.
    """
    path = Path(name)
    if (path / "settings.json").exists():
        return [_campaign(path)]
    if path.suffix == ".parquet":
        return _of_table(read_benchmark(path))
    table, _, device = name.partition("/")
    if not (folder() / f"{table}.parquet").exists():
        raise UsageError(
            f"there is no source '{name}': give a table or TABLE/DEVICE of esm-host sources list, "
            "a campaign's folder or a Parquet file"
        )
    sources = _of_table(read_benchmark(folder() / f"{table}.parquet"))
    chosen = [source for source in sources if not device or source.name == name]
    if not chosen:
        devices = ", ".join(source.name.partition("/")[2] for source in sources)
        raise UsageError(f"source '{table}' has no device '{device}': choose {devices}")
    return chosen


def fitting(
    space: SearchSpace, names: Sequence[str], runs: Path, but: Path | None = None
) -> list[Source]:
    """What there is to learn from for a search space: what is named, or all imported tables and
    all campaigns in a folder, those of other spaces and too small ones left out.

    Args:
        but: a campaign that is no source, the one that asks.

    Raises:
        UsageError: what is named does not exist, or is of another space.
        DatasetError: what is named is damaged.
    """
    if names:
        found = [source for name in names for source in load(name)]
        for source in found:
            if not source.fits(space):
                raise UsageError(
                    f"source '{source.name}' is of {source.space.name}, not of {space.name}: "
                    "leave it out"
                )
        return found
    found = []
    folders = [path for path in campaigns(runs) if but is None or path.resolve() != but.resolve()]
    for name in (*tables(), *map(str, folders)):
        try:
            found += load(name)
        except EsmError:
            continue  # unfinished or damaged: nothing to learn from, unless it is asked for
    return [source for source in found if source.fits(space) and len(source) >= LEAST]


LEAST = 20
"""Architectures that a source must have to be taken unasked."""


def _of_table(table: LatencyTable) -> list[Source]:
    sources = []
    for device, latency_ms in table.latency_ms.items():
        there = np.isfinite(latency_ms)
        name = f"{table.name}/{device}"
        sources.append(Source(name, table.space, table.codes[there], latency_ms[there]))
    return sources


def _campaign(path: Path) -> Source:
    run = load_run(path)
    measured = run.dataset().only(run.settings.trusted_verdicts)
    if not len(measured):
        raise DatasetError(f"{path} has nothing measured yet")
    return Source(
        str(path), run.space, run.space.encode(measured.architectures), measured.latency_ms
    )
