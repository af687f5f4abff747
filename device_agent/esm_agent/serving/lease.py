"""Queue of leases; each lease is valid as long as its host renews it.

The module uses no threads and no gRPC: callers hold a lock and pass the time.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass

from esm_protos.messages import Holder, Occupancy, Standing

EXPIRY_S = 30.0
"""Time without a renewal after which a lease and its blocks are dropped, seconds."""

_FIRST_GUESS_S = 10.0  # expected duration of the first block
_REMEMBERED = 8  # number of blocks whose mean duration predicts that of the next


MOST_LEASES = 1000
"""Maximum number of leases of a client."""


class NoLeaseError(Exception):
    """Error for an unknown lease: it expired, was released, or is another client's."""


class TooManyError(Exception):
    """Error for too many leases of a client, or too many blocks of a lease."""


@dataclass
class _Lease:
    owner: str
    purpose: str
    client: str
    made: float
    expires: float


class Leases:
    """Queue of leases with turns that alternate between clients, and between a client's leases.

    The first lease in the order of turns holds the device. While others wait, it holds it for one
    block at a time.

    Args:
        expiry_s: Time from a renewal until a lease expires, seconds.
    """

    def __init__(self, expiry_s: float = EXPIRY_S) -> None:
        self._expiry_s = expiry_s
        # Clients and their leases, in the order of their turns; every client has a lease.
        self._clients: dict[str, dict[str, _Lease]] = {}
        self._client_of: dict[str, str] = {}
        self._turn_of = ""  # client whose block is measured
        self._block_began: float | None = None
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)

    def renew(
        self, lease_id: str, owner: str, purpose: str, client: str, wait: bool, now: float
    ) -> Standing:
        """Renew a lease, or create it behind the client's other leases.

        Args:
            lease_id: Id of the lease.
            owner: Name of the owner, for other clients.
            purpose: Purpose of the lease, for other clients.
            client: Name of the client.
            wait: Whether to create a lease behind others; if False and others exist, the standing
                names them.
            now: Time, seconds.

        Raises:
            NoLeaseError: the id is another client's.
            TooManyError: the client has the maximum number of leases.
        """
        lease = self._find(lease_id)
        if lease is None:
            if self._client_of and not wait:
                return self._standing(len(self._client_of), 0.0, now)
            leases = self._clients.setdefault(client, {})
            if len(leases) >= MOST_LEASES:
                raise TooManyError(
                    f"{len(leases)} leases of a client: the maximum is {MOST_LEASES}; release some"
                )
            lease = leases[lease_id] = _Lease(owner, purpose, client, made=now, expires=now)
            self._client_of[lease_id] = client
        elif lease.client != client:
            raise NoLeaseError("this lease is another client's")
        lease.owner, lease.purpose = owner, purpose
        lease.expires = now + self._expiry_s
        return self.standing(lease_id, now)

    def check(self, lease_id: str, client: str) -> None:
        """Check that a lease is valid and this client's.

        Raises:
            NoLeaseError: it is not.
        """
        if self._client_of.get(lease_id) != client:
            raise NoLeaseError("the block's lease has ended")

    def release(self, lease_id: str, client: str) -> bool:
        """End a lease; return False if it has ended already, or is another client's."""
        if self._client_of.get(lease_id) != client:
            return False
        self._remove(lease_id)
        return True

    def expire(self, now: float) -> list[str]:
        """End the leases that have expired, and return their ids."""
        expired = [
            lease_id
            for leases in self._clients.values()
            for lease_id, lease in leases.items()
            if lease.expires <= now
        ]
        for lease_id in expired:
            self._remove(lease_id)
        return expired

    def clients(self) -> list[str]:
        """Return the clients that have leases."""
        return list(self._clients)

    def end_all(self, client: str) -> list[str]:
        """End all leases of a client, and return their ids."""
        ended = list(self._clients.get(client, ()))
        for lease_id in ended:
            self._remove(lease_id)
        return ended

    def begin(self, ready: Container[str], now: float) -> str | None:
        """Begin a block of the first lease in ``ready``, and return its id; None without one."""
        lease_id = next((each for each in self.order() if each in ready), None)
        if lease_id is not None:
            client = self._turn_of = self._client_of[lease_id]
            leases = self._clients.pop(client)
            self._clients = {client: {lease_id: leases.pop(lease_id), **leases}, **self._clients}
            self._block_began = now
        return lease_id

    def end(self, lease_id: str, now: float) -> None:
        """End the block of a lease, and move the client and the lease to the end of the queue."""
        if self._block_began is not None:
            self._durations.append(now - self._block_began)
            self._block_began = None
        if self._turn_of in self._clients:  # also if the lease is gone: the client had its turn
            leases = self._clients[self._turn_of] = self._clients.pop(self._turn_of)
            if lease_id in leases:
                leases[lease_id] = leases.pop(lease_id)

    def order(self) -> Iterator[str]:
        """Yield the leases in the order of their turns, as if all had blocks."""
        for turn in itertools.zip_longest(*self._clients.values()):
            yield from (lease_id for lease_id in turn if lease_id is not None)

    def standing(self, lease_id: str, now: float) -> Standing:
        """Return the place of a lease in the queue.

        Raises:
            KeyError: the lease does not exist.
        """
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
