"""Whose turn it is: leases in a queue, each alive for as long as its host says so.

No threads and no gRPC in here: callers hold a lock, and pass the time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass

from esm_protos.messages import Holder, Occupancy, Standing

EXPIRY_S = 30.0
"""A lease that is not renewed for so long is gone, and its blocks with it."""

_FIRST_GUESS_S = 10.0  # of a block's duration, before there was one
_REMEMBERED = 8  # blocks whose durations tell how long the next ones will take


MOST_LEASES = 1000
"""Most leases of one client."""


class NoLeaseError(Exception):
    """The lease is unknown: it expired, was released, or is somebody else's."""


class TooManyError(Exception):
    """One client has more leases, or one lease more blocks, than the agent keeps."""


@dataclass
class _Lease:
    owner: str
    purpose: str
    client: str
    made: float
    expires: float


class Leases:
    """The queue. Turns go round the clients, and those of one client round its leases.

    The first lease in the order of turns holds the device; while others wait, for one block at a
    time.

    Args:
        expiry_s: a lease lives so long after it was renewed.
    """

    def __init__(self, expiry_s: float = EXPIRY_S) -> None:
        self._expiry_s = expiry_s
        # Clients, and the leases of each, in the order of their turns. No client is without one.
        self._clients: dict[str, dict[str, _Lease]] = {}
        self._client_of: dict[str, str] = {}
        self._turn_of = ""  # the client whose block is measured
        self._block_began: float | None = None
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)

    def renew(
        self, lease_id: str, owner: str, purpose: str, client: str, no_wait: bool, now: float
    ) -> Standing:
        """Keeps a lease alive, or makes it, at the end of its client's.

        With ``no_wait`` none is made where there are others; the standing says who.

        Raises:
            NoLeaseError: the id is another client's.
            TooManyError: the client has too many leases already.
        """
        lease = self._find(lease_id)
        if lease is None:
            if no_wait and self._client_of:
                return self._standing(len(self._client_of), 0.0, now)
            leases = self._clients.setdefault(client, {})
            if len(leases) >= MOST_LEASES:
                raise TooManyError(
                    f"{len(leases)} leases of one client; this agent takes {MOST_LEASES}: "
                    "release some"
                )
            lease = leases[lease_id] = _Lease(owner, purpose, client, made=now, expires=now)
            self._client_of[lease_id] = client
        elif lease.client != client:
            raise NoLeaseError("this lease is another client's")
        lease.owner, lease.purpose = owner, purpose
        lease.expires = now + self._expiry_s
        return self.standing(lease_id, now)

    def check(self, lease_id: str, client: str) -> None:
        """Raises NoLeaseError unless the lease is alive and this client's."""
        if self._client_of.get(lease_id) != client:
            raise NoLeaseError("the block's lease has ended")

    def release(self, lease_id: str, client: str) -> bool:
        """Ends a lease; False where it is gone already, or another client's."""
        if self._client_of.get(lease_id) != client:
            return False
        self._remove(lease_id)
        return True

    def expire(self, now: float) -> list[str]:
        """Ends the leases whose hosts have gone silent, and names them."""
        gone = [
            lease_id
            for leases in self._clients.values()
            for lease_id, lease in leases.items()
            if lease.expires <= now
        ]
        for lease_id in gone:
            self._remove(lease_id)
        return gone

    def clients(self) -> list[str]:
        """Those that have leases."""
        return list(self._clients)

    def end_all(self, client: str) -> list[str]:
        """Ends a client's leases, and names them."""
        gone = list(self._clients.get(client, ()))
        for lease_id in gone:
            self._remove(lease_id)
        return gone

    def begin(self, ready: Container[str], now: float) -> str | None:
        """The turn goes to the first lease that is ready, and a block of it begins."""
        lease_id = next((each for each in self.order() if each in ready), None)
        if lease_id is not None:
            client = self._turn_of = self._client_of[lease_id]
            leases = self._clients.pop(client)
            self._clients = {client: {lease_id: leases.pop(lease_id), **leases}, **self._clients}
            self._block_began = now
        return lease_id

    def end(self, lease_id: str, now: float) -> None:
        """Its block is over: client and lease go to the end, if they are still there."""
        if self._block_began is not None:
            self._durations.append(now - self._block_began)
            self._block_began = None
        if self._turn_of in self._clients:  # also without the lease: it has had its turn
            leases = self._clients[self._turn_of] = self._clients.pop(self._turn_of)
            if lease_id in leases:
                leases[lease_id] = leases.pop(lease_id)

    def order(self) -> Iterator[str]:
        """Leases in the order of their turns, if all of them have blocks."""
        for one_of_each in itertools.zip_longest(*self._clients.values()):
            yield from (lease_id for lease_id in one_of_each if lease_id is not None)

    def standing(self, lease_id: str, now: float) -> Standing:
        """Raises KeyError where there is no such lease."""
        client = self._client_of[lease_id]
        ahead = next(place for place, each in enumerate(self.order()) if each == lease_id)
        return self._standing(ahead, self._clients[client][lease_id].expires - now, now)

    def standings(self, now: float) -> Iterator[tuple[str, Standing]]:
        """Yield every lease with its standing."""
        for ahead, lease_id in enumerate(self.order()):
            expires_s = self._clients[self._client_of[lease_id]][lease_id].expires - now
            yield lease_id, self._standing(ahead, expires_s, now)

    def occupancy(self, now: float, draining: bool = False) -> Occupancy:
        return Occupancy(self._holder(now), max(len(self._client_of) - 1, 0), draining)

    def _find(self, lease_id: str) -> _Lease | None:
        client = self._client_of.get(lease_id)
        return None if client is None else self._clients[client][lease_id]

    def _remove(self, lease_id: str) -> None:
        client = self._client_of.pop(lease_id)
        del self._clients[client][lease_id]
        if not self._clients[client]:
            del self._clients[client]

    def _standing(self, ahead: int, expires_s: float, now: float) -> Standing:
        count = len(self._durations)
        block_s = sum(self._durations) / count if count else _FIRST_GUESS_S
        begun_s = now - self._block_began if self._block_began is not None else 0.0
        wait_s = ahead * block_s - min(begun_s, block_s) if ahead else 0.0
        return Standing(ahead, self._holder(now), wait_s, expires_s)

    def _holder(self, now: float) -> Holder | None:
        for leases in self._clients.values():
            for lease in leases.values():
                return Holder(lease.owner, lease.purpose, lease.client, now - lease.made)
        return None
