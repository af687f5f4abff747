"""Names for agents that answer: in plain text, pinned and with a token, or by mutual TLS."""

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
from esm_host.transport.devices import Entry, configured, unknown
from esm_host.transport.remote import RemoteProfiler
from esm_protos.messages import DeviceInfo


@dataclass(frozen=True)
class Added:
    """A device that has a name now.

    Attributes:
        path: of the file that it was written to.
    """

    name: str
    address: str
    info: DeviceInfo
    path: Path


def add(
    name: str,
    address: str,
    token: str | None = None,
    fingerprint: str | None = None,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    force: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> Added:
    """Asks the agent what it is, and writes its name and how to come in to the configuration.

    Args:
        address: ``host:port``.
        token: from ``esm-agent pair``; without it ESM_TOKEN serves, and is not stored.
        fingerprint: of the agent's certificate, from ``esm-agent pair``.
        ca, certificate, key: mutual TLS, in PEM: the authority of the agent's certificate, and
            what this host shows.
        force: replaces a device of the same name.
        warn: told when anybody in between could read and change what is sent.

    Raises:
        UsageError: the arguments do not go together, or the name is taken.
        UnreachableError: nobody answers.
        AuthError: the agent is another one than the fingerprint says, or does not let us in.
        OSError: the configuration cannot be written.
    """
    naming.check_new(name, force)
    pem = None
    if ca or certificate or key:
        if ca is None or certificate is None or key is None or token or fingerprint:
            raise UsageError(
                f"mutual TLS takes all of {argument('ca')}, {argument('certificate')} and "
                f"{argument('key')}, and no token or fingerprint"
            )
        paths = [path.expanduser().resolve() for path in (ca, certificate, key)]
        access = mutual(*paths)
        entry = Entry(address, None, None, *map(str, paths))
    elif token or fingerprint:
        secret = token or os.environ.get("ESM_TOKEN")
        if not (secret and fingerprint):
            raise UsageError(
                "a token goes with a fingerprint, so that only the right agent gets it: paste the "
                "line that `esm-agent pair` printed, whole"
            )
        pem = fetch_certificate(address, fingerprint)
        access = pinned(pem, check_token(secret))
        entry = Entry(address, naming.pinned_file(name), token)
    else:
        access = PLAIN
        entry = Entry(address)
        if not is_loopback(address):
            warn(
                f"{address} is another machine, and without a token and a fingerprint anybody in "
                "between reads and changes what is sent: see esm-agent pair"
            )
    with RemoteProfiler(address, name, access) as profiler:
        info = profiler.device_info()
    return Added(name, address, info, naming.save(name, entry, pem))


def move(name: str, address: str) -> Added:
    """Give a device another address. Its token and its pinned certificate stay.

    Args:
        address: ``host:port``; the same agent must answer there.

    Raises:
        UsageError: the name is unknown, or the address is malformed.
        UnreachableError: nobody answers.
        AuthError: another agent answers, or it does not let us in.
        OSError: the configuration cannot be written.
    """
    known = configured()
    if name not in known:
        raise unknown(name, known, "a device that has a name")
    entry = replace(known[name], address=address)
    with RemoteProfiler(address, name, entry.access(name)) as profiler:
        info = profiler.device_info()
    return Added(name, address, info, naming.save(name, entry))
