"""Agents that announce themselves in the local network (mDNS, ``esm-agent serve --announce``).

Anybody there may answer, and say anything: the answers are hints to people, cut short, few, and
nothing is sent to an address because of them.
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
class Found:
    """An agent as it describes itself; what it does not say is empty.

    Attributes:
        addresses: IPv4, each ``host:port``; first those in a network that this machine is in.
        tls: whether it wants TLS; None: it does not say.
        known_as: names of configured devices that have one of the addresses.
        next_step: what to do to use it; empty for a known one.
    """

    hostname: str
    addresses: tuple[str, ...]
    machine: str
    agent_version: str
    protocol_version: int | None
    tls: bool | None
    known_as: tuple[str, ...]
    next_step: str


def find(seconds: float) -> list[Found]:
    """Listens for so long. Sorted by host name.

    Raises:
        UsageError: the configuration cannot be understood.
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
            f"cannot listen for announcements ({error.strerror or error}): is there a network?"
        ) from error
    try:
        browser = ServiceBrowser(zeroconf, ANNOUNCED_AS, handlers=[on_change])
        time.sleep(seconds)
        browser.cancel()
        answers = []
        deadline = time.monotonic() + _DETAILS_S
        for name in list(names):
            left_ms = 1000 * (deadline - time.monotonic())
            # Whatever a stranger says, it is not to hide the others.
            with contextlib.suppress(Exception):
                info = ServiceInfo(ANNOUNCED_AS, name)
                # Mostly they come along with the name.
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
) -> Found | None:
    """None for what nobody could connect to."""

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
    return Found(
        said(b"hostname"), where, said(b"machine"), said(b"agent"), protocol, tls, known_as, step
    )


def _distance(address: str) -> int:
    """0 beside this machine, 1 if it is this machine's own: its containers' network has one too."""
    import ifaddr

    own = [ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    if any(address == ip.ip for ip in own):
        return 1
    there = ipaddress.ip_address(address)
    networks = (ipaddress.ip_network(f"{ip.ip}/{ip.network_prefix}", strict=False) for ip in own)
    return 0 if any(there in network for network in networks) else 2


class _Resolving:
    """Looks configured devices' addresses up while the network is listened to.

    A name server that does not answer holds nothing up: what is not known in time is left out.
    """

    def __init__(self, known: Mapping[str, Entry]) -> None:
        self._found: dict[str, set[str]] = {name: set() for name in known}
        for name, entry in known.items():
            threading.Thread(target=self._resolve, args=(name, entry.address), daemon=True).start()

    def addresses(self) -> dict[str, set[str]]:
        """``ip:port`` of each device, so far."""
        return {name: set(addresses) for name, addresses in self._found.items()}

    def _resolve(self, name: str, address: str) -> None:
        host, _, port = address.rpartition(":")
        try:
            answers = socket.getaddrinfo(host, None, socket.AF_INET)
        except (OSError, UnicodeError):
            return
        self._found[name] |= {f"{sockaddr[0]}:{port}" for *_, sockaddr in answers}
