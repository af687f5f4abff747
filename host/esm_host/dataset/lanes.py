"""Batches of models go in, measured blocks come out: one lane per device, each always busy.

One device is measured on in the caller's thread. Several have a thread each; what they bring is
handed over in the caller's thread, in the order in which it comes, so that one thread stores it.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from esm_host.errors import EsmError
from esm_host.transport.base import OnProgress, Pending, Profiler
from esm_models.architecture import Architecture
from esm_protos.messages import Block, BlockResult, DeviceInfo, MeasureSpec, Model, Progress, State

_LEAVE_S = 10.0  # what a lane may take to end once it is told to


@dataclass(frozen=True)
class Member:
    """A device of a campaign.

    Attributes:
        name: what users call it.
        impatient: the same device, without waiting for it to come back.
    """

    name: str
    profiler: Profiler
    impatient: Profiler | None = None

    @property
    def at_once(self) -> Profiler:
        """Answers or fails without waiting for a device that went away."""
        return self.impatient or self.profiler


@dataclass(frozen=True)
class Batch:
    """Architectures of one block, and its models, references included."""

    architectures: list[Architecture]
    models: list[Model]


@dataclass(frozen=True)
class Finished:
    """A measured block, and the device as it was afterwards."""

    device_name: str
    batch: Batch
    block: Block
    result: BlockResult
    device: DeviceInfo
    bytes_sent: int


Check = Callable[[str, DeviceInfo, BlockResult], None]
"""Raises an EsmError unless a device's block is one to keep."""


class Source(Protocol):
    """Where lanes get their batches; called from all of their threads."""

    error: Exception | None
    """Why no batch can be made any more, which is no device's fault."""

    def take(self, device: str, wait: bool) -> Batch | None:
        """The next batch for a device, or None.

        Args:
            wait: whether to wait for what other devices may give back.
        """

    def done(self) -> None:
        """A batch that was taken has been measured."""

    def give_back(self, batch: Batch) -> None:
        """A batch that was taken will not be measured by its taker."""

    def close(self) -> None:
        """Nothing is given out any more."""


class Shared:
    """Batches for whoever is free; those that are given back come first."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.error: Exception | None = None
        self._batches = batches
        self._returned: deque[Batch] = deque()
        self._out = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, device: str, wait: bool) -> Batch | None:
        with self._changed:
            while not self._closed:
                batch = self._returned.popleft() if self._returned else self._made()
                if batch is not None:
                    self._out += 1
                    return batch
                if not (wait and self._out):
                    return None
                self._changed.wait()
        return None

    def done(self) -> None:
        with self._changed:
            self._out -= 1
            self._changed.notify_all()

    def give_back(self, batch: Batch) -> None:
        with self._changed:
            self._returned.append(batch)
            self._out -= 1
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _made(self) -> Batch | None:
        if self.error is not None:  # an iterator that failed once looks as if it had ended
            raise self.error
        try:
            return next(self._batches, None)
        except Exception as error:
            self.error = error
            raise


class OneEach:
    """The same batch for every device, once."""

    error: Exception | None = None

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._served: set[str] = set()

    def take(self, device: str, wait: bool) -> Batch | None:
        if device in self._served:
            return None
        self._served.add(device)
        return self._batch

    def done(self) -> None:
        pass

    def give_back(self, batch: Batch) -> None:
        pass

    def close(self) -> None:
        pass


def measured(
    members: Sequence[Member],
    source: Source,
    spec: MeasureSpec,
    check: Check,
    on_progress: Callable[[str, Progress], None],
    on_left: Callable[[Member, EsmError], None],
) -> Generator[Finished]:
    """Measures all batches of a source, each on the next device that is free.

    A device that fails gives its batches back, and the others go on; of a single device the error
    is raised. Close the iterator to cancel what is on the devices.

    Args:
        on_left: told of a device that failed, in the caller's thread; raises to end it all.
    """
    lanes = [_Lane(member, source, spec, check) for member in members]
    if len(lanes) == 1:
        name = members[0].name
        yield from lanes[0].blocks(lambda progress: on_progress(name, progress))
        return
    events: queue.SimpleQueue[Callable[[], Finished | None]] = queue.SimpleQueue()
    running = set(lanes)

    def left(lane: _Lane, error: BaseException | None) -> None:
        running.discard(lane)
        if isinstance(error, EsmError) and error is not source.error:
            on_left(lane.member, error)
        elif error is not None:
            raise error

    def work(lane: _Lane) -> None:
        def told(progress: Progress) -> None:
            events.put(lambda: on_progress(lane.member.name, progress))

        failure: BaseException | None = None
        try:
            for finished in lane.blocks(told):
                events.put(lambda finished=finished: finished)  # type: ignore[misc]
        except BaseException as error:
            failure = error
        events.put(lambda: left(lane, failure))

    threads = [
        threading.Thread(target=work, args=(lane,), name=f"esm-{lane.member.name}", daemon=True)
        for lane in lanes
    ]
    try:
        for thread in threads:
            thread.start()
        while running:
            if (finished := events.get()()) is not None:
                yield finished
    finally:
        source.close()
        for lane in lanes:
            lane.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join(_LEAVE_S)


@dataclass(frozen=True)
class _Sent:
    batch: Batch
    block: Block
    pending: Pending


class _Lane:
    """The next block is built and sent while one is measured, so that the device never waits for
    the host: it is on the device, whole, before the last run of the one before it."""

    def __init__(self, member: Member, source: Source, spec: MeasureSpec, check: Check) -> None:
        self.member = member
        self._source = source
        self._spec = spec
        self._check = check
        self._sent: deque[_Sent] = deque()
        self._stopped = False

    def blocks(self, on_progress: OnProgress) -> Iterator[Finished]:
        """Measures until the source has nothing left."""

        def ahead(progress: Progress) -> None:
            on_progress(progress)
            # Not before the device has taken this one: blocks are to come in their order.
            if len(self._sent) == 1 and progress.state is not State.QUEUED:
                self._send(wait=False)

        try:
            while self._sent or self._send(wait=True):
                current = self._sent[0]
                result = current.pending.result(ahead)
                # Asked afterwards: the device may have gone and another come while it waited.
                device = self.member.profiler.device_info()
                self._check(self.member.name, device, result)
                yield Finished(
                    self.member.name,
                    current.batch,
                    current.block,
                    result,
                    device,
                    current.pending.bytes_sent,
                )
                self._sent.popleft()
                self._source.done()
        finally:
            self.stop()
            for sent in self._sent:
                self._source.give_back(sent.batch)

    def stop(self) -> None:
        """Cancels what is on the device; from any thread."""
        self._stopped = True
        for sent in tuple(self._sent):
            sent.pending.cancel()

    def _send(self, wait: bool) -> bool:
        batch = self._source.take(self.member.name, wait)
        if batch is None:
            return False
        block = Block(uuid.uuid4().hex, self._spec, tuple(batch.models))
        try:
            self._sent.append(_Sent(batch, block, self.member.profiler.submit(block)))
        except BaseException:
            self._source.give_back(batch)
            raise
        if self._stopped:
            self.stop()
        return True
