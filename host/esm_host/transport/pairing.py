"""Addition of devices after their agent answered: plain text, token, or mutual TLS."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.transport import naming
from esm_host.transport.access import (
    PLAIN,
    check_token,
    fetch_certificate,
    is_loopback,
    mutual,
    pinned,
)
from esm_host.transport.devices import Entry, configured, unknown_device
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import DeviceInfo


@dataclass(frozen=True)
class AddedDevice:
    """Device that was added to the configuration.

    Attributes:
        name: Name of the device.
        address: Its address, ``host:port``.
        info: Its device information.
        path: Path of the configuration file.
    """

    name: str
    address: str
    info: DeviceInfo
    path: Path


@dataclass(frozen=True)
class MutualTls:
    """Files for mutual TLS, in PEM; all three are needed.

    Attributes:
        ca: Certificate of the authority that issued the agent's certificate.
        certificate: Certificate of this host.
        key: Key of this host's certificate.
    """

    ca: Path | None
    certificate: Path | None
    key: Path | None

    @classmethod
    def of(cls, ca: Path | None, certificate: Path | None, key: Path | None) -> MutualTls | None:
        """Return the files; None if none of them is given."""
        return cls(ca, certificate, key) if ca or certificate or key else None


def add(
    name: str,
    address: str,
    token: str | None = None,
    fingerprint: str | None = None,
    tls: MutualTls | None = None,
    force: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> AddedDevice:
    """Query the agent and write its name and credentials to the configuration.

    Args:
        name: Name of the device.
        address: Address, ``host:port``.
        token: Token from ``esm-agent pair``; None uses ESM_TOKEN, which is not stored.
        fingerprint: Fingerprint of the agent's certificate, from ``esm-agent pair``.
        tls: Files for mutual TLS; None without.
        force: Whether to replace a device of the same name.
        warn: Callback for a connection that others could read and change.

    Raises:
        UsageError: the arguments do not fit together, or the name is taken.
        UnreachableError: no agent answers.
        AuthError: the fingerprint differs, or the agent rejects the token or certificate.
        OSError: the configuration cannot be written.
    """
    naming.check_new(name, force)
    pem = None
    if tls is not None:
        if tls.ca is None or tls.certificate is None or tls.key is None or token or fingerprint:
            raise UsageError(
                f"mutual TLS needs {argument('ca')}, {argument('certificate')} and "
                f"{argument('key')}, and no token or fingerprint"
            )
        paths = [path.expanduser().resolve() for path in (tls.ca, tls.certificate, tls.key)]
        access = mutual(*paths)
        entry = Entry(address, None, None, *map(str, paths))
    elif token or fingerprint:
        secret = token or os.environ.get("ESM_TOKEN")
        if not (secret and fingerprint):
            raise UsageError(
                "a token needs a fingerprint, so that only the right agent receives it: paste the "
                "whole line that `esm-agent pair` printed"
            )
        pem = fetch_certificate(address, fingerprint)
        access = pinned(pem, check_token(secret))
        entry = Entry(address, naming.pinned_file(name), token)
    else:
        access = PLAIN
        entry = Entry(address)
        if not is_loopback(address):
            warn(
                f"{address} is another machine, and without a token and a fingerprint others on "
                "the network can read and change the traffic: see esm-agent pair"
            )
    with RemoteProfiler(address, name, access) as profiler:
        info = profiler.device_info()
    return AddedDevice(name, address, info, naming.save(name, entry, pem))


def move(name: str, address: str) -> AddedDevice:
    """Give a device another address; its token and pinned certificate stay.

    Args:
        name: Name of the device.
        address: New address, ``host:port``, of the same agent.

    Raises:
        UsageError: the name is unknown, or the address is malformed.
        UnreachableError: no agent answers.
        AuthError: another agent answers, or the agent rejects the token or certificate.
        OSError: the configuration cannot be written.
    """
    known = configured()
    if name not in known:
        raise unknown_device(name, known, "the name of a device")
    entry = replace(known[name], address=address)
    with RemoteProfiler(address, name, entry.access(name)) as profiler:
        info = profiler.device_info()
    return AddedDevice(name, address, info, naming.save(name, entry))
