"""``esm-host devices``: what there is to know of the devices themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import NoWait
from esm_host.cli.output import check_output

devices = typer.Typer(help="Look after devices.", no_args_is_help=True)


@devices.callback()
def _group() -> None:
    """Keeps the sub-command's name while it is the only one."""


@devices.command()
@one_line_errors
def doctor(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="'local', host:port, or a name from devices.toml.")
    ],
    seconds: Annotated[
        float, typer.Option(help="How long built-in models are timed.", min=0.1, max=600)
    ] = 10.0,
    no_wait: NoWait = False,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Find what would spoil measurements on a device. Example: esm-host devices doctor pi4"""
    from esm_host.transport.devices import connect
    from esm_protos.diagnosis import NOT_FIT, lines, summary, to_json

    check_output(output)
    with connect(name) as profiler:
        profiler.device_info()  # first, so that nobody waits for a device that is not there
        profiler.reserve("doctor", not no_wait)
        typer.echo(f"timing built-in models on {name} for {seconds:g} s", err=True)
        diagnosis = profiler.diagnose(seconds)
    if output is None:
        print("\n".join(lines(diagnosis)))
    else:
        text = json.dumps(to_json(diagnosis, name), indent=2)
        if str(output) == "-":
            print(text)
        else:
            output.write_text(text + "\n")
            typer.echo(f"{name} is {summary(diagnosis)}; all in {output}", err=True)
    if not diagnosis.fit:
        raise typer.Exit(NOT_FIT)
