"""The seam between the host and whatever measures: real agents and fakes pass the same tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from esm_host.arguments import argument
from esm_host.errors import BusyError
from esm_protos.messages import (
    Block,
    BlockResult,
    DeviceInfo,
    Diagnosis,
    Holder,
    Progress,
    Standing,
)

OnProgress = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Who does not care for progress."""


def busy(device: str, holder: Holder | None) -> BusyError:
    """What to say of a device that is somebody else's."""
    who = f"{holder.owner} ({holder.purpose})" if holder else "somebody else"
    return BusyError(f"{device} is in use by {who}: leave out {argument('wait=False')} to wait")


class Pending(ABC):
    """A block on its way to the device, or there, or measured already."""

    bytes_sent: int = 0
    """Payload sent for it so far."""

    @abstractmethod
    def result(self, on_progress: OnProgress = ignore) -> BlockResult:
        """Waits for the block.

        Returns:
            One measurement per model, in the block's order. A model that cannot be measured is
            a failure in there, not an exception.

        Raises:
            UnreachableError: the connection is lost; the block counts as not measured.
            DeviceError: the agent refuses the block.
        """

    @abstractmethod
    def finish(self) -> None:
        """End the measuring early, from another thread: :meth:`result` then returns what was
        measured until now.

        A block that is not being measured yet, or whose models are not measured in turn, is
        measured to its end. An agent that cannot end a block early has it cancelled.
        """

    @abstractmethod
    def cancel(self) -> None:
        """The block is not wanted any more; does no harm when it is measured already."""


class Profiler(ABC):
    """Measures blocks on one device. Use as a context manager, from one thread.

    A device measures one block at a time, those of several hosts in turn. A block submitted
    while another one is measured is sent at once and waits on the device.
    """

    @abstractmethod
    def device_info(self) -> DeviceInfo:
        """What the device is, asked anew each time.

        Raises:
            UnreachableError: nobody answers.
            VersionError: the agent speaks another protocol version.
        """

    @abstractmethod
    def reserve(self, purpose: str, wait: bool = True) -> Standing:
        """Takes a place in the queue for the device, kept until :meth:`close`.

        Measuring takes one anyhow; this says first what for, and who else is there.

        Args:
            purpose: shown to others, ``"profile resnet"``.
            wait: False takes no place behind others.

        Raises:
            BusyError: the device is somebody else's and ``wait`` is False.
            UnreachableError: nobody answers.
            VersionError: the agent speaks another protocol version.
        """

    @abstractmethod
    def submit(self, block: Block) -> Pending:
        """Begins to send a block, whose models are measured together; does not wait."""

    def measure(self, block: Block, on_progress: OnProgress = ignore) -> BlockResult:
        """Submits a block and waits for it; raises as :meth:`Pending.result`."""
        pending = self.submit(block)
        try:
            return pending.result(on_progress)
        finally:
            pending.cancel()

    @abstractmethod
    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        """Looks for what would spoil measurements; waits while the device is busy.

        Args:
            probe_s: how long built-in models are timed for it, 0.1 to 600 seconds.

        Raises:
            UnreachableError: nobody answers, or the connection is lost.
            VersionError: the agent speaks another protocol version.
            DeviceError: the agent refuses.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of the device; calling it twice does no harm."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
