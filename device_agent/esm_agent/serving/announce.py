"""Announcement of the agent in the local network (mDNS), with the option ``--announce``.

All announced facts are public there (docs/security.md). They never include tokens or the
certificate.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import platform
import socket
import threading
from typing import TYPE_CHECKING

from esm_agent import __version__
from esm_agent.operation.logs import event
from esm_protos.messages import ANNOUNCED_AS, PROTOCOL_VERSION
from esm_protos.text import install

if TYPE_CHECKING:
    from zeroconf import Zeroconf

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 30.0
_EVERYWHERE = ("0.0.0.0", "::", "[::]")


class AnnounceError(Exception):
    """Error that prevents an announcement: no suitable address, or no zeroconf."""


def check(host: str) -> None:
    """Check that an agent that listens on this address can be announced.

    Raises:
        AnnounceError: it cannot.
    """
    if host not in _EVERYWHERE:
        addresses = _resolved(host)
        if not addresses:
            raise AnnounceError(
                f"--announce needs an IPv4 address, and --host {host} has none: give --host 0.0.0.0"
            )
        if all(ipaddress.ip_address(address).is_loopback for address in addresses):
            raise AnnounceError(
                f"--announce is for other machines, and none can reach --host {host}: "
                "give --host 0.0.0.0 as well"
            )
    if importlib.util.find_spec("zeroconf") is None:
        raise AnnounceError(f"--announce needs zeroconf: {install('mdns')}, or leave it out")


class Announcement:
    """Announcement of the agent's addresses, kept up to date until it is withdrawn.

    Args:
        host: Address that the agent listens on.
        port: Port of the agent.
        tls: Whether the agent uses TLS.
    """

    def __init__(self, host: str, port: int, tls: bool) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._withdrawn = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="esm-announce", daemon=True)
        self._thread.start()

    def withdraw(self) -> None:
        """Announce that the agent is gone."""
        self._withdrawn.set()
        self._thread.join()

    def _keep(self) -> None:
        """Announce the addresses whenever they change, until the announcement is withdrawn."""
        announced: list[str] = []
        trouble = ""
        responder: Zeroconf | None = None
        while True:
            try:
                addresses = _addresses(self._host)
                if addresses != announced:
                    if responder is not None:
                        responder.close()
                    responder, announced = None, []
                    if addresses:
                        responder = self._register(addresses)
                    announced = addresses
                    places = ", ".join(announced) or "nowhere"
                    event(log, logging.INFO, "announced", addresses=places)
            except Exception as error:  # the agent still serves, and this is tried again
                reason = str(error) or repr(error)
                if reason != trouble:
                    event(log, logging.WARNING, "not announced", reason=reason)
                trouble = reason
            if self._withdrawn.wait(_LOOK_AGAIN_S):
                break
        if responder is not None:
            responder.close()

    def _register(self, addresses: list[str]) -> Zeroconf:
        from zeroconf import ServiceInfo, Zeroconf

        hostname = socket.gethostname()
        # A DNS label: no dots, at most 63 bytes. zeroconf adds -2 if the name is in use.
        label = hostname.partition(".")[0].encode()[:50].decode(errors="ignore") or "esm-agent"
        info = ServiceInfo(
            ANNOUNCED_AS,
            f"{label}.{ANNOUNCED_AS}",
            port=self._port,
            parsed_addresses=addresses,
            properties={
                "agent": __version__,
                "protocol": str(PROTOCOL_VERSION),
                "tls": str(int(self._tls)),
                "hostname": hostname,
                "machine": platform.machine(),
            },
        )
        responder = Zeroconf(interfaces=addresses)
        try:
            responder.register_service(info, allow_name_change=True)
        except BaseException:
            responder.close()
            raise
        return responder


def _addresses(host: str) -> list[str]:
    """Return the IPv4 addresses, sorted, at which other machines reach an agent on ``host``."""
    import ifaddr

    here = {str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4}
    wanted = here if host in _EVERYWHERE else here & set(_resolved(host))
    return sorted(a for a in wanted if not ipaddress.ip_address(a).is_loopback)


def _resolved(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, socket.AF_INET)
    except OSError:
        return []
    return sorted({str(sockaddr[0]) for *_, sockaddr in found})
