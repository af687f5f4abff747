"""Folder of the imported tables, and their names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from esm_host.errors import UsageError
from esm_protos.user_folders import user_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def folder() -> Path:
    """Return ``$ESM_SOURCES``, or ``$XDG_DATA_HOME/esm/sources``.

    Raises:
        OSError: the user has no home folder.
        UsageError: ESM_SOURCES is no folder.
    """
    if given := os.environ.get("ESM_SOURCES"):
        if Path(given).exists() and not Path(given).is_dir():
            raise UsageError(f"ESM_SOURCES {given} is no folder: give one")
        return Path(given)
    return user_folder("XDG_DATA_HOME", ".local/share") / "esm" / "sources"


def tables() -> list[str]:
    """Return the names of the imported tables."""
    return sorted(path.stem for path in folder().glob("*.parquet") if _NAME.fullmatch(path.stem))


def file_of(name: str) -> Path:
    """Return the path of a table, which need not exist.

    Raises:
        UsageError: the name is invalid.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a source's name: give letters, digits, '.', '_' and '-'"
        )
    return folder() / f"{name}.parquet"
