"""``esm-host report``: one HTML file about a campaign, or about timed models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors


@one_line_errors
def report(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder of a campaign, or JSON of esm-host time.", metavar="DIR|TIMING.json"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path(
        "report.html"
    ),
) -> None:
    """Write a report that opens in any browser, without a network.

    Example: esm-host report runs/pi4 --output pi4.html
    """
    from importlib.metadata import version

    from esm_host.errors import UsageError
    from esm_host.report.page import render

    if output.is_dir() or not output.parent.is_dir():
        raise UsageError(f"--output {output}: give a file in a folder that exists")
    if source.is_dir():
        from esm_host.report.campaign import campaign_page
        from esm_host.run import load_run

        page = campaign_page(load_run(source))
    elif source.exists():
        from esm_host.report.timing import timing_page
        from esm_host.timing_file import load_timing

        page = timing_page(load_timing(source))
    else:
        raise UsageError(
            f"there is no {source}: give the folder of a campaign (esm-host profile --run), or "
            "a file of esm-host time --json"
        )
    output.write_text(render(page, version("esm-profiler")), encoding="utf-8")
    typer.echo(f"report in {output}; open it in a browser")
