"""Addresses of agents in text form: ``HOST:PORT``, with IPv6 in brackets."""

from __future__ import annotations

import ipaddress
import re

_NAME = re.compile(r"[\w.-]+")
_LIKE_IPV4 = re.compile(r"\d+(\.\d+){3}", re.ASCII)
_ADDRESS = re.compile(r"(?P<host>\[[^\[\]]*\]|[^\[\]:]*):(?P<port>\d{1,5})", re.ASCII)


def split(address: str) -> tuple[str, int]:
    """Return host (IPv6 without brackets) and port of ``HOST:PORT``; raise ValueError."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(
            f"invalid address '{address[:80]}': give HOST:PORT, such as 192.168.1.20:7343 or "
            "[fd00::5]:7343"
        )
    if not 0 < int(match["port"]) < 65536:
        raise ValueError(f"port {match['port']} of '{address}' is outside 1 to 65535")
    return check_host(match["host"]), int(match["port"])


def join(host: str, port: int) -> str:
    """Return ``HOST:PORT``, with brackets around an IPv6 address."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_host(host: str) -> str:
    """Return a host name or IP address, IPv6 without brackets; raise ValueError for anything else.

    An IPv6 address may name its interface: ``fe80::1%eth0``.
    """
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if ":" in bare:
            ipaddress.IPv6Address(bare)
        elif _LIKE_IPV4.fullmatch(bare):
            ipaddress.IPv4Address(bare)
        elif not _NAME.fullmatch(bare) or bare != host:
            raise ValueError("a name consists of letters, digits, '.' and '-'")
        elif len(bare.encode("idna")) > 253:
            raise ValueError("it has more than 253 characters")
    except ValueError as error:  # includes UnicodeError: a label that is empty or too long
        reason = f": {error}"
        if isinstance(error, ipaddress.AddressValueError):
            reason = ""  # Python's message explains nothing more
        if isinstance(error, UnicodeError):
            reason = ": each part between dots has 1 to 63 characters"
        raise ValueError(f"'{host[:80]}' is not a host name or IP address{reason}") from None
    return bare
