"""The program ``esm-host``: a list of commands, each loaded when it is run."""

from __future__ import annotations

from importlib import import_module
from keyword import iskeyword
from typing import Annotated, Any

import typer

from esm_protos.commands import Command, Commands

# Name (also of the module and the function), section of the help, one line of help.
COMMANDS = (
    ("time", "Measure", "Time ONNX models on devices."),
    (
        "compare",
        "Measure",
        "Find models that became slower between two timings, for continuous integration.",
    ),
    (
        "profile",
        "Learn",
        "Train a predictor of latency, energy or memory from as few measurements as possible.",
    ),
    (
        "transfer",
        "Learn",
        "Train a latency predictor from a few measurements and latencies of other devices.",
    ),
    (
        "predict",
        "Learn",
        "Predict latencies, or other metrics, of given or sampled architectures.",
    ),
    ("search", "Learn", "Find the best architectures within limits, and measure them."),
    (
        "export",
        "Learn",
        "Export architectures as networks: ONNX files, trainable torch modules, JSON.",
    ),
    ("lookup", "Learn", "Time every part of a search space on a device, for a lookup table."),
    (
        "study",
        "Learn",
        "Compare predictors, encodings and training sizes on public latencies or your campaigns.",
    ),
    (
        "selection",
        "Learn",
        "Measure the accuracy lost when architectures are selected by predicted latency.",
    ),
    ("import", "Sources", "Import published latencies and energies, to learn other devices from."),
    ("sources", "Sources", "Manage and compare the data of other devices."),
    ("report", "Look", "Write an HTML report that opens in any browser, offline."),
    ("campaigns", "Look", "Manage the campaigns that a team shares."),
    ("devices", "Devices", "Add, inspect and group devices."),
)


class _Lazy(Commands):
    """Group of commands that lists :data:`COMMANDS` and imports a command when it is run."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, section, text in COMMANDS:
            self.add_command(Command(name, help=text, rich_help_panel=section))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        listed = super().get_command(ctx, cmd_name)
        return listed and load(cmd_name)


def load(name: str) -> Any:
    """Return a command as typer runs it."""
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
    help="Learn how fast neural networks run on a device, by measuring as few as possible.",
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
        bool, typer.Option("--debug", help="Print the traceback of an error before its message.")
    ] = False,
) -> None:
    if debug:
        from esm_host.cli import errors

        errors.debug()
