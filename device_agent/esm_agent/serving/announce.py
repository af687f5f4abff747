"""Tells the local network that there is an agent (mDNS), if it is asked to.

What is told is public there: see docs/security.md. Never tokens, nor the certificate.
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
    """There is nothing that could be announced, or nothing to do it with."""


def check(host: str) -> None:
    """Raises AnnounceError unless an agent that listens on this address can be announced."""
    if host not in _EVERYWHERE:
        addresses = _resolved(host)
        if not addresses:
            raise AnnounceError(
                f"--announce tells IPv4 addresses, and --host {host} has none: give --host 0.0.0.0"
            )
        if all(ipaddress.ip_address(address).is_loopback for address in addresses):
            raise AnnounceError(
                f"--announce calls other machines, and none can reach --host {host}: "
                "give --host 0.0.0.0 as well"
            )
    if importlib.util.find_spec("zeroconf") is None:
        raise AnnounceError(f"--announce needs zeroconf: {install('mdns')}, or leave it out")


class Announcement:
    """Tells where the agent is from now on, also when the network changes, until withdrawn.

    Args:
        host: that the agent listens on.
        tls: whether it speaks TLS.
    """

    def __init__(self, host: str, port: int, tls: bool) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._withdrawn = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="esm-announce", daemon=True)
        self._thread.start()

    def withdraw(self) -> None:
        """Tells the network that the agent is gone."""
        self._withdrawn.set()
        self._thread.join()

    def _keep(self) -> None:
        """A network may come, go and change long after the agent has started."""
        told: list[str] = []
        trouble = ""
        responder: Zeroconf | None = None
        while True:
            try:
                addresses = _addresses(self._host)
                if addresses != told:
                    if responder is not None:
                        responder.close()
                    responder, told = None, []
                    if addresses:
                        responder = self._tell(addresses)
                    told = addresses
                    event(log, logging.INFO, "announced", addresses=", ".join(told) or "nowhere")
            except Exception as error:  # the agent serves all the same, and this is tried again
                reason = str(error) or repr(error)
                if reason != trouble:
                    event(log, logging.WARNING, "not announced", reason=reason)
                trouble = reason
            if self._withdrawn.wait(_LOOK_AGAIN_S):
                break
        if responder is not None:
            responder.close()

    def _tell(self, addresses: list[str]) -> Zeroconf:
        from zeroconf import ServiceInfo, Zeroconf

        hostname = socket.gethostname()
        # A label of DNS: no dots, 63 bytes at most; the network adds -2 where it is taken.
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
    """IPv4 addresses at which others reach an agent that listens on ``host``; sorted."""
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
