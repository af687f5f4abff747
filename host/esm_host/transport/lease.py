"""This host's place in a device's queue, kept by a heartbeat for as long as it lives."""

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
_BEATS = 5  # in the time in which a lease expires: some may be lost


class Lease:
    """Made by the first :meth:`renew`, or by the next after the agent has lost it.

    Args:
        stub: of the agent.
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

    def renew(self, purpose: str | None = None, no_wait: bool = False) -> Standing:
        """Takes a place in the queue, or keeps it; a heartbeat keeps it from then on.

        With ``no_wait`` no place is taken where others are before it.

        Raises:
            grpc.RpcError: the agent does not answer, or refuses.
            NonsenseError: the agent's answer makes no sense.
        """
        self._purpose = purpose or self._purpose
        lease_id = self._id or uuid.uuid4().hex
        standing = self._say(lease_id, no_wait)
        if no_wait and standing.ahead:
            return standing
        self._id = lease_id
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat, name="esm-lease", daemon=True)
            self._thread.start()
        return standing

    def release(self) -> None:
        """Gives the place back; an agent that does not answer will find out by itself."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            request = pb.ReleaseRequest(protocol_version=PROTOCOL_VERSION, lease_id=self._id)
            with contextlib.suppress(Exception):
                self._stub.Release(request, timeout=_ANSWER_S)

    def _beat(self) -> None:
        while not self._over.wait(self._pause_s):
            # Nothing may end the heartbeat. The call that waits for a block tells what is wrong.
            with contextlib.suppress(Exception):
                self._say(self._id, no_wait=False)

    def _say(self, lease_id: str, no_wait: bool) -> Standing:
        request = pb.LeaseRequest(
            protocol_version=PROTOCOL_VERSION,
            lease_id=lease_id,
            owner=f"{_user()}@{socket.gethostname()}"[:200],
            purpose=self._purpose[:200],
            no_wait=no_wait,
        )
        reply = self._stub.Lease(request, timeout=_ANSWER_S)
        standing = convert.standing_from_pb(reply.standing)
        self._pause_s = max(standing.expires_s / _BEATS, 0.1)
        return standing


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "somebody"
