"""What there is to learn from: imported tables, and campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run, load_run
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark, write_table
from esm_host.dataset.table import Dataset
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.extension.settings import SpaceSettings
from esm_host.sources.folder import file_of, tables
from esm_host.transfer.source import Source
from esm_models.errors import ModelsError
from esm_models.graph import FLOAT32
from esm_models.space import SearchSpace
from esm_models.spaces import SPACES, load_space

LEAST = 20
"""Architectures that a source must have to be taken unasked."""


# Imported tables


def keep(imported: Sequence[LatencyTable], replace: bool = False) -> list[Path]:
    """Keeps tables under their names, all or none; returns the files.

    Raises:
        UsageError: a name cannot be one, or is taken and ``replace`` is false.
    """
    paths = [file_of(table.name) for table in imported]
    for table, path in zip(imported, paths, strict=True):
        if path.exists() and not replace:
            raise UsageError(
                f"there is a source '{table.name}': add --replace, or give another --name"
            )
    for table, path in zip(imported, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        write_table(table, draft)
        draft.replace(path)
    return paths


def remove(name: str) -> None:
    """Forgets an imported table.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in tables():
        raise UsageError(
            f"there is no imported source '{name}': esm-host sources list shows what there is"
        )
    file_of(name).unlink()


# All that there is


@dataclass(frozen=True)
class Entry:
    """A source as a list shows it.

    Attributes:
        kind: ``"imported"`` or ``"campaign"``.
        space: name of the search space, and where they are not its own, its settings.
        device: of a campaign what it was called.
        architectures: with a latency.
        missing: without one.
    """

    name: str
    kind: str
    space: str
    device: str
    architectures: int
    missing: int


def entries(runs: Path) -> tuple[list[Entry], list[str]]:
    """All imported tables, device by device, and all campaigns in a folder that have measured
    something; and in a line each, with marked names of arguments, what cannot be read."""
    found, problems = [], []
    for name in tables():
        try:
            found += entries_of(read_benchmark(file_of(name)))
        except EsmError as error:
            problems.append(error.marked)
    for path in campaigns(runs):
        try:
            run = load_run(path)
            settings, architectures = run.settings, len(_measured(run))
        except EsmError as error:
            problems.append(error.marked)
            continue
        space = described(settings)
        found.append(Entry(str(path), "campaign", space, settings.device, architectures, 0))
    return found, problems


def entries_of(table: LatencyTable) -> list[Entry]:
    """A table's devices."""
    space, counts = describe(table.space), []
    for device, latency_ms in table.latency_ms.items():
        there = int(np.isfinite(latency_ms).sum())
        name = f"{table.name}/{device}"
        counts.append(Entry(name, "imported", space, device, there, len(table) - there))
    return counts


def campaigns(runs: Path) -> list[Path]:
    """Folders of campaigns in a folder."""
    return sorted(path.parent for path in runs.glob("*/settings.json"))


def load(name: str) -> list[Source]:
    """The sources of a campaign's folder, of an imported table, of one of its devices
    (``TABLE/DEVICE``), or of a Parquet file.

    Raises:
        UsageError: there is nothing of that name.
        DatasetError: it is damaged, or has no latencies.
        ModelsError: it is a campaign whose own search space is gone.
    """
    table, _, device = name.partition("/")
    path = Path(name)
    if (path / "settings.json").exists():
        return [_campaign(path)]
    if table in tables():
        sources = _of_table(read_benchmark(file_of(table)))
        found = [source for source in sources if not device or source.name == name]
        if not found:
            devices = ", ".join(source.name.partition("/")[2] for source in sources)
            raise UsageError(f"source '{table}' has no device '{device}': choose {devices}")
        return found
    if path.suffix == ".parquet":
        return _of_table(read_benchmark(path))
    raise UsageError(
        f"there is no source '{name}': give one of esm-host sources list, a campaign's folder or a "
        "Parquet file"
    )


def everything(runs: Path, space: SearchSpace | None = None) -> list[Source]:
    """All that can be read of imported tables and of campaigns in a folder, of any search space.

    Args:
        space: one of a user's own whose campaigns are wanted too. Others' own spaces are files that
            would be run to look at them: they are left out.
    """
    found: list[Source] = []
    # What is unfinished or damaged teaches nothing; it is told of where it is asked for.
    for name in tables():
        with suppress(EsmError):
            found += _of_table(read_benchmark(file_of(name)))
    for path in campaigns(runs):
        with suppress(EsmError, ModelsError):
            if _may_be(path, space):
                found.append(_campaign(path))
    return found


def fitting(
    space: SearchSpace, names: Sequence[str], runs: Path, but: Path | None = None
) -> list[Source]:
    """What there is to learn from for a search space: what is named, or all imported tables and
    all campaigns in a folder, those of other spaces, resolutions, widths, batches and dtypes and
    too small ones left out.

    Args:
        but: a campaign that is no source, the one that asks.

    Raises:
        UsageError: what is named does not exist, or is of another space.
        DatasetError: what is named is damaged.
        ModelsError: what is named is a campaign whose own search space is gone.
    """
    if names:
        named = _named(names)
        for source in named:
            _check_fit(source, space)
        return named
    own = None if but is None else but.resolve()
    return [
        source
        for source in everything(runs, space)
        if _alike(source, space) and len(source) >= LEAST and Path(source.name).resolve() != own
    ]


def of_one_space(
    names: Sequence[str], runs: Path, space: str | None = None, targets: Sequence[str] = ()
) -> tuple[list[Source], list[int]]:
    """Sources that can be compared, and which of them the targets are.

    Args:
        names: of the sources; none takes all imported tables and all campaigns in a folder, those
            of other spaces and too small ones left out.
        space: name, or path/to/file.py:Class; that of the targets or else of all sources unless
            given.
        targets: names of sources, or of devices that only one of the sources has.

    Raises:
        UsageError: there is nothing of a name, or the sources are of several spaces.
        DatasetError: what is named is damaged.
        ModelsError: there is no such space.
    """
    wanted = None if space is None else load_space(space)
    if names:
        found = _named(names)
    else:
        found = [s for s in everything(runs, wanted) if len(s) >= LEAST]
        if wanted is not None:
            found = [s for s in found if s.space.name == wanted.name]
    chosen = [_find(name, found) for name in targets]
    found += [target for target in dict.fromkeys(chosen) if target not in found]
    if not found:
        raise UsageError(
            f"there are no sources{f' of {space}' if space else ''} with {LEAST} architectures or "
            "more: esm-host import FILE adds some"
        )
    if chosen and not names:
        found = [source for source in found if _alike(source, chosen[0].space)]
    spaces = list(dict.fromkeys(describe(source.space) for source in found))
    if not names and len(spaces) > 1:
        raise UsageError(
            f"there are sources of {'; of '.join(spaces)}: choose with --space, or name them"
        )
    for source in (*found, *chosen):
        _check_fit(source, (chosen or found)[0].space)
        if wanted is not None and source.space.name != wanted.name:
            raise UsageError(f"source '{source.name}' is of {describe(source.space)}, not {space}")
    return found, [found.index(target) for target in chosen]


def _named(names: Sequence[str]) -> list[Source]:
    return list({source.name: source for name in names for source in load(name)}.values())


def _find(name: str, sources: Sequence[Source]) -> Source:
    """Of the sources, or of all that there is, the one that is called so."""
    short = [source for source in sources if source.name.partition("/")[2] == name]
    found = [source for source in sources if source.name == name] or short or load(name)
    if len(found) > 1:
        raise UsageError(
            f"'{name}' is {len(found)} devices: give one of "
            f"{', '.join(source.name for source in found)}"
        )
    return found[0]


def _alike(source: Source, space: SearchSpace) -> bool:
    """Whether it also has the same resolution, widths, batch and dtype: it is taken unasked."""
    return source.fits(space) and source.space.settings() == space.settings()


def _check_fit(source: Source, space: SearchSpace) -> None:
    if not source.fits(space):
        raise UsageError(
            f"source '{source.name}' is of {source.space.name}, not of {space.name}: leave it out"
        )


def describe(space: SearchSpace) -> str:
    """A space's name, and its settings where they are not its own."""
    settings: dict[str, Any] = space.settings()
    own = type(space)().settings()
    resolution = settings["resolution"]
    return _description(
        space.name,
        None if resolution == own["resolution"] else resolution,
        settings["width_mult"],
        settings["batch"],
        space.dtype,
    )


def described(settings: SpaceSettings) -> str:
    """A campaign's search space likewise, without loading it."""
    own = (settings.resolution, settings.width_mult, settings.batch, settings.dtype)
    return _description(settings.space, *own)


def _description(
    name: str, resolution: int | None, width_mult: float, batch: int, dtype: str
) -> str:
    return (
        name
        + (f", {resolution} px" if resolution is not None else "")
        + (f", width x{width_mult:g}" if width_mult != 1 else "")
        + (f", batch {batch}" if batch != 1 else "")
        + (f", {dtype}" if dtype != FLOAT32 else "")
    )


def _of_table(table: LatencyTable) -> list[Source]:
    sources = []
    for device, latency_ms in table.latency_ms.items():
        there = np.isfinite(latency_ms)
        if there.any():
            name = f"{table.name}/{device}"
            # Devices that have all share their architectures, which are then encoded once.
            codes = table.codes if there.all() else table.codes[there]
            sources.append(Source(name, table.space, codes, latency_ms[there]))
    if not sources:
        raise DatasetError(f"source '{table.name}' has no latencies: leave it out")
    return sources


def _campaign(path: Path) -> Source:
    run = load_run(path)
    measured = _measured(run)
    if not len(measured):
        raise DatasetError(f"{path} has nothing measured to learn from yet: leave it out")
    return Source(
        str(path), run.space, run.space.encode(measured.architectures), measured.latency_ms
    )


def _measured(run: Run) -> Dataset:
    return run.dataset().only(run.settings.trusted_verdicts)


def _may_be(path: Path, space: SearchSpace | None) -> bool:
    """Whether a campaign may be of that space. Its own space is a file that is run when it is
    looked at, so not unless the names agree."""
    name = RunFolder(path).read_settings().space
    if space is None or name in SPACES:
        return name in SPACES and (space is None or name == space.name)
    return name.rpartition(":")[2] == type(space).__name__
