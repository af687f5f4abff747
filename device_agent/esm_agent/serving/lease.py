"""Whose turn it is: leases in a queue, each alive for as long as its host says so.

No threads and no gRPC in here: callers hold a lock, and pass the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from dataclasses import dataclass

from esm_protos.messages import Holder, Occupancy, Standing

EXPIRY_S = 30.0
"""A lease that is not renewed for so long is gone, and its blocks with it."""

_FIRST_GUESS_S = 10.0  # of a block's duration, before there was one
_REMEMBERED = 8  # blocks whose durations tell how long the next ones will take


class NoLeaseError(Exception):
    """The lease is unknown: it expired, was released, or is somebody else's."""


@dataclass
class _Lease:
    owner: str
    purpose: str
    client: str
    made: float
    expires: float


class Leases:
    """The queue. Its first lease holds the device; while others wait, for one block at a time.

    Args:
        expiry_s: a lease lives so long after it was renewed.
    """

    def __init__(self, expiry_s: float = EXPIRY_S) -> None:
        self._expiry_s = expiry_s
        self._queue: dict[str, _Lease] = {}
        self._block_began: float | None = None
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)

    def renew(
        self, lease_id: str, owner: str, purpose: str, client: str, no_wait: bool, now: float
    ) -> Standing:
        """Keeps a lease alive, or makes it, at the end of the queue.

        With ``no_wait`` none is made where there are others; the standing says who.

        Raises:
            NoLeaseError: the id is another client's.
        """
        lease = self._queue.get(lease_id)
        if lease is None:
            if no_wait and self._queue:
                return self._standing(len(self._queue), 0.0, now)
            lease = _Lease(owner, purpose, client, made=now, expires=now)
            self._queue[lease_id] = lease
        elif lease.client != client:
            raise NoLeaseError("this lease is another client's")
        lease.owner, lease.purpose = owner, purpose
        lease.expires = now + self._expiry_s
        return self.standing(lease_id, now)

    def check(self, lease_id: str, client: str) -> None:
        """Raises NoLeaseError unless the lease is alive and this client's."""
        lease = self._queue.get(lease_id)
        if lease is None or lease.client != client:
            raise NoLeaseError("the block's lease has ended")

    def release(self, lease_id: str, client: str) -> bool:
        """Ends a lease; False where it is gone already, or another client's."""
        lease = self._queue.get(lease_id)
        if lease is None or lease.client != client:
            return False
        del self._queue[lease_id]
        return True

    def expire(self, now: float) -> list[str]:
        """Ends the leases whose hosts have gone silent, and names them."""
        gone = [lease_id for lease_id, lease in self._queue.items() if lease.expires <= now]
        for lease_id in gone:
            del self._queue[lease_id]
        return gone

    def begin(self, ready: Container[str], now: float) -> str | None:
        """The turn goes to the first lease that is ready, and a block of it begins."""
        lease_id = next((each for each in self._queue if each in ready), None)
        if lease_id is not None:
            self._queue = {lease_id: self._queue.pop(lease_id), **self._queue}
            self._block_began = now
        return lease_id

    def end(self, lease_id: str, now: float) -> None:
        """Its block is over: the lease goes to the end of the queue, if it is still alive."""
        if self._block_began is not None:
            self._durations.append(now - self._block_began)
            self._block_began = None
        if lease_id in self._queue:
            self._queue[lease_id] = self._queue.pop(lease_id)

    def standing(self, lease_id: str, now: float) -> Standing:
        """Raises KeyError where there is no such lease."""
        expires_s = self._queue[lease_id].expires - now
        return self._standing(list(self._queue).index(lease_id), expires_s, now)

    def occupancy(self, now: float, draining: bool = False) -> Occupancy:
        return Occupancy(self._holder(now), max(len(self._queue) - 1, 0), draining)

    def _standing(self, ahead: int, expires_s: float, now: float) -> Standing:
        count = len(self._durations)
        block_s = sum(self._durations) / count if count else _FIRST_GUESS_S
        begun_s = now - self._block_began if self._block_began is not None else 0.0
        wait_s = ahead * block_s - min(begun_s, block_s) if ahead else 0.0
        return Standing(ahead, self._holder(now), wait_s, expires_s)

    def _holder(self, now: float) -> Holder | None:
        lease = next(iter(self._queue.values()), None)
        if lease is None:
            return None
        return Holder(lease.owner, lease.purpose, lease.client, now - lease.made)
