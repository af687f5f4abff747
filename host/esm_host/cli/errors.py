"""One line on stderr and an exit code for every error that a user can cause."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import typer

from esm_host.arguments import flag
from esm_host.errors import EsmError, UsageError
from esm_models.errors import InvalidArchitectureError, InvalidSpaceError, ModelsError
from esm_protos.commands import with_origins
from esm_protos.text import install, printable

USAGE = 2
INTERRUPTED = 130

_NETWORKS = ("torch", "gpytorch")
"""Modules that only neural predictors need."""

P = ParamSpec("P")
R = TypeVar("R")


def as_options(contexts: Mapping[str, int]) -> str:
    """Return contexts as options of the command line."""
    return " ".join(f"{flag('contexts')} {name}={value}" for name, value in contexts.items())


def _extra(module: str | None) -> str:
    """Return the extra that installs a module."""
    return "host" if module in _NETWORKS else "workstation"


_debug = False


def debug() -> None:
    """Print the tracebacks of errors from now on."""
    global _debug
    _debug = True


def _traced(command: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    try:
        return command(*args, **kwargs)
    except Exception as error:
        if _debug and not isinstance(error, typer.Exit):
            traceback.print_exc()
        raise


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print known errors in one line and exit with their codes; bugs keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return _traced(command, *args, **kwargs)
        except EsmError as error:
            text = error.for_command()
            if error.exit_code == USAGE:
                text = with_origins(text)
            typer.echo(f"error: {printable(text)}", err=True)
            raise typer.Exit(error.exit_code) from None
        except InvalidSpaceError as error:
            typer.echo(f"error: {printable(UsageError.of_space(error).for_command())}", err=True)
            raise typer.Exit(USAGE) from None
        except ModelsError as error:
            text = str(error)
            if isinstance(error, InvalidArchitectureError) and error.lacking:
                text += f", or give {as_options(error.lacking)}"
            typer.echo(f"error: {printable(text)}", err=True)
            raise typer.Exit(USAGE) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            typer.echo(f"error: {printable(where + (error.strerror or str(error)))}", err=True)
            raise typer.Exit(1) from None
        except RuntimeError as error:
            if "home directory" not in str(error):  # raised by pathlib, also within libraries
                raise
            typer.echo("error: this user has no home folder: set HOME", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:
            typer.echo(
                f"error: {error.name} is not installed: {install(_extra(error.name))}", err=True
            )
            raise typer.Exit(1) from None
        except Exception as error:  # only a failure in a user's file becomes one line
            from esm_protos.plugins import failure_in_own_file

            if not (text := failure_in_own_file(error)):
                raise
            typer.echo(f"error: {printable(text)}", err=True)
            raise typer.Exit(1) from None

    return wrapped
