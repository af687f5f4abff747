"""Files of architectures, as commands read them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm_host.errors import UsageError

if TYPE_CHECKING:
    from esm_models.architecture import Architecture


def read_entries(path: Path) -> list[Any]:
    """What a file says of each architecture: its JSON, or an object with that and more, as
    ``predict --json`` writes them. One alone needs no list; - is stdin.

    Raises:
        UsageError: there is no such file, it is not JSON, or an empty list.
    """
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
        data = json.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON") from error
    data = data.get("results", data) if isinstance(data, dict) else data
    entries = data if isinstance(data, list) else [data]
    if not entries:
        raise UsageError(f"{path} holds no architecture")
    return entries


def read_architectures(path: Path) -> list[Architecture]:
    """The architectures alone.

    Raises:
        UsageError: as :func:`read_entries`.
        InvalidArchitectureError: one of them is no architecture.
    """
    from esm_models.architecture import Architecture

    return [
        Architecture.from_json(
            entry.get("architecture", entry) if isinstance(entry, dict) else entry
        )
        for entry in read_entries(path)
    ]
