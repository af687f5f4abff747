"""The command ``esm-host``: lists the commands, and loads the one that is asked for."""

from __future__ import annotations

from importlib import import_module
from keyword import iskeyword
from typing import Annotated, Any

import typer

from esm_protos.commands import Command, Commands

# Name, which is also its module's and its function's; section of the help; one line of help.
COMMANDS = (
    ("time", "Measure", "Time ONNX models on devices."),
    (
        "compare",
        "Measure",
        "Find models that became slower between timings, for continuous integration.",
    ),
    (
        "profile",
        "Learn",
        "Train a latency predictor for a device from as few measurements as possible.",
    ),
    (
        "transfer",
        "Learn",
        "Train a latency predictor from a few measurements and latencies of other devices.",
    ),
    ("predict", "Learn", "Predict latencies of given or sampled architectures."),
    ("search", "Learn", "Find the best architectures within limits, and measure them."),
    (
        "export",
        "Learn",
        "Write chosen architectures as networks: ONNX, torch modules to train, JSON.",
    ),
    ("lookup", "Learn", "Time every part of a search space on a device, for a lookup table."),
    (
        "study",
        "Learn",
        "Compare predictors, encodings and training sizes on public latencies or your campaigns.",
    ),
    ("selection", "Learn", "Find what selecting architectures by predicted latency costs."),
    ("import", "Sources", "Keep latencies that others measured, to learn other devices from."),
    ("sources", "Sources", "Look after what is known of other devices, and compare them."),
    ("report", "Look", "Write a report that opens in any browser, without a network."),
    ("campaigns", "Look", "Look after the campaigns that a team shares."),
    ("devices", "Devices", "Add, inspect and group devices."),
)


class _Lazy(Commands):
    """Knows its commands by :data:`COMMANDS` until one is needed."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, section, text in COMMANDS:
            self.add_command(Command(name, help=text, rich_help_panel=section))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        listed = super().get_command(ctx, cmd_name)
        return listed and load(cmd_name)


def load(name: str) -> Any:
    """A command as typer runs it."""
    word = f"{name}_" if iskeyword(name) else name
    found = getattr(import_module(f"esm_host.cli.{word}"), word)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(rich_markup_mode=None, add_completion=False)
        alone.command(name, cls=Command)(found)
        return typer.main.get_command(alone)
    group = typer.main.get_command(found)
    group.name = name
    return group


app = typer.Typer(
    name="esm-host",
    cls=_Lazy,
    help="Learns how fast neural networks run on a device, by measuring as few as possible.",
    epilog="Each command has its own --help, with examples: esm-host time --help",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"esm-host {version('esm-profiler')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from, before its one line.")
    ] = False,
) -> None:
    if debug:
        from esm_host.cli import errors

        errors.debug()
