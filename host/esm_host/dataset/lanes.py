"""Lanes that turn batches of models into measured blocks: one per device, each always busy.

A single device is measured in the caller's thread. With several devices each lane has its own
thread. Results pass to the caller's thread in the order in which they arrive, so that one thread
stores them.
"""

from __future__ import annotations

import queue
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from esm_host.dataset.settings import MeasuringSettings
from esm_host.errors import EsmError
from esm_host.transport.base import OnProgress, Pending, Profiler
from esm_models.architecture import Architecture
from esm_protos.messages import Block, BlockResult, DeviceInfo, Model, Progress, State

_LEAVE_S = 10.0  # time that a lane gets to end after it is stopped


@dataclass(frozen=True)
class Member:
    """Device of a campaign.

    Attributes:
        name: Name of the device.
        profiler: Profiler of the device.
        impatient: Profiler of the same device that does not wait for its return; None uses
            ``profiler``.
    """

    name: str
    profiler: Profiler
    impatient: Profiler | None = None

    @property
    def at_once(self) -> Profiler:
        """Profiler that fails at once if the device is unreachable."""
        return self.impatient or self.profiler


@dataclass(frozen=True)
class Batch:
    """Architectures of one block, and its models, references included."""

    architectures: list[Architecture]
    models: list[Model]


@dataclass(frozen=True)
class MeasuredBlock:
    """Measured block, and the state of the device after it."""

    device_name: str
    batch: Batch
    block: Block
    result: BlockResult
    device: DeviceInfo
    bytes_sent: int


Check = Callable[[str, DeviceInfo, BlockResult], None]
"""Check of a device's block; raises EsmError if the block must not be kept."""


class Source(Protocol):
    """Source of batches for the lanes; called from all of their threads."""

    error: Exception | None
    """Error that ended the source, not caused by a device; None while there is none."""

    def take(self, device: str, wait: bool) -> Batch | None:
        """Return the next batch for a device, or None.

        Args:
            device: Name of the device.
            wait: Whether to wait for batches that other devices may give back.
        """

    def done(self) -> None:
        """Record that a batch was measured."""

    def give_back(self, batch: Batch) -> None:
        """Return a batch that its device will not measure."""

    def close(self) -> None:
        """Give out no more batches."""


class SharedBatches:
    """Batches for the next free device; returned batches are served first."""

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
        if self.error is not None:  # a failed iterator would look like one that ended
            raise self.error
        try:
            return next(self._batches, None)
        except Exception as error:
            self.error = error
            raise


class SameBatch:
    """Source that gives every device the same batch, once."""

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


def measure_batches(
    members: Sequence[Member],
    source: Source,
    settings: MeasuringSettings,
    check: Check,
    on_progress: Callable[[str, Progress], None],
    on_left: Callable[[Member, EsmError], None],
) -> Generator[MeasuredBlock]:
    """Measure all batches of a source, each on the next free device.

    A device that fails gives its batches back, and the others continue. With a single device the
    error is raised. Close the iterator to cancel running blocks.

    Args:
        members: Devices that measure.
        source: Source of the batches.
        settings: Settings of measuring.
        check: Check of each block.
        on_progress: Callback for the progress of a device's block, with the name of the device.
        on_left: Callback for a device that failed, in the caller's thread. It raises to end all
            lanes.
    """
    lanes = [_Lane(member, source, settings, check) for member in members]
    if len(lanes) == 1:
        name = members[0].name
        yield from lanes[0].blocks(lambda progress: on_progress(name, progress))
        return
    events: queue.SimpleQueue[Callable[[], MeasuredBlock | None]] = queue.SimpleQueue()
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
    """Lane of one device, which keeps the device from waiting for the host.

    The next block is built and sent while the current one is measured. It is complete on the
    device before the last run of the current block.
    """

    def __init__(
        self, member: Member, source: Source, settings: MeasuringSettings, check: Check
    ) -> None:
        self.member = member
        self._source = source
        self._settings = settings
        self._check = check
        self._sent: deque[_Sent] = deque()
        self._stopped = False

    def blocks(self, on_progress: OnProgress) -> Iterator[MeasuredBlock]:
        """Measure until the source is empty."""

        def ahead(progress: Progress) -> None:
            on_progress(progress)
            # Blocks keep their order only if the device has accepted this one.
            if len(self._sent) == 1 and progress.state is not State.QUEUED:
                self._send(wait=False)

        try:
            while self._sent or self._send(wait=True):
                current = self._sent[0]
                result = current.pending.result(ahead)
                # Read afterwards: another device may have taken its place during the wait.
                device = self.member.profiler.device_info()
                self._check(self.member.name, device, result)
                yield MeasuredBlock(
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
        """Cancel all blocks on the device; callable from any thread."""
        self._stopped = True
        for sent in tuple(self._sent):
            sent.pending.cancel()

    def _send(self, wait: bool) -> bool:
        batch = self._source.take(self.member.name, wait)
        if batch is None:
            return False
        settings = self._settings
        block = Block(
            uuid.uuid4().hex,
            settings.spec,
            tuple(batch.models),
            settings.measures_memory,
            energy_s=settings.energy_s,
            raw=settings.raw,
        )
        try:
            self._sent.append(_Sent(batch, block, self.member.profiler.submit(block)))
        except BaseException:
            self._source.give_back(batch)
            raise
        if self._stopped:
            self.stop()
        return True
