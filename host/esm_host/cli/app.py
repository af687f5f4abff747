"""The command ``esm-host``: wires the commands, one file each. Heavy imports stay in them."""

from __future__ import annotations

from importlib.metadata import version as distribution_version
from typing import Annotated

import typer

from esm_host.cli.devices import devices
from esm_host.cli.predict import predict
from esm_host.cli.profile import profile
from esm_host.cli.time import time

app = typer.Typer(
    name="esm-host",
    help="Learns how fast neural networks run on a device, by measuring as few as possible.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        typer.echo(f"esm-host {distribution_version('esm-profiler')}")
        raise typer.Exit


app.command()(profile)
app.command()(predict)
app.command()(time)
app.add_typer(devices, name="devices")
