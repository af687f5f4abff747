"""Measuring slot, which measures one block at a time on a thread of its own."""

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
"""Interval between checks for expired leases while the slot waits, seconds."""
REST_S = 60.0
"""Time without a lease after which the measuring process ends, to free its memory, seconds."""
_MACHINE_S = 0.2
"""Interval between attempts to take the machine's lock, seconds."""
_LEASES_S = 1.0
"""Interval between checks of the leases' clients, seconds."""
_STILL_S = 10.0
"""Interval between reports of a block that is still loading, seconds."""
MOST_BLOCKS = 64
"""Maximum number of waiting blocks of a lease."""
_ID_LETTERS = 8  # characters of a lease's id in logs, too few to use the lease


class DrainingError(Exception):
    """Error while the agent is stopping; the host sends the block again later."""


class LeaseFacts(NamedTuple):
    """Facts of a lease for the log."""

    lease: str
    owner: str
    purpose: str
    client: str
    peer: str


class Ticket:
    """Block in the queue, with its events."""

    def __init__(self, block: UploadedBlock, lease_id: str, facts: LeaseFacts) -> None:
        self.block = block
        self.lease_id = lease_id
        self.facts = facts
        self.reason: Exception | None = None
        self._cancelled = threading.Event()
        self._finish = threading.Event()
        self._last_progress = Progress(State.QUEUED, 0.0)
        self._reported = time.monotonic()
        self._events: deque[Event] = deque((self._last_progress,))
        self._changed = threading.Condition()
        self._ready: Callable[[], None] = lambda: None

    def cancel(self, reason: Exception | None = None) -> None:
        """Drop the block, or stop its measurement; by default because its client disconnected."""
        self.reason = self.reason or reason or CancelledError("its client has disconnected")
        self._cancelled.set()
        self._put(self.reason)

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def finish(self) -> None:
        """End the measurement early, with the runs so far."""
        self._finish.set()

    def finish_requested(self) -> bool:
        return self._finish.is_set()

    def report(self, event: Event) -> None:
        """Add an event; skip progress below one percent in the same place of the queue.

        Loading, which may take minutes, is repeated.
        """
        if isinstance(event, Progress):
            old = self._last_progress
            now = time.monotonic()
            moved = event.fraction - old.fraction >= 0.01
            still = event.state is State.PREPARING and now - self._reported >= _STILL_S
            same = event.state is old.state and _place(event) == _place(old)
            if same and not (moved or still):
                return
            self._last_progress, self._reported = event, now
        self._put(event)

    def listen(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` now, and whenever there is an event to take."""
        self._ready = ready
        ready()

    def take(self) -> Event | None:
        """Return the next event; None if there is none yet."""
        with self._changed:
            return self._events.popleft() if self._events else None

    def events(self) -> Iterator[Progress | BlockResult]:
        """Wait for and yield each progress and, last, the result.

        Raises:
            Exception: the reason why the block was not measured.
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
            # A slow client gets only the latest progress.
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
    """Measuring slot with its worker and the queue of leases.

    The measuring thread must outlive every block, because the worker's process ends with the
    thread that started it.

    Args:
        worker: Worker that measures the blocks.
        expiry_s: Time without a renewal after which a lease expires, seconds.
        metrics: Receiver of the counters.
        rest_s: Time without a lease after which the measuring process ends, seconds.
        has_access: Function that returns whether a client with a lease still has access.
        machine: Lock to hold while a block is measured; None if other agents may measure too.
    """

    def __init__(
        self,
        worker: Worker,
        expiry_s: float = EXPIRY_S,
        metrics: Metrics | None = None,
        rest_s: float = REST_S,
        has_access: Callable[[str], bool] = lambda client: True,
        machine: MachineLock | None = None,
    ) -> None:
        self._worker = worker
        self._machine = machine
        self._metrics = metrics or Metrics()
        self._rest_s = rest_s
        self._has_access = has_access
        self._resting = False
        self._leases = Leases(expiry_s)
        self._facts: dict[str, LeaseFacts] = {}
        self._last_turn = ""
        self._tickets: defaultdict[str, deque[Ticket]] = defaultdict(deque)
        self._running: Ticket | None = None
        self._active_calls: set[Ticket] = set()
        self._draining = self._stopped = False
        self._changed = threading.Condition()
        self._hello: queue.SimpleQueue[Hello | Exception] = queue.SimpleQueue()
        self._measuring_thread = threading.Thread(
            target=self._measure_blocks, name="esm-slot", daemon=True
        )
        self._lease_thread = threading.Thread(
            target=self._end_leases, name="esm-leases", daemon=True
        )

    def start(self) -> Hello:
        """Start the thread and the worker's process.

        Raises:
            WorkerUnavailableError: the process does not start.
        """
        self._measuring_thread.start()
        hello = self._hello.get()
        if isinstance(hello, Exception):
            raise hello
        self._lease_thread.start()
        return hello

    # Leases

    def renew(
        self, lease_id: str, owner: str, purpose: str, client: str, wait: bool, peer: str = ""
    ) -> Standing:
        """Renew or create a lease as :meth:`~.lease.Leases.renew`.

        Without ``wait``, no lease is created if the device or the machine's lock is held.

        Raises:
            DrainingError: the lease is new, and the agent is stopping.
        """
        with self._changed:
            self._drop_expired()
            known = lease_id in self._facts
            if self._draining and not known:
                raise _stopping()
            now = time.monotonic()
            may_wait = wait or known
            if not (may_wait or self._facts or self._take_machine(purpose)):
                return self._machine_standing()
            standing = self._leases.renew(lease_id, owner, purpose, client, wait, now)
            if standing.ahead and not may_wait:
                return standing  # no lease was created
            self._facts[lease_id] = LeaseFacts(lease_id[:_ID_LETTERS], owner, purpose, client, peer)
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
        """Check that a lease is valid and this client's.

        Raises:
            NoLeaseError: it is not.
            DrainingError: the agent is stopping.
        """
        with self._changed:
            self.check_open()
            self._drop_expired()
            self._leases.check(lease_id, client)

    def has_lease(self, lease_id: str) -> bool:
        with self._changed:
            self._drop_expired()
            return lease_id in self._facts

    def occupancy(self) -> Occupancy:
        with self._changed:
            self._drop_expired()
            return self._leases.occupancy(time.monotonic(), self._draining)

    # Blocks

    def check_open(self) -> None:
        """Raise an error if the agent no longer accepts blocks.

        Raises:
            DrainingError: the agent is stopping.
        """
        if self._draining:
            raise _stopping()

    def submit(self, block: UploadedBlock, lease_id: str, client: str) -> Ticket:
        """Queue a block until its lease's turn.

        Raises:
            NoLeaseError: the lease is not valid, or not this client's.
            DrainingError: the agent is stopping.
            TooManyError: the lease has the maximum number of waiting blocks.
        """
        with self._changed:
            self.check_lease(lease_id, client)
            if len(self._tickets[lease_id]) >= MOST_BLOCKS:
                raise TooManyError(
                    f"{MOST_BLOCKS} blocks of this lease are waiting: send more when they are done"
                )
            ticket = Ticket(block, lease_id, self._facts[lease_id])
            self._active_calls.add(ticket)
            self._tickets[lease_id].append(ticket)
            self._report_standings()
            self._changed.notify_all()
            return ticket

    def finish(self, block_id: str, lease_id: str, client: str) -> None:
        """End the measurement of a block early; do nothing if it is not running.

        Raises:
            NoLeaseError: the lease is not valid, or not this client's.
        """
        with self._changed:
            self._drop_expired()
            self._leases.check(lease_id, client)
            running = self._running
            if running and (running.lease_id, running.block.block_id) == (lease_id, block_id):
                running.finish()

    def close(self, ticket: Ticket) -> None:
        """Close a block whose call has ended; drop it from the queue or cancel its measurement."""
        with self._changed:
            self._active_calls.discard(ticket)
            ticket.cancel()
            waiting = self._tickets.get(ticket.lease_id, ())
            if ticket in waiting:
                self._tickets[ticket.lease_id].remove(ticket)
                self._log_block(ticket, ticket.reason, 0.0)
            self._changed.notify_all()

    def drain(self, patience_s: float) -> bool:
        """Reject new and waiting blocks with DrainingError; wait for the running block's result.

        Args:
            patience_s: Maximum time to wait, seconds.

        Returns:
            Whether the running block's result was sent in time. If not, :meth:`stop` cancels it.
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
            while self._running is not None or self._active_calls:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            return True

    def stop(self) -> None:
        """Cancel the remaining blocks, and end the thread and the process."""
        self.drain(0)
        with self._changed:
            if self._running is not None:
                self._running.cancel(_stopping())
            self._stopped = True
            self._changed.notify_all()
        self._measuring_thread.join()
        if self._lease_thread.is_alive():
            self._lease_thread.join()

    # The threads

    def _end_leases(self) -> None:
        """End expired and revoked leases, also during a long block."""
        while True:
            with self._changed:
                while not (self._facts or self._stopped):
                    self._changed.wait()
                if self._stopped:
                    return
                self._drop_expired()
                clients = self._leases.clients()
            for client in clients:  # without the lock, because this reads a file
                if not self._has_access(client):
                    self._revoke(client)
            with self._changed:
                if not self._stopped:
                    self._changed.wait_for(lambda: self._stopped, _LEASES_S)

    def _revoke(self, client: str) -> None:
        """End the leases of a client that no longer has access."""
        with self._changed:
            for lease_id in self._leases.end_all(client):
                self._log_lease("lease revoked", lease_id, logging.WARNING)
                self._drop(lease_id)
            self._changed.notify_all()

    def _measure_blocks(self) -> None:
        """Measure block after block until the agent stops."""
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
                    block, ticket.report, ticket.is_cancelled, ticket.finish_requested
                )
            except Exception as error:  # the slot must survive any error of a block
                event = error
            with self._changed:
                self._leases.end(ticket.lease_id, time.monotonic())
                self._log_block(ticket, event, time.monotonic() - began)
                self._running = None
                self._leave_machine()
                self._changed.notify_all()
            ticket.report(event)
        self._worker.stop()

    def _next(self) -> Ticket | None:
        """Wait for the next block; return None when the agent stops."""
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
                    self._report_standings()
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
        """Wait for the machine's lock, or until the block is cancelled."""
        with self._changed:
            while not (
                ticket.is_cancelled() or self._take_machine(ticket.facts.purpose, keep_place=True)
            ):
                ticket.report(Progress(State.QUEUED, 0.0, self._machine_standing()))
                self._changed.wait(_MACHINE_S)

    def _take_machine(self, purpose: str, keep_place: bool = False) -> bool:
        """Try to take the machine's lock without blocking, and return whether it is taken.

        If another agent holds it, give up the place in its queue unless ``keep_place``.
        """
        if self._machine is None or self._machine.acquire(purpose):
            return True
        if not keep_place:
            self._machine.release()
        return False

    def _machine_standing(self) -> Standing:
        """Return the place behind the agent that holds the machine's lock."""
        assert self._machine is not None
        return Standing(1, self._machine.holder(), 0.0, 0.0)

    def _leave_machine(self) -> None:
        if self._machine is not None:
            self._machine.release()

    def _report_standings(self) -> None:
        for lease_id, standing in self._leases.standings(time.monotonic()):
            for ticket in self._tickets.get(lease_id, ()):
                ticket.report(Progress(State.QUEUED, 0.0, standing))

    def _drop_expired(self) -> None:
        for lease_id in self._leases.expire(time.monotonic()):
            self._metrics.lease_expired()
            self._log_lease("lease expired", lease_id, logging.WARNING)
            self._drop(lease_id)

    def _drop(self, lease_id: str) -> None:
        """Drop the blocks of a lease that has ended."""
        reason = NoLeaseError("the block's lease has ended")
        del self._facts[lease_id]
        for ticket in self._tickets.pop(lease_id, ()):
            ticket.cancel(reason)
            self._log_block(ticket, ticket.reason, 0.0)
        if self._running is None and not self._facts:
            self._leave_machine()
        if self._running is not None and self._running.lease_id == lease_id:
            self._running.cancel(reason)

    # Monitoring

    def readings(self) -> Readings:
        """Return the current state of the agent."""
        with self._changed:
            return Readings(len(self._facts), self._worker.restarts, self._worker.pid)

    def _log_lease(self, text: str, lease_id: str, level: int = logging.INFO) -> None:
        logs.event(log, level, text, **self._facts[lease_id]._asdict())

    def _log_block(self, ticket: Ticket, event: Event | None, took_s: float) -> None:
        """Log the outcome of a block, once for every accepted block."""
        fields = {"block_id": ticket.block.block_id, **ticket.facts._asdict()}
        fields |= {"models": len(ticket.block.models), "duration_s": round(took_s, 3)}
        if isinstance(event, BlockResult):
            outcomes = Counter(_outcome(m) for m in event.measurements)
            fields["failures"] = outcomes.total() - outcomes["ok"]
            fields["busy_s"] = round(event.busy_ns / 1e9, 3)
            self._metrics.block_ended("measured", outcomes, event.busy_ns / 1e9)
            logs.event(log, logging.INFO, "block measured", **fields)
            return
        reason = ticket.reason or event  # the cause of a cancellation, not the cancellation
        outcome = next((name for kind, name in _OUTCOMES if isinstance(reason, kind)), "failed")
        self._metrics.block_ended(outcome, {}, 0.0)
        logs.event(log, logging.WARNING, f"block {outcome}", **fields, reason=str(reason))


_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (DrainingError, "handed back"),
    (NoLeaseError, "dropped"),
    (CancelledError, "cancelled"),
)
"""Outcome of a block that was not measured, by error; "failed" for other errors."""


def _outcome(measurement: Measurement) -> str:
    return "ok" if measurement.failure is None else measurement.failure.kind.value


def _stopping() -> DrainingError:
    return DrainingError("the agent is stopping")
