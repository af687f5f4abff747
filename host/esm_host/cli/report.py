"""``esm-host report``: an HTML report of a campaign, a search, a study or a timing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.output import check_output
from esm_host.errors import UsageError


@one_line_errors
def report(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a campaign, a search or a study; JSON of esm-host time or compare.",
            metavar="DIR|FILE.json",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML file to write.", show_default="report.html"),
    ] = None,
) -> None:
    """Write an HTML report that opens in any browser, offline.

    Example: esm-host report runs/pi4 --output pi4.html
    """
    from esm_host.report.page import check_source, mark_of, marked

    check_source(source)
    from esm_host.api import write_report

    if output is None:
        output = Path("report.html")
        if output.exists() and marked(output) != mark_of(source):
            raise UsageError(f"{output} exists and is not a report of {source}: give --output FILE")
    # The folder may hold an older report, which may be overwritten.
    kept = [path for path in source.rglob("*") if path.suffix != ".html"]
    check_output(output, "--output", [source, *kept])
    write_report(source, output)
    typer.echo(f"report in {output}; open it in a browser")
