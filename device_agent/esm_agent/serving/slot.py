"""The measuring slot: one block at a time, leases in turn, on a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from esm_agent.measure.block import UploadedBlock
from esm_agent.measure.process import Hello
from esm_agent.measure.worker import CancelledError, Worker
from esm_agent.operation import logs
from esm_agent.operation.metrics import Metrics, Readings
from esm_agent.serving.lease import EXPIRY_S, Leases, NoLeaseError, TooManyError
from esm_agent.serving.machine_lock import MachineLock
from esm_protos.messages import BlockResult, Measurement, Occupancy, Progress, Standing, State

log = logging.getLogger(__name__)

Event = Progress | BlockResult | Exception

_LOOK_S = 0.5
"""How often leases are looked at while nothing happens."""
REST_S = 60.0
"""Without any lease for so long, the measuring process ends, and gives its memory back."""
_MACHINE_S = 0.2
"""Interval at which an agent that waits for the machine looks again."""
_LEASES_S = 1.0
"""How often leases are looked at while there are any."""
MOST_BLOCKS = 64
"""Most blocks of one lease that wait at a time."""
_ID_LETTERS = 8  # of a lease's id in logs: enough to follow it, too few to use it


class DrainingError(Exception):
    """The agent is about to stop: the block is to be sent again to the one that follows it."""


class Facts(NamedTuple):
    """What is logged of a lease and of its blocks."""

    lease: str
    owner: str
    purpose: str
    client: str
    peer: str


class Ticket:
    """A block's place in its lease's queue, and what becomes of it."""

    def __init__(self, block: UploadedBlock, lease_id: str, facts: Facts) -> None:
        self.block = block
        self.lease_id = lease_id
        self.facts = facts
        self.reason: Exception | None = None
        self._cancelled = threading.Event()
        self._finished = threading.Event()
        self._told = Progress(State.QUEUED, 0.0)
        self._events: deque[Event] = deque((self._told,))
        self._changed = threading.Condition()
        self._ready: Callable[[], None] = lambda: None

    def cancel(self, reason: Exception | None = None) -> None:
        """The client has gone, or its lease: the block is dropped, or its measurement stopped."""
        self.reason = self.reason or reason or CancelledError("its client has gone")
        self._cancelled.set()
        self._put(self.reason)

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def finish(self) -> None:
        """End the measuring early, with the runs that were taken."""
        self._finished.set()

    def is_finished(self) -> bool:
        return self._finished.is_set()

    def tell(self, event: Event) -> None:
        """Passes an event on; progress only where it moved by a percent or a place."""
        if isinstance(event, Progress):
            old = self._told
            moved = event.fraction - old.fraction >= 0.01
            if event.state is old.state and not moved and _place(event) == _place(old):
                return
            self._told = event
        self._put(event)

    def listen(self, ready: Callable[[], None]) -> None:
        """Calls ``ready`` whenever there is something to take; there is now."""
        self._ready = ready
        ready()

    def take(self) -> Event | None:
        """The next event; None where there is none yet."""
        with self._changed:
            return self._events.popleft() if self._events else None

    def events(self) -> Iterator[Progress | BlockResult]:
        """Progress until the result, which comes last. Waits for each.

        Raises:
            Exception: whatever kept the block from being measured.
        """
        while True:
            with self._changed:
                while not self._events:
                    self._changed.wait()
                event = self._events.popleft()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, BlockResult):
                return

    def _put(self, event: Event) -> None:
        with self._changed:
            # A client that reads slowly is told of the latest progress only.
            old = self._events[-1] if self._events else None
            if isinstance(event, Progress) and isinstance(old, Progress):
                self._events.pop()
            self._events.append(event)
            self._changed.notify()
        self._ready()


def _place(progress: Progress) -> tuple[int, str] | None:
    standing = progress.standing
    if standing is None:
        return None
    return standing.ahead, standing.holder.owner if standing.holder else ""


class Slot:
    """Owns the worker and the leases.

    The thread lives as long as the agent, as the worker's process requires.

    Args:
        expiry_s: a host that is silent for so long has lost its lease.
        metrics: counts what happens.
        rest_s: the measuring process ends after so long without any lease.
        is_welcome: whether a client may still come in; asked of those that have leases.
        machine: held while a block is measured; None lets other agents measure at the same time.
    """

    def __init__(
        self,
        worker: Worker,
        expiry_s: float = EXPIRY_S,
        metrics: Metrics | None = None,
        rest_s: float = REST_S,
        is_welcome: Callable[[str], bool] = lambda client: True,
        machine: MachineLock | None = None,
    ) -> None:
        self._worker = worker
        self._machine = machine
        self._metrics = metrics or Metrics()
        self._rest_s = rest_s
        self._is_welcome = is_welcome
        self._resting = False
        self._leases = Leases(expiry_s)
        self._facts: dict[str, Facts] = {}
        self._last_turn = ""
        self._tickets: defaultdict[str, deque[Ticket]] = defaultdict(deque)
        self._running: Ticket | None = None
        self._open: set[Ticket] = set()
        self._draining = self._stopped = False
        self._changed = threading.Condition()
        self._hello: queue.SimpleQueue[Hello | Exception] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="esm-slot", daemon=True)
        self._keeper = threading.Thread(target=self._keep, name="esm-leases", daemon=True)

    def start(self) -> Hello:
        """Starts the thread and the worker's process.

        Raises:
            WorkerUnavailableError: the process does not start.
        """
        self._thread.start()
        hello = self._hello.get()
        if isinstance(hello, Exception):
            raise hello
        self._keeper.start()
        return hello

    # Leases

    def renew(
        self, lease_id: str, owner: str, purpose: str, client: str, no_wait: bool, peer: str = ""
    ) -> Standing:
        """As :meth:`~.lease.Leases.renew`; makes none once the agent is stopping."""
        with self._changed:
            self._drop_expired()
            known = lease_id in self._facts
            if self._draining and not known:
                raise _stopping()
            now = time.monotonic()
            if no_wait and not known and not self._facts and not self._take_machine(purpose):
                return self._behind_machine()
            standing = self._leases.renew(lease_id, owner, purpose, client, no_wait, now)
            if no_wait and standing.ahead and not known:
                return standing  # none was made
            self._facts[lease_id] = Facts(lease_id[:_ID_LETTERS], owner, purpose, client, peer)
            if not known:
                self._log_lease("lease made", lease_id)
                self._changed.notify_all()
            return standing

    def release(self, lease_id: str, client: str) -> None:
        with self._changed:
            if self._leases.release(lease_id, client):
                self._log_lease("lease released", lease_id)
                self._drop(lease_id)

    def check_lease(self, lease_id: str, client: str) -> None:
        """Raises NoLeaseError unless the lease is alive and this client's, DrainingError before a
        stop."""
        with self._changed:
            self.check_open()
            self._drop_expired()
            self._leases.check(lease_id, client)

    def lease_lives(self, lease_id: str) -> bool:
        with self._changed:
            self._drop_expired()
            return lease_id in self._facts

    def occupancy(self) -> Occupancy:
        with self._changed:
            self._drop_expired()
            return self._leases.occupancy(time.monotonic(), self._draining)

    # Blocks

    def check_open(self) -> None:
        """Raises DrainingError before a stop: a block would be sent in vain."""
        if self._draining:
            raise _stopping()

    def submit(self, block: UploadedBlock, lease_id: str, client: str) -> Ticket:
        """Queues a block for its lease's turn.

        Raises:
            NoLeaseError: the lease is not alive, or not this client's.
            DrainingError: the agent is about to stop.
            TooManyError: too many of the lease's blocks wait already.
        """
        with self._changed:
            self.check_lease(lease_id, client)
            if len(self._tickets[lease_id]) >= MOST_BLOCKS:
                raise TooManyError(
                    f"{MOST_BLOCKS} blocks of one lease wait already: send more when they are done"
                )
            ticket = Ticket(block, lease_id, self._facts[lease_id])
            self._open.add(ticket)
            self._tickets[lease_id].append(ticket)
            self._tell_standings()
            self._changed.notify_all()
            return ticket

    def finish(self, block_id: str, lease_id: str, client: str) -> None:
        """End the measuring of a block early; do nothing unless it is being measured.

        Raises:
            NoLeaseError: the lease is not alive, or not this client's.
        """
        with self._changed:
            self._drop_expired()
            self._leases.check(lease_id, client)
            running = self._running
            if running and (running.lease_id, running.block.block_id) == (lease_id, block_id):
                running.finish()

    def close(self, ticket: Ticket) -> None:
        """The block's call is over: its client has the result, or has gone and wants none."""
        with self._changed:
            self._open.discard(ticket)
            ticket.cancel()
            waiting = self._tickets.get(ticket.lease_id, ())
            if ticket in waiting:
                self._tickets[ticket.lease_id].remove(ticket)
                self._log_block(ticket, ticket.reason, 0.0)
            self._changed.notify_all()

    def drain(self, patience_s: float) -> bool:
        """Takes nothing new, hands waiting blocks back, and waits for the running one.

        Returns:
            Whether the running block's client has its result in time; else the block is handed
            back by :meth:`stop`.
        """
        deadline = time.monotonic() + patience_s
        with self._changed:
            self._draining = True
            for tickets in self._tickets.values():
                for ticket in tickets:
                    ticket.cancel(_stopping())
                    self._log_block(ticket, ticket.reason, 0.0)
                tickets.clear()
            self._changed.notify_all()
            while self._running is not None or self._open:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            return True

    def stop(self) -> None:
        """Cancels what is left and ends the thread and the process."""
        self.drain(0)
        with self._changed:
            if self._running is not None:
                self._running.cancel(_stopping())
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()
        if self._keeper.is_alive():
            self._keeper.join()

    # The threads

    def _keep(self) -> None:
        """Ends leases in time, also while a long block is measured and nobody calls."""
        while True:
            with self._changed:
                while not (self._facts or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                self._drop_expired()
                clients = self._leases.clients()
            for client in clients:  # without the lock: this reads a file
                if not self._is_welcome(client):
                    self._shut_out(client)
            with self._changed:
                if not self._stopped:
                    self._changed.wait_for(lambda: self._stopped, _LEASES_S)

    def _shut_out(self, client: str) -> None:
        with self._changed:
            for lease_id in self._leases.end_all(client):
                self._log_lease("lease revoked", lease_id, logging.WARNING)
                self._drop(lease_id)
            self._changed.notify_all()

    def _loop(self) -> None:
        try:
            self._hello.put(self._worker.start())
        except Exception as error:
            self._hello.put(error)
            return
        while (ticket := self._next()) is not None:
            block = ticket.block
            self._await_machine(ticket)
            began = time.monotonic()
            try:
                self._wake()
                event: Event = self._worker.measure(
                    block, ticket.tell, ticket.is_cancelled, ticket.is_finished
                )
            except Exception as error:  # the slot must outlive any block
                event = error
            with self._changed:
                self._leases.end(ticket.lease_id, time.monotonic())
                self._log_block(ticket, event, time.monotonic() - began)
                self._running = None
                self._leave_machine()
                self._changed.notify_all()
            ticket.tell(event)
        self._worker.stop()

    def _next(self) -> Ticket | None:
        """Waits for the block whose turn it is; None when the agent stops."""
        with self._changed:
            idle_since = time.monotonic()
            while not self._stopped:
                self._drop_expired()
                ready = {lease_id for lease_id, tickets in self._tickets.items() if tickets}
                lease_id = self._leases.begin(ready, time.monotonic())
                if lease_id is not None:
                    ticket = self._tickets[lease_id].popleft()
                    self._running = ticket
                    if lease_id != self._last_turn:
                        self._log_lease("lease has its turn", lease_id)
                        self._last_turn = lease_id
                    self._tell_standings()
                    return ticket
                if self._facts:
                    idle_since = time.monotonic()
                elif not self._resting and time.monotonic() - idle_since > self._rest_s:
                    self._worker.stop()
                    self._resting = True
                self._changed.wait(_LOOK_S)
            return None

    def _wake(self) -> None:
        if self._resting:
            self._worker.start()
            self._resting = False

    def _await_machine(self, ticket: Ticket) -> None:
        with self._changed:
            while not (
                ticket.is_cancelled() or self._take_machine(ticket.facts.purpose, wait=True)
            ):
                ticket.tell(Progress(State.QUEUED, 0.0, self._behind_machine()))
                self._changed.wait(_MACHINE_S)

    def _take_machine(self, purpose: str, wait: bool = False) -> bool:
        """Whether this agent may measure now; with ``wait`` it keeps its place in the queue."""
        if self._machine is None or self._machine.acquire(purpose):
            return True
        if not wait:
            self._machine.release()
        return False

    def _behind_machine(self) -> Standing:
        assert self._machine is not None
        return Standing(1, self._machine.holder(), 0.0, 0.0)

    def _leave_machine(self) -> None:
        if self._machine is not None:
            self._machine.release()

    def _tell_standings(self) -> None:
        for lease_id, standing in self._leases.standings(time.monotonic()):
            for ticket in self._tickets.get(lease_id, ()):
                ticket.tell(Progress(State.QUEUED, 0.0, standing))

    def _drop_expired(self) -> None:
        for lease_id in self._leases.expire(time.monotonic()):
            self._metrics.lease_expired()
            self._log_lease("lease expired", lease_id, logging.WARNING)
            self._drop(lease_id)

    def _drop(self, lease_id: str) -> None:
        """A lease has ended: so have its blocks."""
        reason = NoLeaseError("the block's lease has ended")
        del self._facts[lease_id]
        for ticket in self._tickets.pop(lease_id, ()):
            ticket.cancel(reason)
            self._log_block(ticket, ticket.reason, 0.0)
        if self._running is None and not self._facts:
            self._leave_machine()
        if self._running is not None and self._running.lease_id == lease_id:
            self._running.cancel(reason)

    # What is told to whoever watches over the agent

    def readings(self) -> Readings:
        """What the agent is like at the moment."""
        with self._changed:
            return Readings(len(self._facts), self._worker.restarts, self._worker.pid)

    def _log_lease(self, text: str, lease_id: str, level: int = logging.INFO) -> None:
        logs.event(log, level, text, **self._facts[lease_id]._asdict())

    def _log_block(self, ticket: Ticket, event: Event | None, took_s: float) -> None:
        """Once for every block that was taken, whatever became of it."""
        fields = {"block_id": ticket.block.block_id, **ticket.facts._asdict()}
        fields |= {"models": len(ticket.block.models), "duration_s": round(took_s, 3)}
        if isinstance(event, BlockResult):
            outcomes = Counter(_outcome(m) for m in event.measurements)
            fields["failures"] = outcomes.total() - outcomes["ok"]
            fields["busy_s"] = round(event.busy_ns / 1e9, 3)
            self._metrics.block_ended("measured", outcomes, event.busy_ns / 1e9)
            logs.event(log, logging.INFO, "block measured", **fields)
            return
        reason = ticket.reason or event  # what stopped it, and not that it was stopped
        outcome = next((name for kind, name in _ENDS if isinstance(reason, kind)), "failed")
        self._metrics.block_ended(outcome, {}, 0.0)
        logs.event(log, logging.WARNING, f"block {outcome}", **fields, reason=str(reason))


_ENDS: tuple[tuple[type[Exception], str], ...] = (
    (DrainingError, "handed back"),
    (NoLeaseError, "dropped"),
    (CancelledError, "cancelled"),
)
"""What is said of a block that was not measured; "failed" of all others."""


def _outcome(measurement: Measurement) -> str:
    return "ok" if measurement.failure is None else measurement.failure.kind.value


def _stopping() -> DrainingError:
    return DrainingError("the agent is stopping")
