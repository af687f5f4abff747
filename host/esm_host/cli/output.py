"""``--json``: looked at before the measuring begins, written when it is over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from esm_host.errors import UsageError


def check_output(
    path: Path | None, flag: str = "--json", inputs: Iterable[Path | None] = ()
) -> None:
    """Raise UsageError unless the flag can write there; nothing and - always can.

    Args:
        inputs: files that the command reads, and other files that it writes.
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


def _same(kept: Path, path: Path) -> bool:
    """Whether both are one file, there or not yet; a device such as /dev/null is none."""
    if path.exists() and not path.is_file():
        return False
    if path.resolve() == kept.resolve():
        return True
    return path.exists() and kept.exists() and path.samefile(kept)


def write_output(path: Path, text: str, said: str = "") -> None:
    """Write to the file and say so on stderr, or to stdout where ``path`` is -."""
    with results_first([(path, text, said)]):
        pass


@contextmanager
def results_first(outputs: Sequence[tuple[Path, str, str]]) -> Iterator[None]:
    """Write files; then the body prints; then stderr says where the files are.

    What cannot be written is raised after the body: results are printed at least.

    Args:
        outputs: path (- is stdout), text, and what to say of the file.

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
