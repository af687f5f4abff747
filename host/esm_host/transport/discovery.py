"""Discovery of agents in the local network (mDNS, ``esm-agent serve --announce``).

Any machine may answer with any content. Answers are therefore shortened, limited in number and
only shown to the user. Nothing is sent to an address because of an answer.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from esm_host.errors import DeviceError
from esm_host.transport.devices import Entry, configured
from esm_protos.messages import ANNOUNCED_AS, DEFAULT_PORT, PROTOCOL_VERSION
from esm_protos.text import foreign

_AT_MOST = 64
_LONGEST = 64
_DETAILS_S = 2.0


@dataclass(frozen=True)
class AnnouncedAgent:
    """Agent as it announces itself; missing texts are empty.

    Attributes:
        hostname: Host name.
        addresses: IPv4 addresses, each ``host:port``, those in networks of this machine first.
        machine: CPU architecture.
        agent_version: Version of the agent.
        protocol_version: Protocol version; None if it is not announced.
        tls: Whether the agent requires TLS; None if it is not announced.
        known_as: Names of configured devices with one of the addresses.
        next_step: Next step to use the agent; empty for a configured one.
    """

    hostname: str
    addresses: tuple[str, ...]
    machine: str
    agent_version: str
    protocol_version: int | None
    tls: bool | None
    known_as: tuple[str, ...]
    next_step: str


def find(seconds: float) -> list[AnnouncedAgent]:
    """Listen for announcements and return the agents, sorted by host name.

    Args:
        seconds: Time to listen, s.

    Raises:
        UsageError: the configuration is unreadable.
        DeviceError: this machine has no network to listen in.
    """
    from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

    known = configured()
    resolving = _Resolving(known)
    names: dict[str, None] = {}

    def on_change(
        zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            names.pop(name, None)
        elif len(names) < _AT_MOST:
            names[name] = None

    try:
        zeroconf = Zeroconf()
    except OSError as error:
        raise DeviceError(
            f"cannot listen for announcements ({error.strerror or error}): check the network"
        ) from error
    try:
        browser = ServiceBrowser(zeroconf, ANNOUNCED_AS, handlers=[on_change])
        time.sleep(seconds)
        browser.cancel()
        answers = []
        deadline = time.monotonic() + _DETAILS_S
        for name in list(names):
            left_ms = 1000 * (deadline - time.monotonic())
            # An invalid answer must not hide the others.
            with contextlib.suppress(Exception):
                info = ServiceInfo(ANNOUNCED_AS, name)
                # The details usually arrive with the name.
                if info.load_from_cache(zeroconf) or (
                    left_ms > 0 and info.request(zeroconf, left_ms)
                ):
                    known_at = resolving.addresses()
                    answers.append(
                        _described(info.properties, info.parsed_addresses(), info.port, known_at)
                    )
    finally:
        zeroconf.close()
    return sorted((f for f in answers if f is not None), key=lambda f: (f.hostname, f.addresses))


def _described(
    properties: Mapping[bytes, bytes | None],
    addresses: list[str],
    port: int | None,
    known: Mapping[str, set[str]],
) -> AnnouncedAgent | None:
    """Return the agent of an announcement; None if it has no usable address."""

    def said(key: bytes) -> str:
        return foreign((properties.get(key) or b"").decode(errors="replace"), _LONGEST)

    usable = {a for a in addresses if ipaddress.ip_address(a).version == 4}
    if not usable or not port:
        return None
    usable_first = sorted(usable, key=lambda a: (_distance(a), a))[:_AT_MOST]
    where = tuple(f"{address}:{port}" for address in usable_first)
    protocol = int(text) if re.fullmatch(r"[0-9]{1,9}", text := said(b"protocol")) else None
    tls = {"1": True, "0": False}.get(said(b"tls"))
    known_as = tuple(name for name, has in known.items() if has.intersection(where))
    if known_as:
        step = ""
    elif protocol is not None and protocol != PROTOCOL_VERSION:
        step = f"upgrade esm-profiler {'there' if protocol < PROTOCOL_VERSION else 'here'}"
    elif tls is False:
        step = f"esm-host devices add NAME {where[0]}"
    else:
        option = "" if port == DEFAULT_PORT else f" --port {port}"
        step = f"run `esm-agent pair{option}` there, and paste its line here"
    return AnnouncedAgent(
        said(b"hostname"), where, said(b"machine"), said(b"agent"), protocol, tls, known_as, step
    )


def _distance(address: str) -> int:
    """Return 0 for an address in a network of this machine, 1 for its own, 2 for others.

    An address of this machine comes second, because container networks have one too.
    """
    import ifaddr

    own = [ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    if any(address == ip.ip for ip in own):
        return 1
    there = ipaddress.ip_address(address)
    networks = (ipaddress.ip_network(f"{ip.ip}/{ip.network_prefix}", strict=False) for ip in own)
    return 0 if any(there in network for network in networks) else 2


class _Resolving:
    """Background lookup of the configured devices' addresses.

    A slow name server delays nothing: addresses that arrive too late are left out.
    """

    def __init__(self, known: Mapping[str, Entry]) -> None:
        self._found: dict[str, set[str]] = {name: set() for name in known}
        for name, entry in known.items():
            threading.Thread(target=self._resolve, args=(name, entry.address), daemon=True).start()

    def addresses(self) -> dict[str, set[str]]:
        """Return the addresses of each device so far, ``ip:port``."""
        return {name: set(addresses) for name, addresses in self._found.items()}

    def _resolve(self, name: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            answers = socket.getaddrinfo(host, None, socket.AF_INET)
        except (OSError, UnicodeError):
            return
        self._found[name] |= {f"{sockaddr[0]}:{port}" for *_, sockaddr in answers}
