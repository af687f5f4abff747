"""File of a lookup table: the latency of each part of a search space (docs/lookup.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.encoding.base import Encoder
from esm_host.errors import DatasetError, MismatchError, UsageError
from esm_models.space import SearchSpace
from esm_protos.messages import DeviceInfo, MeasureSpec
from esm_protos.text import counted

SCHEMA_VERSION = 1
KIND = "lookup-table"


def table_json(
    space: SearchSpace,
    device: str,
    info: DeviceInfo,
    spec: MeasureSpec,
    parts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the content of the file, as docs/lookup.md describes it.

    Args:
        space: Search space.
        device: Name of the device.
        info: Description of the device.
        spec: Settings of the measurements.
        parts: Entries, one per part.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "context": {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": version("esm-profiler"),
            "space": space.settings(),
            "device": {"name": device, **info.identity(spec.provider)},
            "spec": spec.to_json(),
        },
        "parts": list(parts),
    }


def load_lookup_table(path: str | Path, encoder: Encoder) -> NDArray[np.float64]:
    """Return the latency of each column of the encoding ``parts``, ms, ``(len(encoder),)``.

    It is for :class:`esm_host.predictors.lookup.LookupBiasPredictor`.

    Raises:
        UsageError: there is no such file, or the encoder is another one.
        DatasetError: the file is not a lookup table, or is damaged.
        MismatchError: the table is of another space or other settings, or lacks parts.
    """
    path = Path(path)
    if not encoder.parts:
        raise UsageError(
            f"a lookup table needs the encoding 'parts', not '{encoder.name}': use "
            "make_encoder('parts', space)"
        )
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: measure again with esm-host lookup") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise DatasetError(
            f"{path} is not a lookup table: make one with esm-host lookup --json {path}"
        )
    if data.get("schema_version") != SCHEMA_VERSION:
        raise DatasetError(
            f"{path} has schema version {data.get('schema_version')}; this program reads version "
            f"{SCHEMA_VERSION}: measure again with esm-host lookup"
        )
    try:
        settings = data["context"]["space"]
        table = {str(entry["key"]): float(entry["latency_ms"]) for entry in data["parts"]}
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} is not a complete lookup table ({type(error).__name__}: {error}): measure "
            "again with esm-host lookup"
        ) from error
    wanted = encoder.space.settings()
    if settings != wanted:
        raise MismatchError(
            f"{path} is of {_shown(settings)}, the encoder's space is {_shown(wanted)}: measure "
            "a table of this space with esm-host lookup"
        )
    missing = [part.name for part in encoder.parts if part.key not in table]
    if missing:
        raise MismatchError(
            f"{path} lacks {counted(len(missing), 'part')} of the space, such as {missing[0]}: the "
            "space has changed, measure again with esm-host lookup"
        )
    return np.array([table[part.key] for part in encoder.parts])


def _shown(settings: dict[str, Any]) -> str:
    name, *rest = (
        f"{value}" if key == "name" else f"{key} {value}" for key, value in settings.items()
    )
    return f"{name} ({', '.join(rest)})"
