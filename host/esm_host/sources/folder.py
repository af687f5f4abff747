"""Where imported tables are kept, and what they are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

from esm_host.errors import UsageError
from esm_protos.user_folders import user_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def folder() -> Path:
    """``$ESM_SOURCES``, or ``$XDG_DATA_HOME/esm/sources``; raises OSError without a home folder."""
    if given := os.environ.get("ESM_SOURCES"):
        return Path(given)
    return user_folder("XDG_DATA_HOME", ".local/share") / "esm" / "sources"


def tables() -> list[str]:
    """Names of the imported tables."""
    return sorted(path.stem for path in folder().glob("*.parquet") if _NAME.fullmatch(path.stem))


def file_of(name: str) -> Path:
    """Where a table of that name is, or would be.

    Raises:
        UsageError: it cannot be a table's name.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a source's name: give letters, digits, '.', '_' and '-'"
        )
    return folder() / f"{name}.parquet"
