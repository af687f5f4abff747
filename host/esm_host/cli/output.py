"""Output files such as ``--json``: checked before the measuring, written after it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from esm_host.arguments import on_command_line
from esm_host.errors import GuessWarning, UsageError


def check_output(
    path: Path | None, flag: str = "--json", inputs: Iterable[Path | None] = ()
) -> None:
    """Check that an output file can be written.

    Args:
        path: Output file; None for none, - for stdout.
        flag: Option that names the file.
        inputs: Other files that the command reads or writes.

    Raises:
        UsageError: the file cannot be written, or is one of the inputs.
    """
    if path is None or str(path) == "-":
        return
    for kept in inputs:
        if kept is not None and str(kept) != "-" and _same(kept, path):
            raise UsageError(
                f"{flag} {path} would overwrite {kept}, which this command uses: give another file"
            )
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder: give a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{flag} {path} cannot be written: give another file")


@contextmanager
def guesses_on_stderr() -> Iterator[None]:
    """Print each :class:`GuessWarning` as a line, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", GuessWarning)
        others, shown = warnings.showwarning, set[str]()

        def show(message: Warning | str, *about: Any, **more: Any) -> None:
            if not isinstance(message, GuessWarning):
                others(message, *about, **more)
            elif message.marked not in shown:
                shown.add(message.marked)
                typer.echo(f"warning: {on_command_line(message.marked)}", err=True)

        warnings.showwarning = show
        yield


def _same(kept: Path, path: Path) -> bool:
    """Return whether two paths are one file. Devices such as /dev/null are not files."""
    if path.exists() and not path.is_file():
        return False
    if path.resolve() == kept.resolve():
        return True
    return path.exists() and kept.exists() and path.samefile(kept)


def write_output(path: Path, text: str, said: str = "") -> None:
    """Write a text to a file and print ``said`` on stderr, or to stdout if ``path`` is -."""
    with results_first([(path, text, said)]):
        pass


@contextmanager
def results_first(outputs: Sequence[tuple[Path, str, str]]) -> Iterator[None]:
    """Write files, run the body, which prints results, then print the files' paths on stderr.

    A failed write is raised after the body, so that results are printed in any case.

    Args:
        outputs: Path (- for stdout), text, and message of each file.

    Raises:
        OSError: a file cannot be written.
    """
    failed: OSError | None = None
    written = []
    for path, text, said in outputs:
        if str(path) == "-":
            print(text)
            continue
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            failed = failed or error
            failed.filename = failed.filename or str(path)
        else:
            written.append(said)
    yield
    for said in filter(None, written):
        typer.echo(said, err=True)
    if failed is not None:
        raise failed
