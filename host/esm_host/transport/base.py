"""Interface of profilers: real agents and fakes implement it and pass the same tests."""

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
    """Ignore progress."""


def busy(device: str, holder: Holder | None) -> BusyError:
    """Return the error for a device that another host uses."""
    who = f"{holder.owner} ({holder.purpose})" if holder else "another host"
    return BusyError(f"{device} is in use by {who}: omit {argument('wait=False')} to wait")


class Pending(ABC):
    """Block that was submitted to a device."""

    bytes_sent: int = 0
    """Payload sent so far, bytes."""

    @abstractmethod
    def result(self, on_progress: OnProgress = ignore) -> BlockResult:
        """Wait for the block and return its result.

        Returns:
            One measurement per model, in the block's order. A model that cannot be measured has a
            failure there and raises nothing.

        Raises:
            UnreachableError: the connection is lost; the block counts as not measured.
            DeviceError: the agent refuses the block.
        """

    @abstractmethod
    def finish(self) -> None:
        """End the measurement early; :meth:`result` then returns the runs so far.

        Callable from another thread. A block that has not started, or whose models are measured
        sequentially, is measured completely. An agent that cannot end a block early cancels it.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the block; without effect if it is already measured."""


class Profiler(ABC):
    """Interface to one device that measures blocks; a context manager for one thread.

    A device measures one block at a time, and the blocks of several hosts in turn. A block
    submitted during another one is sent at once and waits on the device.
    """

    @abstractmethod
    def device_info(self) -> DeviceInfo:
        """Return the current facts and state of the device.

        Raises:
            UnreachableError: no agent answers.
            VersionError: the agent speaks another protocol version.
        """

    @abstractmethod
    def reserve(self, purpose: str, wait: bool = True) -> Standing:
        """Take a place in the device's queue until :meth:`close`.

        Measuring takes a place too. This method states the purpose first and reports the others
        in the queue.

        Args:
            purpose: Purpose shown to others, such as ``"profile resnet"``.
            wait: Whether to wait behind others.

        Raises:
            BusyError: another host uses the device and ``wait`` is False.
            UnreachableError: no agent answers.
            VersionError: the agent speaks another protocol version.
        """

    @abstractmethod
    def submit(self, block: Block) -> Pending:
        """Start to send a block, whose models are measured together; do not wait."""

    def measure(self, block: Block, on_progress: OnProgress = ignore) -> BlockResult:
        """Submit a block and wait for its result.

        Raises:
            UnreachableError, DeviceError: as :meth:`Pending.result`.
        """
        pending = self.submit(block)
        try:
            return pending.result(on_progress)
        finally:
            pending.cancel()

    @abstractmethod
    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        """Diagnose the device for causes of bad measurements; wait while it is busy.

        Args:
            probe_s: Time to run built-in models, 0.1 to 600 s.

        Raises:
            UnreachableError: no agent answers, or the connection is lost.
            VersionError: the agent speaks another protocol version.
            DeviceError: the agent refuses.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the device; a second call has no effect."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
