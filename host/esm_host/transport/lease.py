"""Lease of a device, renewed by a heartbeat while this host runs."""

from __future__ import annotations

import contextlib
import getpass
import socket
import threading
import uuid
from typing import Any

from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION, Standing
from esm_protos.v1 import profiler_pb2 as pb

_ANSWER_S = 10.0
_BEATS = 5  # per lifetime of a lease, so that some may be lost


class Lease:
    """Place in a device's queue, taken by :meth:`renew`, and again after the agent lost it.

    Args:
        stub: gRPC stub of the agent.
    """

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._id = ""
        self._purpose = "measure"
        self._pause_s = 1.0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lease_id(self) -> str:
        return self._id

    def renew(self, purpose: str | None = None, wait: bool = True) -> Standing:
        """Take or keep a place in the queue; a heartbeat keeps it from then on.

        Args:
            purpose: Purpose shown to others; None keeps the last one.
            wait: Whether to take a place behind others; if False, only a free device is leased.

        Raises:
            grpc.RpcError: the agent does not answer, or refuses.
            NonsenseError: the agent's answer is invalid.
        """
        self._purpose = purpose or self._purpose
        lease_id = self._id or uuid.uuid4().hex
        standing = self._request(lease_id, wait)
        if standing.ahead and not wait:
            return standing
        self._id = lease_id
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="esm-lease", daemon=True)
            self._thread.start()
        return standing

    def release(self) -> None:
        """Give the place back; without an answer the lease expires by itself."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            request = pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=self._id)
            with contextlib.suppress(Exception):
                self._stub.Release(request, timeout=_ANSWER_S)

    def _beat(self) -> None:
        while not self._over.wait(self._pause_s):
            # No error may end the heartbeat. The call that waits for a block reports it.
            with contextlib.suppress(Exception):
                self._request(self._id, wait=True)

    def _request(self, lease_id: str, wait: bool) -> Standing:
        request = pb.LeaseRequest(
            protocol_version=PROTOCOL_VERSION,
            lease_id=lease_id,
            owner=f"{_user()}@{socket.gethostname()}"[:200],
            purpose=self._purpose[:200],
            no_wait=not wait,
        )
        reply = self._stub.Lease(request, timeout=_ANSWER_S)
        standing = convert.standing_from_pb(reply.standing)
        self._pause_s = max(standing.expires_s / _BEATS, 0.1)
        return standing


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
