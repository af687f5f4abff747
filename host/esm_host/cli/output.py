"""``--json``: looked at before the measuring begins, written when it is over. And tables."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import typer

from esm_host.cli.options import printable
from esm_host.errors import UsageError


def check_output(path: Path | None, flag: str = "--json") -> None:
    """Raises UsageError unless the flag can write there; nothing and - always can."""
    if path is None or str(path) == "-":
        return
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder: give a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{flag} {path} cannot be written: give another file")


def write_output(path: Path, text: str, said: str = "") -> None:
    """Writes to the file and says so on stderr, or to stdout where ``path`` is -."""
    if str(path) == "-":
        print(text)
        return
    path.write_text(text + "\n", encoding="utf-8")
    if said:
        typer.echo(said, err=True)


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = ()
) -> None:
    """Columns as wide as their longest cell. Cells may be others' words.

    Args:
        rows: those that end early widen the first column only.
        right: numbers of the columns that are set to the right.
    """
    table = [tuple(map(printable, cells)) for cells in (headings, *rows)]
    full = [cells for cells in table if len(cells) == len(headings)]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    widths[0] = max(len(cells[0]) for cells in table)
    for cells in table:
        padded = (
            f"{cell:{'>' if number in right else '<'}{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths, strict=False))
        )
        print("  ".join(padded).rstrip())
