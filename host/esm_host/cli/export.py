"""``esm-host export``: architectures as networks for other tools."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.cli.architectures import read_entries
from esm_host.cli.errors import as_options, one_line_errors
from esm_host.cli.option_groups import grouped
from esm_host.cli.options import InContext, Resolution, dtype_names, read_context
from esm_host.cli.table import print_table
from esm_host.errors import UsageError
from esm_protos.nearest import unknown

if TYPE_CHECKING:
    from esm_models.space import SearchSpace

_SPACE = "Search space"


@dataclass(frozen=True)
class NetworkOptions:
    """Options of the networks of a search space."""

    resolution: Resolution = None
    width_mult: Annotated[
        float | None,
        typer.Option(
            help="Multiplier of channel counts.", show_default="1", rich_help_panel=_SPACE
        ),
    ] = None
    batch: Annotated[
        int | None,
        typer.Option(
            help="Batch size of the ONNX files.", show_default="1", rich_help_panel=_SPACE
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Arithmetic of the networks: float32 or int8.",
            show_default="float32",
            autocompletion=dtype_names,
            rich_help_panel=_SPACE,
        ),
    ] = None


@one_line_errors
@grouped
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DIR|SPACE",
            help="Search space of the architectures: its name, path/to/file.py:Class, or the "
            "folder of a campaign.",
        ),
    ],
    architectures: Annotated[
        Path,
        typer.Option(
            "--architectures",
            "-a",
            metavar="FILE",
            help="File with the short form of an architecture on every line, or JSON of esm-host "
            "predict --json; - is stdin.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="New folder for the networks.")
    ],
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME,NAME,...",
            help="Formats to write: onnx, torch, json.",
            show_default="all; for int8 onnx,json",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the weights.")] = 0,
    context: InContext = None,
    *,
    networks: NetworkOptions,
) -> None:
    """Export architectures as networks: ONNX files, trainable torch modules, JSON.

    Each architecture gets a folder with model.onnx, model.py (a self-contained torch module) and
    weights.pt; architectures.json lists them. Networks of a campaign have the size that it
    measured. Networks of a search space have the size that the options below give.

    Example: esm-host export runs/pi4 --architectures chosen.json --output chosen
    """
    from esm_host.api import export as write
    from esm_models.errors import InvalidArchitectureError

    given = {name: value for name, value in vars(networks).items() if value is not None}
    space = _space(source, given, read_context(context))
    names = None if formats is None else [name.strip() for name in formats.split(",") if name]
    entries = read_entries(architectures)
    try:
        exported = write(space, entries, output, formats=names, seed=seed)
    except InvalidArchitectureError as error:
        if not error.foreign or Path(source).is_dir():
            raise
        raise UsageError(f"{error}, or give {as_options(error.foreign)}") from error
    print_table(
        ("folder", "blocks", "parameters"),
        [(str(e.folder), str(e.architecture.depth), f"{e.parameters:,}") for e in exported],
        right=(1, 2),
    )
    hint = ""
    if names is None or "onnx" in names:
        hint = f": esm-host time {shlex.quote(str(output))}/*/model.onnx times the networks"
    count = "1 architecture is" if len(exported) == 1 else f"{len(exported)} architectures are"
    typer.echo(f"{count} in {output}{hint}", err=True)


def _space(
    source: str, settings: dict[str, int | float | str], contexts: dict[str, int]
) -> SearchSpace:
    """Return the search space of a campaign, or the space of that name, in these contexts."""
    from esm_host.campaign.run import load_run
    from esm_models.spaces import FAMILY, load_space

    names = FAMILY.names()
    if source in names or ".py" in source:
        return load_space(source, contexts=contexts, **settings).at(**contexts)
    if not Path(source).is_dir():
        choices = f"choose {', '.join(names)}, path/to/file.py:Class, or the folder of a campaign"
        raise UsageError(unknown("search space", source, names, choices=choices))
    if settings:
        flag = f"--{next(iter(settings)).replace('_', '-')}"
        raise UsageError(f"{flag}: the campaign in {source} sets it, leave it out")
    return load_run(source).space.at(**contexts)
