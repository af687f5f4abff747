"""Reader of the files of architectures that commands take."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm_host.errors import UsageError

if TYPE_CHECKING:
    from esm_models.architecture import Architecture
    from esm_models.space import SearchSpace


def read_entries(path: Path) -> list[Any]:
    """Return the entries of a file, one for each architecture.

    The file is JSON, or has a short form on every line. In JSON an entry is the JSON of an
    architecture, its short form, or an object with either of them as ``architecture``, as
    ``predict --json`` writes it. A single architecture needs no list. - is stdin.

    Raises:
        UsageError: the file cannot be read, is invalid JSON, or holds no architecture.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text: give JSON, or a short form on every line") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        if path.suffix == ".json" or text.lstrip().startswith(("{", "[")):
            raise UsageError(f"{path} is not JSON") from error
        data = [line for line in text.splitlines() if line.strip()]
    data = data.get("results", data) if isinstance(data, dict) else data
    entries = data if isinstance(data, list) else [data]
    if not entries:
        raise UsageError(f"{path} holds no architecture")
    return entries


def read_architectures(path: Path, space: SearchSpace) -> list[Architecture]:
    """Return the architectures of a file.

    Raises:
        UsageError: as for :func:`read_entries`.
        InvalidArchitectureError: an entry is not an architecture of the space.
    """
    return [
        space.read(entry.get("architecture", entry) if isinstance(entry, dict) else entry)
        for entry in read_entries(path)
    ]
