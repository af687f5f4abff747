"""Connections to agents, direct or through the proxy of ESM_PROXY.

Other proxy variables (``http_proxy``, ``https_proxy``, ``grpc_proxy``) are ignored. Their proxies
lead to the internet, where agents are not. They would also see the graphs of plain-text agents.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from esm_host.errors import UsageError
from esm_protos.addresses import check_host, join

VARIABLE = "ESM_PROXY"
_LONGEST_REPLY_BYTES = 8192
_LOOK_S = 3.0


def channel_options(address: tuple[str, int]) -> tuple[tuple[str, Any], ...]:
    """Return gRPC's options for a connection to a host and port.

    Raises:
        UsageError: ESM_PROXY is malformed.
    """
    proxy = _proxy(address[0])
    if proxy is None:
        return (("grpc.enable_http_proxy", 0),)
    return (("grpc.enable_http_proxy", 1), ("grpc.http_proxy", proxy.geturl()))


def connect(address: tuple[str, int], timeout_s: float) -> socket.socket:
    """Open a TCP connection to a host and port.

    Raises:
        OSError: the host does not answer, or the proxy does not reach it.
        UsageError: ESM_PROXY is malformed.
    """
    proxy = _proxy(address[0])
    if proxy is None:
        return socket.create_connection(address, timeout=timeout_s)
    assert proxy.hostname is not None
    connection = socket.create_connection((proxy.hostname, proxy.port or 0), timeout=timeout_s)
    try:
        _ask_for_tunnel(connection, proxy, join(*address))
    except BaseException:
        connection.close()
        raise
    return connection


def unreachable_proxy(address: tuple[str, int]) -> str | None:
    """Return a message if the proxy for an address accepts no connections; else None."""
    proxy = _proxy(address[0])
    if proxy is None:
        return None
    assert proxy.hostname is not None
    assert proxy.port is not None
    try:
        socket.create_connection((proxy.hostname, proxy.port), timeout=_LOOK_S).close()
    except OSError:
        where = join(proxy.hostname, proxy.port)  # without user name and password
        return f"the proxy {where} ({VARIABLE}) does not answer: unset it or correct it"
    return None


def _ask_for_tunnel(connection: socket.socket, proxy: SplitResult, target: str) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username is not None:
        account = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(account.encode()).decode()}")
    connection.sendall("\r\n".join((*lines, "", "")).encode())
    reply = b""
    while not reply.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)  # one byte at a time: the next bytes are the agent's
        reply += byte
        if not byte or len(reply) > _LONGEST_REPLY_BYTES:
            raise ConnectionError("the proxy's answer is not one of a proxy")
    status = reply.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise ConnectionError("the proxy refuses")


def _proxy(host: str) -> SplitResult | None:
    text = os.environ.get(VARIABLE)
    if not text or is_this_machine(host):
        return None
    try:
        proxy = urlsplit(text)
        if proxy.scheme == "http" and proxy.port and check_host(proxy.hostname or ""):
            return proxy
    except ValueError:
        pass
    # The value may hold a password.
    raise UsageError(f"{VARIABLE} is not a proxy: give http://HOST:PORT, or unset it")


def is_this_machine(host: str) -> bool:
    """Return whether a host name or IP address is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
