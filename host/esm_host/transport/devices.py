"""Devices by name: ``$XDG_CONFIG_HOME/esm/devices.toml``, or the file that ESM_CONFIG names.

[devices.pi4]
address = "192.168.1.20:7343"
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path

from esm_host.errors import UsageError
from esm_host.transport.base import Profiler

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})")


def config_path() -> Path:
    """Where device names are kept."""
    if path := os.environ.get("ESM_CONFIG"):
        return Path(path)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "esm" / "devices.toml"


def connect(device: str) -> Profiler:
    """A profiler for ``local``, a ``host:port`` or a configured name. Does not connect yet.

    Raises:
        UsageError: the name is unknown or the configuration unreadable.
    """
    from esm_host.transport.remote import RemoteProfiler

    if device == "local":
        from esm_host.transport.local import LocalProfiler

        return LocalProfiler()
    if match := _ADDRESS.fullmatch(device):
        if not 0 < int(match["port"]) < 65536:
            raise UsageError(f"port {match['port']} of '{device}' is outside 1 to 65535")
        return RemoteProfiler(device)
    known = _configured()
    if device not in known:
        near = difflib.get_close_matches(device, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        names = f"{config_path()} has {', '.join(known)}" if known else f"add it to {config_path()}"
        raise UsageError(
            f"unknown device '{device}': {hint}give 'local', host:port or a name ({names})"
        )
    return RemoteProfiler(known[device], device)


def _configured() -> dict[str, str]:
    path = config_path()
    if not path.exists():
        return {}
    try:
        devices = tomllib.loads(path.read_text())["devices"]
        return {name: str(entry["address"]) for name, entry in devices.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'{path} cannot be read ({error}): write [devices.NAME] and address = "host:port"'
        ) from error
