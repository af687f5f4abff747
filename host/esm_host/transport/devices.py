"""Devices by name: ``$XDG_CONFIG_HOME/esm/devices.toml``, or the file that ESM_CONFIG names.

[devices.pi4]
address = "192.168.1.20:7343"
pinned = "devices.pi4.pem"      # the agent's certificate, next to this file
token = "esm_..."               # ESM_TOKEN is taken instead, where it is set

[devices.rack]
address = "rack.lan:7343"
ca = "/etc/lab/ca.pem"          # mutual TLS
certificate = "/home/ada/ada.pem"
key = "/home/ada/ada.key"
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from esm_host.errors import UsageError
from esm_host.transport.access import PLAIN, Access, check_token, mutual, pinned, split_address
from esm_host.transport.base import Profiler
from esm_protos.private_files import write_private

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)
_ANSWER_S = 10.0


@dataclass(frozen=True)
class Entry:
    """A device as the file has it; paths are relative to the file."""

    address: str
    pinned: str | None = None
    token: str | None = field(default=None, repr=False)
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def access(self, name: str) -> Access:
        """How to come in.

        Raises:
            UsageError: something is missing, or a file cannot be read.
        """
        cure = f"pair again and `esm-host devices add {name} ... --force`"
        own = (self.ca, self.certificate, self.key)
        if any(own):
            if self.ca is None or self.certificate is None or self.key is None:
                raise UsageError(f"device '{name}' needs all of ca, certificate and key")
            return mutual(_path(self.ca), _path(self.certificate), _path(self.key))
        if self.pinned is None:
            if self.token is not None:
                raise UsageError(
                    f"device '{name}' has a token but no certificate, and tokens are not sent over "
                    f"plain text: {cure}"
                )
            return PLAIN  # ESM_TOKEN may be of another device
        token = os.environ.get("ESM_TOKEN") or self.token
        if token is None:
            raise UsageError(f"there is no token for device '{name}': set ESM_TOKEN, or {cure}")
        path = _path(self.pinned)
        try:
            return pinned(path.read_bytes(), check_token(token))
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}: {cure}") from error


def config_path() -> Path:
    """Where device names are kept."""
    if path := os.environ.get("ESM_CONFIG"):
        return Path(path)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "esm" / "devices.toml"


def connect(device: str, answer_s: float = _ANSWER_S) -> Profiler:
    """A profiler for ``local``, a ``host:port`` or a configured name. Does not connect yet.

    Args:
        answer_s: an agent that does not tell within so long what it is counts as unreachable.

    Raises:
        UsageError: the name is unknown or the configuration unreadable.
    """
    from esm_host.transport.remote import RemoteProfiler

    if device == "local":
        from esm_host.transport.local import LocalProfiler

        return LocalProfiler()
    if ":" in device:
        split_address(device)
        return RemoteProfiler(device, answer_s=answer_s)
    known = configured()
    if device not in known:
        near = difflib.get_close_matches(device, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        names = (
            f"{config_path()} has {', '.join(known)}"
            if known
            else f"{config_path()} has none: see esm-host devices add"
        )
        raise UsageError(
            f"unknown device '{device}': {hint}give 'local', host:port or a name ({names})"
        )
    entry = known[device]
    return RemoteProfiler(entry.address, device, entry.access(device), answer_s)


def configured() -> dict[str, Entry]:
    """All devices that have a name; raises UsageError where the file cannot be understood."""
    path = config_path()
    if not path.exists():
        return {}
    try:
        devices = tomllib.loads(path.read_text())["devices"]
        return {name: _entry(values) for name, values in devices.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'{path} cannot be read ({error}): write [devices.NAME] and address = "host:port"'
        ) from error


def check_new(name: str, force: bool) -> None:
    """Raises UsageError for a name that cannot be added."""
    if name == "local" or not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a device: letters, digits, '.', '_', '-'")
    if name in configured() and not force:
        raise UsageError(f"there is a device '{name}' already: --force replaces it")


def pinned_file(name: str) -> str:
    """Of a device's certificate, next to the configuration."""
    return f"{config_path().stem}.{name}.pem"


def save(name: str, entry: Entry, certificate: bytes | None = None) -> Path:
    """Writes a device to the configuration, whose comments stay, for its owner only.

    Args:
        certificate: to be kept as ``entry.pinned``.

    Returns:
        The configuration's path.

    Raises:
        UsageError: the configuration cannot be understood.
        OSError: it cannot be written.
    """
    import tomlkit
    import tomlkit.exceptions

    path = config_path()
    try:
        document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
        devices = document.setdefault("devices", tomlkit.table(is_super_table=True))
        table = devices.setdefault(name, tomlkit.table())
        for key, value in asdict(entry).items():
            if value is not None:
                table[key] = value
            elif key in table:
                del table[key]
    except (ValueError, TypeError, AttributeError, tomlkit.exceptions.TOMLKitError) as error:
        raise UsageError(f"{path} cannot be changed ({error}): put it right first") from error
    if certificate is not None:
        assert entry.pinned is not None
        _write_private(_path(entry.pinned), certificate)
    _write_private(path, tomlkit.dumps(document).encode())
    return path


def _entry(values: Mapping[str, object]) -> Entry:
    texts = {key: str(values[key]) for key in asdict(Entry("")) if key in values}
    return Entry(**{"address": str(values["address"]), **texts})


def _path(text: str) -> Path:
    return config_path().parent / Path(text).expanduser()


def _write_private(path: Path, data: bytes) -> None:
    path = path.resolve()  # a link stays one
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, data)
