"""``esm-host import``: latencies that others measured, kept to learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import Json
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import print_table
from esm_host.errors import UsageError
from esm_host.sources.formats import Format, format_of
from esm_protos.text import printable

if TYPE_CHECKING:
    from esm_host.dataset.benchmarks import LatencyTable

SCHEMA_VERSION = 1

_COLUMNS = "Of --format columns"


@one_line_errors
def import_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|DIR",
            help="CSV, TSV or Parquet; a folder of HELP's data; the pickle of HW-NAS-Bench.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it.", show_default="as the file")
    ] = None,
    format: Annotated[
        Format | None, typer.Option(help="Of the file.", show_default="as the file tells")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a source of the same name.")
    ] = False,
    architecture: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="With architectures: JSON, cells of NAS-Bench-201, or 22 block numbers of FBNet.",
            show_default="architecture or arch; depth, kernel, expand and resolution of ofa",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    latency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=DEVICE",
            help="With the latencies of a device; may be repeated.",
            show_default="all lat_ms_DEVICE",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            help="Of the latencies: s, ms, us or ns.", show_default="ms", rich_help_panel=_COLUMNS
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            help="Input side of the networks, pixels.",
            show_default="the search space's",
            rich_help_panel=_COLUMNS,
        ),
    ] = None,
    width_mult: Annotated[
        float | None,
        typer.Option(
            help="Multiplier of their channel counts.", show_default="1", rich_help_panel=_COLUMNS
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Their batch size.", show_default="1", rich_help_panel=_COLUMNS),
    ] = None,
    output: Json = None,
) -> None:
    """Keep latencies that others measured, to learn other devices from.

    Tables are kept in $ESM_SOURCES, or else $XDG_DATA_HOME/esm/sources. A campaign need not be
    imported: its folder is a source as it is.

    Example: esm-host import orin.csv --architecture cell --latency mean_us=orin --unit us
    """
    check_output(output, inputs=[path])
    settings = {"resolution": resolution, "width_mult": width_mult, "batch": batch}
    settings = {setting: value for setting, value in settings.items() if value is not None}
    options: dict[str, Any] = {"architecture": architecture, "latency": latency, "unit": unit}
    found = format or format_of(path)
    if found is not Format.columns:
        for flag in (f for f, value in {**options, **settings}.items() if value is not None):
            raise UsageError(f"--{flag.replace('_', '-')} is of --format columns: leave it out")
    tables = _read(path, found, name, options, settings)

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
        write_output(output, json.dumps(data, indent=2), f"what was imported is in {output}")
    typer.echo(
        f"kept in {folder}; esm-host sources correlation --space {tables[0].space.name} compares "
        "the devices",
        err=True,
    )


def _read(
    path: Path,
    found: Format,
    name: str | None,
    options: dict[str, Any],
    settings: dict[str, Any],
) -> Sequence[LatencyTable]:
    if found is Format.columns:
        from esm_host.sources.columns import read_columns

        latencies = _latencies(options["latency"] or ())
        unit = options["unit"] or "ms"
        return [
            read_columns(path, name, options["architecture"], latencies, unit, settings or None)
        ]
    from esm_host.sources.published import read_help, read_hw_nas_bench

    if found is Format.hw_nas_bench:
        return read_hw_nas_bench(path, name)
    return [read_help(path, lambda text: typer.echo(f"warning: {text}", err=True), name)]


def _latencies(texts: Sequence[str]) -> dict[str, str]:
    """Column -> device."""
    chosen: dict[str, str] = {}
    for text in texts:
        column, _, device = text.rpartition("=")
        if not column or not device:
            raise UsageError(f"--latency '{text}': give COLUMN=DEVICE, such as mean_us=orin")
        if column in chosen or device in chosen.values():
            raise UsageError(f"--latency '{text}': a column and a device may be given once each")
        chosen[column] = device
    return chosen


def _print(table: LatencyTable) -> None:
    import numpy as np

    from esm_host.report.page import significant
    from esm_host.sources.registry import describe, entries_of

    tasks = f", accuracies of {', '.join(table.accuracy_percent)}" if table.accuracy_percent else ""
    text = f"{table.name}: {len(table)} architectures of {describe(table.space)}{tasks}"
    print(printable(text))
    print_table(
        ("device", "latencies", "missing", "median_ms"),
        [
            (
                entry.device,
                str(entry.architectures),
                str(entry.missing),
                significant(float(np.nanmedian(table.latency_ms[entry.device])))
                if entry.architectures
                else "-",
            )
            for entry in entries_of(table)
        ],
        right=range(1, 4),
    )
