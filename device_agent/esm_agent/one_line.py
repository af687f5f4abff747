"""Errors of commands: one line on standard error, and an exit code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn, ParamSpec

import typer

from esm_agent.errors import AccessError
from esm_protos.commands import with_origins

P = ParamSpec("P")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print access and system errors of a command as one line; bugs keep their traceback."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except AccessError as error:
            fail(2, str(error))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(1, f"{where}{error.strerror or error}")
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None

    return wrapped


def fail(code: int, message: str) -> NoReturn:
    """Print an error and end the command with an exit code."""
    typer.echo(f"error: {with_origins(message)}", err=True)
    raise typer.Exit(code) from None
