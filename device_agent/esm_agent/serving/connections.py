"""Limits of connections: their number, handshake time and idle time."""

from __future__ import annotations

import contextlib
import resource

_HANDSHAKE_MS = 10_000
"""Time for the handshakes of TCP, TLS and HTTP/2 together."""
_IDLE_MS = 60_000
"""Time without a call after which a connection is closed. Hosts renew their leases more often."""
_WANTED_FILES = 8192
_RESERVED_FILES = 200
"""Open files reserved for blocks, the cache, tokens and the measuring process."""
_MIN_CONNECTIONS = 16


def connection_options() -> tuple[tuple[str, int], ...]:
    """Return the connection options of the gRPC server, and raise the limit of open files.

    Connections beyond the maximum are closed at once, so the agent always has descriptors left
    for its own files.
    """
    return (
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_allowed_incoming_connections", max_connections(_file_limit())),
    )


def max_connections(files: int) -> int:
    """Return the maximum number of connections for a limit of open files."""
    files = min(files, _WANTED_FILES)
    return max(files - max(_RESERVED_FILES, files // 4), _MIN_CONNECTIONS)


def _file_limit() -> int:
    """Raise the limit of open files as far as allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _WANTED_FILES if hard == unlimited else min(_WANTED_FILES, hard)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _WANTED_FILES if soft == unlimited else soft
