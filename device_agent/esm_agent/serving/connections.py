"""How many connections there may be, and how long one may stay that nobody calls on."""

from __future__ import annotations

import contextlib
import resource

_HANDSHAKE_MS = 10_000
"""For TCP, TLS and HTTP/2 together, until a call may come."""
_IDLE_MS = 60_000
"""Hosts renew their leases more often than that, and connect again where they do not."""
_WANTED_FILES = 8192
_RESERVED_FILES = 200
"""For everything else that is opened: blocks, the cache, tokens, the measuring process."""
_LEAST = 16


def connection_options() -> tuple[tuple[str, int], ...]:
    """Options of the gRPC server. Raises the limit of open files as far as it may.

    Connections beyond the cap are closed when they come: below it there are always descriptors
    left for what the agent itself has to open.
    """
    return (
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_allowed_incoming_connections", most_connections(_file_limit())),
    )


def most_connections(files: int) -> int:
    """How many connections there may be with so many open files."""
    files = min(files, _WANTED_FILES)
    return max(files - max(_RESERVED_FILES, files // 4), _LEAST)


def _file_limit() -> int:
    """Return the limit of open files, raised to what the agent wants where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = _WANTED_FILES if hard == unlimited else min(_WANTED_FILES, hard)
    if soft != unlimited and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _WANTED_FILES if soft == unlimited else soft
