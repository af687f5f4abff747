"""``esm-host import``: import of published latencies and energies as sources."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import grouped
from esm_host.cli.options import Json
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import print_table
from esm_host.errors import UsageError
from esm_host.sources.formats import Format, format_of
from esm_protos.text import counted, printable

if TYPE_CHECKING:
    from esm_host.dataset.benchmarks import LatencyTable

SCHEMA_VERSION = 1

_COLUMNS = "For --format columns"


@dataclass(frozen=True)
class ColumnOptions:
    """Options of a table with columns."""

    architecture: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of architectures: JSON, NAS-Bench-201 cells, or 22 FBNet block numbers.",
            show_default="architecture or arch; for ofa depth, kernel, expand and resolution",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    latency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=DEVICE",
            help="Column of a device's latencies; may be repeated.",
            show_default="all lat_ms_DEVICE",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    unit: Annotated[
        str | None,
        typer.Option(
            help="Unit of the latencies: s, ms, us or ns.",
            show_default="ms",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    energy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=DEVICE",
            help="Column of a device's energies per inference; may be repeated.",
            show_default="all energy_mj_DEVICE",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    energy_unit: Annotated[
        str | None,
        typer.Option(
            help="Unit of the energies: J, mJ, uJ or nJ.",
            show_default="mJ",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    resolution: Annotated[
        int | None,
        typer.Option(
            help="Input resolution of the networks, pixels.",
            show_default="the search space's",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    width_mult: Annotated[
        float | None,
        typer.Option(
            help="Multiplier of the networks' channel counts.",
            show_default="1",
            rich_help_panel=_COLUMNS,
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(
            help="Batch size of the networks.", show_default="1", rich_help_panel=_COLUMNS
        ),
    ] = None


@one_line_errors
@grouped
def import_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR",
            help="CSV, TSV or Parquet; a folder of HELP's data; the pickle of HW-NAS-Bench.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the source.", show_default="the file's name")
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="Format of the file.", show_default="detected")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a source of the same name.")
    ] = False,
    *,
    columns: ColumnOptions,
    output: Json = None,
) -> None:
    """Import published latencies and energies, to learn other devices from.

    Tables are saved in $ESM_SOURCES, or else in $XDG_DATA_HOME/esm/sources. Campaigns need no
    import: their folders are sources already.

    Example: esm-host import orin.csv --architecture cell --latency mean_us=orin --unit us
    """
    check_output(output, inputs=[path])
    found = format or format_of(path)
    if found is not Format.columns:
        for flag in (name for name, value in vars(columns).items() if value is not None):
            raise UsageError(
                f"--{flag.replace('_', '-')} is an option of --format columns: leave it out"
            )
    tables = _read(path, found, name, columns)

    from esm_host.sources.registry import entries_of, keep

    folder = keep(tables, replace)[0].parent
    if str(output) != "-":
        for table in tables:
            _print(table)
    if output is not None:
        data = {
            "schema_version": SCHEMA_VERSION,
            "sources": [asdict(entry) for table in tables for entry in entries_of(table)],
        }
        write_output(
            output, json.dumps(data, indent=2), f"list of imported sources written to {output}"
        )
    typer.echo(
        f"saved in {folder}; esm-host sources correlation --space {tables[0].space.name} compares "
        "the devices",
        err=True,
    )


def _read(
    path: Path,
    found: Format,
    name: str | None,
    columns: ColumnOptions,
) -> Sequence[LatencyTable]:
    if found is Format.columns:
        from esm_host.sources.columns import read_columns

        names = ("resolution", "width_mult", "batch")
        settings = {n: value for n in names if (value := getattr(columns, n)) is not None}
        return [
            read_columns(
                path,
                name,
                columns.architecture,
                _devices("--latency", columns.latency or ()),
                columns.unit or "ms",
                settings or None,
                _devices("--energy", columns.energy or ()),
                columns.energy_unit or "mJ",
            )
        ]
    from esm_host.sources.published import read_help, read_hw_nas_bench

    if found is Format.hw_nas_bench:
        return read_hw_nas_bench(path, name)
    return [read_help(path, lambda text: typer.echo(f"warning: {text}", err=True), name)]


def _devices(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Return the device of each column that an option names."""
    chosen: dict[str, str] = {}
    for text in texts:
        column, _, device = text.rpartition("=")
        if not column or not device:
            raise UsageError(f"{option} '{text}': give COLUMN=DEVICE, such as mean_us=orin")
        if column in chosen or device in chosen.values():
            raise UsageError(f"{option} '{text}': give each column and each device once")
        chosen[column] = device
    return chosen


def _print(table: LatencyTable) -> None:
    import numpy as np

    from esm_host.report.page import significant
    from esm_host.sources.registry import describe, entries_of
    from esm_host.transfer.source import ENERGY, LATENCY

    tasks = f", accuracies of {', '.join(table.accuracy_percent)}" if table.accuracy_percent else ""
    text = f"{table.name}: {counted(len(table), 'architecture')} of {describe(table.space)}{tasks}"
    print(printable(text))
    known = entries_of(table)
    for metric, values, headings in (
        (LATENCY, table.latency_ms, ("device", "latencies", "missing", "median_ms")),
        (ENERGY, table.energy_mj, ("device", "energies", "missing", "median_mj")),
    ):
        rows = [
            (
                entry.device,
                str(entry.architectures),
                str(entry.missing),
                significant(float(np.nanmedian(values[entry.device])))
                if entry.architectures
                else "-",
            )
            for entry in known
            if entry.metric == metric
        ]
        if rows:
            print_table(headings, rows, right=range(1, 4))
