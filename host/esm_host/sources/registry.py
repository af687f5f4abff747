"""Registry of all sources: imported tables and campaigns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run, load_run
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark, write_table
from esm_host.dataset.table import Dataset
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.extension.settings import SpaceSettings
from esm_host.sources.folder import file_of, tables
from esm_host.transfer.source import ENERGY, LATENCY, Source
from esm_models.errors import ModelsError
from esm_models.graph import FLOAT32
from esm_models.space import SearchSpace
from esm_models.spaces import SPACES, load_space
from esm_protos.nearest import unknown

LEAST = 20
"""Fewest architectures of a source that is used without being named."""


# Imported tables


def keep(imported: Sequence[LatencyTable], replace: bool = False) -> list[Path]:
    """Store tables under their names, all or none, and return their files.

    Args:
        imported: Tables to store.
        replace: Whether to replace existing tables.

    Raises:
        UsageError: a name is invalid, or is taken and ``replace`` is false.
    """
    paths = [file_of(table.name) for table in imported]
    for table, path in zip(imported, paths, strict=True):
        if path.exists() and not replace:
            raise UsageError(
                f"there is already a source '{table.name}': give {argument('replace')}, "
                f"or another {argument('name')}"
            )
    for table, path in zip(imported, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        write_table(table, draft)
        draft.replace(path)
    return paths


def remove(name: str) -> None:
    """Delete an imported table.

    Raises:
        UsageError: the table does not exist.
    """
    if name not in tables():
        raise UsageError(unknown("imported source", name, tables()))
    file_of(name).unlink()


# All sources


@dataclass(frozen=True)
class Entry:
    """Source in a list.

    Attributes:
        name: Name of the source.
        kind: ``"imported"`` or ``"campaign"``.
        space: Name of the search space, with its settings if they are not the defaults.
        device: Name of the device.
        architectures: Number of architectures with a value.
        missing: Number of architectures without a value.
        metric: What is known of the device, :data:`LATENCY` or :data:`ENERGY`.
        unit: Unit of its values.
    """

    name: str
    kind: str
    space: str
    device: str
    architectures: int
    missing: int
    metric: str = LATENCY
    unit: str = "ms"


def entries(runs: Path) -> tuple[list[Entry], list[str]]:
    """List all imported tables by device, and the campaigns of a folder with measurements.

    Returns:
        Entries, and one line per unreadable source, with marked names of arguments.
    """
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
        space = describe_settings(settings)
        found.append(Entry(str(path), "campaign", space, settings.device, architectures, 0))
    return found, problems


def entries_of(table: LatencyTable) -> list[Entry]:
    """Return one entry per device and metric of a table."""
    space, found = describe(table.space), []
    for metric, unit, name, device, values in _columns(table):
        there = int(np.isfinite(values).sum())
        counts = there, len(table) - there
        found.append(Entry(name, "imported", space, device, *counts, metric, unit))
    return found


def campaigns(runs: Path) -> list[Path]:
    """Return the campaign folders in a folder."""
    return sorted(path.parent for path in runs.glob("*/settings.json"))


def load(name: str) -> list[Source]:
    """Load a source by name.

    A table stands for its latencies, or for its energies if it has no latencies.

    Args:
        name: Folder of a campaign, imported table, one of its devices (``TABLE/DEVICE``, or
            ``TABLE/DEVICE:energy``), or a Parquet file.

    Raises:
        UsageError: the source does not exist.
        DatasetError: the source is damaged, or has no latencies.
        ModelsError: the source is a campaign whose own search space is missing.
    """
    table, _, device = name.partition("/")
    path = Path(name)
    if (path / "settings.json").exists():
        return [_campaign(path)]
    if table in tables():
        sources = _of_table(read_benchmark(file_of(table)))
        found = [source for source in sources if source.name == name]
        if not device:
            found = _of_first_metric(sources)
        if not found:
            devices = [source.name.partition("/")[2] for source in sources]
            raise UsageError(unknown("device", device, devices, where=f"of source '{table}'"))
        return found
    if path.suffix == ".parquet":
        return _of_first_metric(_of_table(read_benchmark(path)))
    choices = "give one of esm-host sources list, a campaign's folder or a Parquet file"
    raise UsageError(unknown("source", name, tables(), choices=choices))


def everything(runs: Path, space: SearchSpace | None = None) -> list[Source]:
    """Load all readable latencies of any space: imported tables, and campaigns of a folder.

    Args:
        runs: Folder of the campaigns.
        space: User's own space whose campaigns are included. Campaigns of other own spaces are
            left out, because loading them runs the file of the space.
    """
    found: list[Source] = []
    # Unfinished or damaged sources are skipped here and reported when they are named.
    for name in tables():
        with suppress(EsmError):
            sources = _of_table(read_benchmark(file_of(name)))
            found += [source for source in sources if source.metric == LATENCY]
    for path in campaigns(runs):
        with suppress(EsmError, ModelsError):
            if _may_be(path, space):
                found.append(_campaign(path))
    return found


def fitting(
    space: SearchSpace, names: Sequence[str], runs: Path, but: Path | None = None
) -> list[Source]:
    """Return the sources for a search space.

    Named sources only need to be of the space. Unnamed sources also need the same resolution,
    width, batch and dtype, and enough architectures.

    Args:
        space: The search space.
        names: Names of the sources; empty takes imported tables and campaigns of the folder.
        runs: Folder of the campaigns.
        but: Folder of a campaign to leave out; None for none.

    Raises:
        UsageError: a named source does not exist, or is of another space.
        DatasetError: a named source is damaged.
        ModelsError: a named source is a campaign whose own search space is missing.
    """
    if names:
        named = _named(names)
        for source in named:
            _check_fit(source, space, _other_contexts(source.space, space))
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
    """Return comparable sources, and the indices of the targets among them.

    Args:
        names: Names of the sources; empty takes imported tables and campaigns of the folder,
            without those of other spaces and small ones.
        runs: Folder of the campaigns.
        space: Name of the space, or path/to/file.py:Class. None uses the space of the targets, or
            the one that all sources share.
        targets: Names of sources, or of devices that only one of the sources has.

    Raises:
        UsageError: a source does not exist, or the sources are of several spaces.
        DatasetError: a named source is damaged.
        ModelsError: the space does not exist.
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
            "more: add some with esm-host import FILE"
        )
    if chosen and not names:
        found = [source for source in found if _alike(source, chosen[0].space)]
    spaces = list(dict.fromkeys(describe(source.space) for source in found))
    if not names and len(spaces) > 1:
        raise UsageError(
            f"there are sources of {'; of '.join(spaces)}: choose with {argument('space')}, "
            "or name the sources"
        )
    for source in (*found, *chosen):
        _check_fit(source, (chosen or found)[0].space)
        if wanted is not None and source.space.name != wanted.name:
            raise UsageError(f"source '{source.name}' is of {describe(source.space)}, not {space}")
    return found, [found.index(target) for target in chosen]


def _named(names: Sequence[str]) -> list[Source]:
    return list({source.name: source for name in names for source in load(name)}.values())


def _find(name: str, sources: Sequence[Source]) -> Source:
    """Return the source of a name, from the given sources or from all."""
    short = [source for source in sources if source.name.partition("/")[2] == name]
    found = [source for source in sources if source.name == name] or short or load(name)
    if len(found) > 1:
        raise UsageError(
            f"'{name}' matches {len(found)} devices: give one of "
            f"{', '.join(source.name for source in found)}"
        )
    return found[0]


def _alike(source: Source, space: SearchSpace) -> bool:
    """Return whether a source has the same resolution, width, batch and dtype."""
    return source.fits(space) and source.space.settings() == space.settings()


def _check_fit(source: Source, space: SearchSpace, cure: str = "") -> None:
    if not source.fits(space):
        name = describe if source.space.name == space.name else attrgetter("name")
        both = f"{name(source.space)}, not of {name(space)}"
        raise UsageError(f"source '{source.name}' is of {both}: {cure}omit it")


def _other_contexts(source: SearchSpace, space: SearchSpace) -> str:
    """Return how a campaign gets the contexts of a source; empty if it has them."""
    if source.name != space.name:
        return ""
    lacking = [
        f"{argument('contexts')} {name}={','.join(map(str, values))}"
        for name, values in source.contexts.items()
        if name not in space.contexts
    ]
    more = [f"{argument('contexts')} {name}" for name in space.contexts.keys() - source.contexts]
    ways = [*(f"give {each}" for each in lacking), *(f"leave out {each}" for each in sorted(more))]
    return f"{' and '.join(ways)}, or " if ways else ""


def describe(space: SearchSpace) -> str:
    """Return a space's name, with its settings if they are not the defaults."""
    settings: dict[str, Any] = space.settings()
    own = type(space)().settings()
    resolution = settings["resolution"]
    return _description(
        space.name,
        None if resolution == own["resolution"] else resolution,
        settings["width_mult"],
        settings["batch"],
        space.dtype,
        settings.get("contexts", {}),
    )


def describe_settings(settings: SpaceSettings) -> str:
    """Return the description of a campaign's search space without loading it."""
    own = (settings.resolution, settings.width_mult, settings.batch, settings.dtype)
    return _description(settings.space, *own, settings.contexts)


def _description(
    name: str,
    resolution: int | None,
    width_mult: float,
    batch: int,
    dtype: str,
    contexts: Mapping[str, Sequence[int]],
) -> str:
    return (
        name
        + (f", {resolution} px" if resolution is not None and "resolution" not in contexts else "")
        + (f", width x{width_mult:g}" if width_mult != 1 else "")
        + (f", batch {batch}" if batch != 1 and "batch" not in contexts else "")
        + (f", {dtype}" if dtype != FLOAT32 else "")
        + "".join(f", {each} {'/'.join(map(str, values))}" for each, values in contexts.items())
    )


def _of_table(table: LatencyTable) -> list[Source]:
    """Return the devices of a table, with their latencies first, then those with energies."""
    sources = []
    for metric, _, name, _, values in _columns(table):
        there = np.isfinite(values)
        if there.any():
            # Complete devices share one array of codes, so their architectures are encoded once.
            codes = table.codes if there.all() else table.codes[there]
            sources.append(Source(name, table.space, codes, values[there], metric))
    if not sources:
        raise DatasetError(f"source '{table.name}' has no latencies: omit it")
    return sources


def _of_first_metric(sources: Sequence[Source]) -> list[Source]:
    return [source for source in sources if source.metric == sources[0].metric]


def _columns(table: LatencyTable) -> Iterator[tuple[str, str, str, str, NDArray[np.float64]]]:
    """Yield metric, unit, name of the source, device and values of each column of a table."""
    for device, latency_ms in table.latency_ms.items():
        yield LATENCY, "ms", f"{table.name}/{device}", device, latency_ms
    for device, energy_mj in table.energy_mj.items():
        yield ENERGY, "mJ", f"{table.name}/{device}:{ENERGY}", device, energy_mj


def _campaign(path: Path) -> Source:
    run = load_run(path)
    measured = _measured(run)
    if not len(measured):
        raise DatasetError(f"{path} has no measurements to learn from yet: omit it")
    return Source(
        str(path), run.space, run.space.encode(measured.architectures), measured.latency_ms
    )


def _measured(run: Run) -> Dataset:
    return run.of("latency").dataset().only(run.settings.trusted_verdicts)


def _may_be(path: Path, space: SearchSpace | None) -> bool:
    """Return whether a campaign may be of a space.

    Loading a user's own space runs its file, so the names must agree first.
    """
    name = RunFolder(path).read_settings().space
    if space is None or name in SPACES:
        return name in SPACES and (space is None or name == space.name)
    return name.rpartition(":")[2] == type(space).__name__
