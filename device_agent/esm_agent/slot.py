"""The measuring slot: one block at a time, in the order of arrival, on a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from esm_agent.measuring import Hello
from esm_agent.upload import UploadedBlock
from esm_agent.worker import CancelledError, Worker
from esm_protos.messages import BlockResult, Progress, State

Event = Progress | BlockResult | Exception


class Ticket:
    """A block's place in the queue, and what becomes of it."""

    def __init__(self, block: UploadedBlock) -> None:
        self.block = block
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._told = Progress(State.QUEUED, 0.0)
        self._events.put(self._told)

    def cancel(self) -> None:
        """The client has gone: the block is dropped, or its measurement stopped."""
        self._cancelled.set()
        self._events.put(CancelledError())

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def tell(self, event: Event) -> None:
        """Passes an event on; progress only where it moved by a percent."""
        if isinstance(event, Progress):
            old = self._told
            if event.state is old.state and event.fraction - old.fraction < 0.01:
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


class Slot:
    """Owns the worker. The thread lives as long as the agent, as the worker's process requires."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._tickets: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._hello: queue.SimpleQueue[Hello | Exception] = queue.SimpleQueue()
        self._running: Ticket | None = None
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

    def submit(self, block: UploadedBlock) -> Ticket:
        ticket = Ticket(block)
        self._tickets.put(ticket)
        return ticket

    def stop(self) -> None:
        """Cancels the running block and ends the thread and the process."""
        if self._running is not None:
            self._running.cancel()
        self._tickets.put(None)
        self._thread.join()

    def _loop(self) -> None:
        try:
            self._hello.put(self._worker.start())
        except Exception as error:
            self._hello.put(error)
            return
        while (ticket := self._tickets.get()) is not None:
            if ticket.is_cancelled():
                continue
            self._running = ticket
            block = ticket.block
            try:
                ticket.tell(
                    self._worker.measure(
                        block.block_id, block.spec, block.models, ticket.tell, ticket.is_cancelled
                    )
                )
            except CancelledError:
                pass  # the ticket has said so itself
            except Exception as error:  # the slot must outlive any block
                ticket.tell(error)
            self._running = None
        self._worker.stop()
