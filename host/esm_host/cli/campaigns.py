"""``esm-host campaigns``: campaigns in a store that a team shares."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import Json, SharedStore
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import Verdict, print_table
from esm_host.errors import UsageError
from esm_protos.commands import Commands
from esm_protos.text import counted, printable

if TYPE_CHECKING:
    from esm_host.team import Campaign

SCHEMA_VERSION = 1

campaigns = typer.Typer(
    cls=Commands,
    help="Manage the campaigns that a team shares.",
    epilog="Start with: esm-host campaigns list --store postgresql://USER@HOST/DATABASE",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@campaigns.command("list")
@one_line_errors
def list_campaigns(store: SharedStore = "", output: Json = None) -> None:
    """List the campaigns in a shared store.

    Example: esm-host campaigns list --store postgresql://ada@db.lab/esm
    """
    from esm_host import team

    check_output(output)
    found, problems = team.campaigns(_given(store))
    if output is not None:
        data = {"schema_version": SCHEMA_VERSION, "campaigns": [asdict(each) for each in found]}
        write_output(
            output,
            json.dumps(data, indent=2),
            f"{counted(len(found), 'campaign')} written to {output}",
        )
    if str(output) != "-" and found:
        print_table(
            ("campaign", "device", "space", "models", "last measured (UTC)", "state"),
            [
                (
                    each.name,
                    _device(each),
                    each.space,
                    str(each.measured_models),
                    (each.last_measured_at or "-").removesuffix("+00:00"),
                    Verdict(_state(each)),
                )
                for each in found
            ],
            right=(3,),
        )
    for problem in problems:
        typer.echo(printable(f"warning: {problem}"), err=True)
    if not found:
        typer.echo("no campaigns in the store: esm-host profile --store URL begins one", err=True)


@campaigns.command()
@one_line_errors
def attach(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the campaign.")],
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder to create.", show_default="runs/NAME"),
    ] = None,
    store: SharedStore = "",
) -> None:
    """Fetch a teammate's campaign into a folder, to predict, report or continue it here.

    An existing folder gets the latest predictor and result.

    Example: esm-host campaigns attach pi4-resnet --store postgresql://ada@db.lab/esm
    """
    import shlex

    from esm_host import team

    path = folder or Path("runs") / name
    team.attach(name, path, _given(store))
    shown = shlex.quote(str(path))
    typer.echo(f"campaign {name} is in {path}; next: esm-host report {shown}")


def _given(store: str) -> str:
    if not store:
        raise UsageError("no store: give --store postgresql://USER@HOST/DATABASE, or set ESM_STORE")
    return store


def _device(campaign: Campaign) -> str:
    """Return the device, with its hostname where that differs."""
    device, hostname = campaign.device, campaign.hostname
    return device if hostname in (None, device) else f"{device} ({hostname})"


def _state(campaign: Campaign) -> str:
    if campaign.running:
        return "running"
    if not campaign.finished:
        return "unfinished"
    if campaign.converged is None:
        return "done"
    return "converged" if campaign.converged else "not converged"
