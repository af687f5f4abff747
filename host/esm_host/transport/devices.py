"""Names of devices in ``$XDG_CONFIG_HOME/esm/devices.toml``, or in the file of ESM_CONFIG.

[devices.pi4]
address = "192.168.1.20:7343"
pinned = "devices.pi4.pem"      # the agent's certificate, next to this file
token = "esm_..."               # ESM_TOKEN replaces it

[devices.rack]
address = "rack.lan:7343"
ca = "/etc/lab/ca.pem"          # mutual TLS
certificate = "/home/ada/ada.pem"
key = "/home/ada/ada.key"

[groups]
lab = ["pi4", "rack"]           # a name for several devices
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esm_host.errors import UsageError
from esm_protos.nearest import unknown
from esm_protos.user_folders import user_folder

if TYPE_CHECKING:  # loading gRPC would slow down shell completion
    from esm_host.transport.access import Access
    from esm_host.transport.base import Profiler

_ANSWER_S = 10.0


@dataclass(frozen=True)
class Entry:
    """Device in the configuration file; paths are relative to the file."""

    address: str
    pinned: str | None = None
    token: str | None = field(default=None, repr=False)
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def access(self, name: str) -> Access:
        """Return the credentials for the device.

        Raises:
            UsageError: a value is missing, or a file cannot be read.
        """
        import ssl

        from esm_host.transport.access import PLAIN, check_token, mutual, pinned

        cure = f"pair again and `esm-host devices add {name} ... --force`"
        own = (self.ca, self.certificate, self.key)
        if any(own):
            if self.ca is None or self.certificate is None or self.key is None:
                raise UsageError(f"device '{name}' needs all of ca, certificate and key")
            return mutual(beside(self.ca), beside(self.certificate), beside(self.key))
        if self.pinned is None:
            if self.token is not None:
                raise UsageError(
                    f"device '{name}' has a token but no certificate, and tokens are not sent over "
                    f"plain text: {cure}"
                )
            return PLAIN  # ESM_TOKEN may belong to another device
        token = os.environ.get("ESM_TOKEN") or self.token
        if token is None:
            raise UsageError(f"device '{name}' has no token: set ESM_TOKEN, or {cure}")
        path = beside(self.pinned)
        try:
            pem = path.read_bytes()
            ssl.create_default_context(cadata=pem.decode("ascii", "replace"))
            return pinned(pem, check_token(token))
        except ssl.SSLError as error:
            raise UsageError(f"{path} is not a certificate: {cure}") from error
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}: {cure}") from error


def config_path() -> Path:
    """Return the path of the configuration file.

    Raises:
        OSError: the user has no home folder.
    """
    if path := os.environ.get("ESM_CONFIG"):
        return Path(path)
    return user_folder("XDG_CONFIG_HOME", ".config") / "esm" / "devices.toml"


def connect(device: str, answer_s: float = _ANSWER_S) -> Profiler:
    """Return a profiler for ``local``, ``host:port`` or a name; it does not connect yet.

    Args:
        device: The device.
        answer_s: Time after which an agent that does not answer counts as unreachable, s.

    Raises:
        UsageError: the name is unknown or the configuration unreadable.
    """
    from esm_host.transport.access import split_address
    from esm_host.transport.remote import RemoteProfiler

    if device == "local":
        from esm_host.transport.local import LocalProfiler

        return LocalProfiler()
    if ":" in device:
        split_address(device)
        return RemoteProfiler(device, answer_s=answer_s)
    known = configured()
    if device not in known:
        grouped = groups()
        if device in grouped:
            raise UsageError(
                f"'{device}' is a group: name one of its devices ({', '.join(grouped[device])})"
            )
        raise unknown_device(device, known)
    entry = known[device]
    return RemoteProfiler(entry.address, device, entry.access(device), answer_s)


def configured() -> dict[str, Entry]:
    """Return all named devices.

    Raises:
        UsageError: the configuration is unreadable.
    """
    try:
        path = config_path()
    except OSError:
        return {}  # without a home folder there is no configuration
    try:
        devices = read_toml(path).get("devices", {})
        return {name: _entry(values) for name, values in devices.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        origin = "ESM_CONFIG: " if os.environ.get("ESM_CONFIG") else ""
        raise UsageError(
            f"{origin}{path} cannot be read ({error}): write [devices.NAME] and "
            'address = "host:port"'
        ) from error


def groups() -> dict[str, tuple[str, ...]]:
    """Return the devices of every group, by its name.

    Raises:
        UsageError: the configuration is unreadable.
    """
    try:
        path = config_path()
    except OSError:
        return {}
    known = configured()
    found: dict[str, tuple[str, ...]] = {}
    written = read_toml(path).get("groups", {})
    if not isinstance(written, dict):
        raise UsageError(f"{path}: write groups below [groups]")
    for name, members in written.items():
        if not (isinstance(members, list) and members and all(type(m) is str for m in members)):
            raise UsageError(f'{path}: write a group as {name} = ["DEVICE", ...]')
        if name in known:
            raise UsageError(f"{path}: '{name}' is both a device and a group: rename one")
        for member in members:
            if member not in known:
                where, cure = f"in group '{name}'", "remove it, or add the device"
                text = unknown("device", member, known, where=where, choices=cure)
                raise UsageError(f"{path}: {text}")
        found[name] = tuple(dict.fromkeys(members))
    return found


def members(name: str) -> tuple[str, ...]:
    """Return the devices of a group; any other name, known or not, returns itself."""
    if name == "local" or ":" in name:
        return (name,)
    return groups().get(name, (name,))


def unknown_device(
    name: str, known: Mapping[str, object], what: str = "'local', host:port or a name"
) -> UsageError:
    """Return the error for an unknown name, with the most similar known one."""
    try:
        path = config_path()
        names = f"{path} has {', '.join(known) or 'none: see esm-host devices add'}"
    except OSError as error:
        names = f"{error.strerror}"
    return UsageError(unknown("device", name, known, choices=f"give {what} ({names})"))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a missing file is empty."""
    return tomllib.loads(text_of(path)) if path.exists() else {}


def text_of(path: Path) -> str:
    """Return a file's text without the byte order mark that some Windows editors write."""
    return path.read_text(encoding="utf-8-sig")


def _entry(values: Mapping[str, object]) -> Entry:
    texts = {key: str(values[key]) for key in asdict(Entry("")) if key in values}
    return Entry(**{"address": str(values["address"]), **texts})


def beside(text: str) -> Path:
    """Return a path of the configuration, which is relative to its folder."""
    return config_path().parent / Path(text).expanduser()
