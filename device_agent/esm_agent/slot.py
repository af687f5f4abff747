"""The measuring slot: one block at a time, leases in turn, on a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator

from esm_agent.lease import EXPIRY_S, Leases, NoLeaseError
from esm_agent.measuring import Hello
from esm_agent.upload import UploadedBlock
from esm_agent.worker import CancelledError, Worker
from esm_protos.messages import BlockResult, Occupancy, Progress, Standing, State

Event = Progress | BlockResult | Exception

_LOOK_S = 0.5
"""How often leases are looked at while nothing happens."""


class DrainingError(Exception):
    """The agent is about to stop: the block is to be sent again to the one that follows it."""


class Ticket:
    """A block's place in its lease's queue, and what becomes of it."""

    def __init__(self, block: UploadedBlock) -> None:
        self.block = block
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._told = Progress(State.QUEUED, 0.0)
        self._events.put(self._told)

    def cancel(self, reason: Exception | None = None) -> None:
        """The client has gone, or its lease: the block is dropped, or its measurement stopped."""
        self._cancelled.set()
        self._events.put(reason or CancelledError("the block was cancelled"))

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def tell(self, event: Event) -> None:
        """Passes an event on; progress only where it moved by a percent or a place."""
        if isinstance(event, Progress):
            old = self._told
            moved = event.fraction - old.fraction >= 0.01
            if event.state is old.state and not moved and _place(event) == _place(old):
                return
            self._told = event
        self._events.put(event)

    def events(self) -> Iterator[Progress | BlockResult]:
        """Progress until the result, which comes last.

        Raises:
            Exception: whatever kept the block from being measured.
        """
        while True:
            event = self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, BlockResult):
                return


def _place(progress: Progress) -> tuple[int, str] | None:
    standing = progress.standing
    if standing is None:
        return None
    return standing.ahead, standing.holder.owner if standing.holder else ""


class Slot:
    """Owns the worker and the leases.

    The thread lives as long as the agent, as the worker's process requires.
    """

    def __init__(self, worker: Worker, expiry_s: float = EXPIRY_S) -> None:
        self._worker = worker
        self._leases = Leases(expiry_s)
        self._tickets: defaultdict[str, deque[Ticket]] = defaultdict(deque)
        self._running: tuple[str, Ticket] | None = None
        self._draining = self._stopped = False
        self._changed = threading.Condition()
        self._hello: queue.SimpleQueue[Hello | Exception] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="esm-slot", daemon=True)

    def start(self) -> Hello:
        """Starts the thread and the worker's process.

        Raises:
            WorkerUnavailableError: the process does not start.
        """
        self._thread.start()
        hello = self._hello.get()
        if isinstance(hello, Exception):
            raise hello
        return hello

    # Leases

    def renew(
        self, lease_id: str, owner: str, purpose: str, client: str, no_wait: bool
    ) -> Standing:
        """As :meth:`esm_agent.lease.Leases.renew`; raises DrainingError before a stop."""
        with self._changed:
            if self._draining:
                raise DrainingError("the agent is stopping")
            self._drop_expired()
            return self._leases.renew(lease_id, owner, purpose, client, no_wait, time.monotonic())

    def release(self, lease_id: str, client: str) -> None:
        with self._changed:
            if self._leases.release(lease_id, client):
                self._drop(lease_id)

    def occupancy(self) -> Occupancy:
        with self._changed:
            self._drop_expired()
            return self._leases.occupancy(time.monotonic(), self._draining)

    # Blocks

    def submit(self, block: UploadedBlock, lease_id: str, client: str) -> Ticket:
        """Queues a block for its lease's turn.

        Raises:
            NoLeaseError: the lease is not alive, or not this client's.
            DrainingError: the agent is about to stop.
        """
        with self._changed:
            if self._draining:
                raise DrainingError("the agent is stopping")
            self._drop_expired()
            self._leases.check(lease_id, client)
            ticket = Ticket(block)
            self._tickets[lease_id].append(ticket)
            self._tell_standings()
            self._changed.notify()
            return ticket

    def drain(self, patience_s: float) -> bool:
        """Takes nothing new, hands waiting blocks back, and waits for the running one.

        Returns:
            Whether that ended in time; else it is stopped by :meth:`stop`.
        """
        deadline = time.monotonic() + patience_s
        with self._changed:
            self._draining = True
            for tickets in self._tickets.values():
                for ticket in tickets:
                    ticket.cancel(DrainingError("the agent is stopping"))
                tickets.clear()
            self._changed.notify_all()
            while self._running is not None:
                if not self._changed.wait(max(deadline - time.monotonic(), 0)):
                    return False
            return True

    def stop(self) -> None:
        """Cancels what is left and ends the thread and the process."""
        self.drain(0)
        with self._changed:
            if self._running is not None:
                self._running[1].cancel(DrainingError("the agent is stopping"))
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    # The thread

    def _loop(self) -> None:
        try:
            self._hello.put(self._worker.start())
        except Exception as error:
            self._hello.put(error)
            return
        while (ticket := self._next()) is not None:
            block = ticket.block
            try:
                event: Event = self._worker.measure(
                    block.block_id, block.spec, block.models, ticket.tell, ticket.is_cancelled
                )
            except Exception as error:  # the slot must outlive any block
                event = error
            with self._changed:
                assert self._running is not None
                self._leases.end(self._running[0], time.monotonic())
                self._running = None
                self._changed.notify_all()
            ticket.tell(event)
        self._worker.stop()

    def _next(self) -> Ticket | None:
        """Waits for the block whose turn it is; None when the agent stops."""
        with self._changed:
            while not self._stopped:
                self._drop_expired()
                self._drop_cancelled()
                ready = {lease_id for lease_id, tickets in self._tickets.items() if tickets}
                lease_id = self._leases.begin(ready, time.monotonic())
                if lease_id is not None:
                    ticket = self._tickets[lease_id].popleft()
                    self._running = lease_id, ticket
                    self._tell_standings()
                    return ticket
                self._changed.wait(_LOOK_S)
            return None

    def _tell_standings(self) -> None:
        now = time.monotonic()
        for lease_id, tickets in self._tickets.items():
            for ticket in tickets:
                standing = self._leases.standing(lease_id, now)
                ticket.tell(Progress(State.QUEUED, 0.0, standing))

    def _drop_cancelled(self) -> None:
        for lease_id, tickets in self._tickets.items():
            self._tickets[lease_id] = deque(t for t in tickets if not t.is_cancelled())

    def _drop_expired(self) -> None:
        for lease_id in self._leases.expire(time.monotonic()):
            self._drop(lease_id)

    def _drop(self, lease_id: str) -> None:
        """A lease has ended: so have its blocks."""
        reason = NoLeaseError("the block's lease has ended")
        for ticket in self._tickets.pop(lease_id, ()):
            ticket.cancel(reason)
        if self._running is not None and self._running[0] == lease_id:
            self._running[1].cancel(reason)
