"""``result.json``: what a campaign came to, for programs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esm_host.dataset.store import Store
from esm_host.extension.settings import Settings
from esm_protos.messages import DeviceInfo

SCHEMA_VERSION = 1


def campaign_result(
    store: Store, settings: Settings, device: DeviceInfo, converged: bool
) -> dict[str, Any]:
    """The whole result, derived from the store. Times cover all sessions of the campaign."""
    blocks = store.blocks()
    rounds = store.rounds()
    busy = sum(block.busy_ns for block in blocks) / 1e9
    wall = sum(b.wall_seconds for b in blocks) + sum(r["training_seconds"] for r in rounds)
    return {
        "schema_version": SCHEMA_VERSION,
        "converged": converged,
        "measured_models": rounds[-1]["measured_models"] if rounds else 0,
        "rounds": rounds,
        "wall_seconds": wall,
        "device_busy_seconds": busy,
        "bytes_sent": sum(block.bytes_sent for block in blocks),
        "device": asdict(device),
        "settings": settings.to_json(),
    }


def write_json(path: Path, data: Any) -> None:
    """Whole or not at all, also when the program is killed meanwhile."""
    write_bytes(path, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Whole or not at all, also when the program is killed meanwhile."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data)
    os.replace(draft, path)
