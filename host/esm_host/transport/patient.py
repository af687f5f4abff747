"""Profiler that waits for an unreachable device, so that a reboot does not end a campaign."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from esm_host.arguments import argument
from esm_host.errors import DeviceError, NotNowError, UnreachableError
from esm_host.transport.base import OnProgress, Pending, Profiler, ignore
from esm_protos.messages import Block, BlockResult, DeviceInfo, Diagnosis, Standing

_MAX_LOSSES = 10
"""Lost connections of one block after which the block itself is taken as the cause."""

T = TypeVar("T")


class PatientProfiler(Profiler):
    """Profiler that repeats failed calls until the device answers or the patience ends.

    Sending a block again is safe, because a block without an answer is not stored.

    Args:
        inner: Profiler of the device.
        patience_s: Longest time to wait for the device, s.
        on_wait: Callback with the reason, before each wait.
        pause_s: Time between two attempts, s.
    """

    def __init__(
        self,
        inner: Profiler,
        patience_s: float,
        on_wait: Callable[[str], None] = lambda reason: None,
        pause_s: float = 1.0,
    ) -> None:
        self._inner = inner
        self._patience_s = patience_s
        self._on_wait = on_wait
        self._pause_s = pause_s

    def device_info(self) -> DeviceInfo:
        return self._patiently(self._inner.device_info)

    def diagnose(self, probe_s: float = 10.0) -> Diagnosis:
        return self._patiently(lambda: self._inner.diagnose(probe_s))

    def reserve(self, purpose: str, wait: bool = True) -> Standing:
        return self._patiently(lambda: self._inner.reserve(purpose, wait))

    def submit(self, block: Block) -> Pending:
        return _Pending(self, block)

    def submit_once(self, block: Block) -> Pending:
        """Submit a block without repeating."""
        return self._inner.submit(block)

    def wait(
        self, error: DeviceError, since: float | None, unwanted: threading.Event | None = None
    ) -> float:
        """Wait until the device answers.

        Args:
            error: Error to raise when the patience ends.
            since: Start of the same trouble; None if it is new.
            unwanted: Event that ends the wait with the error; None for none.

        Returns:
            Start of the trouble.
        """
        unwanted = unwanted or threading.Event()
        now = time.monotonic()
        if unwanted.is_set():
            raise error
        if since is None:
            self._on_wait(str(error))
        elif now - since > self._patience_s:
            raise error
        unwanted.wait(self._pause_s)
        self._patiently(self._inner.device_info, unwanted)
        return now if since is None else since

    def close(self) -> None:
        self._inner.close()

    def _patiently(self, call: Callable[[], T], unwanted: threading.Event | None = None) -> T:
        unwanted = unwanted or threading.Event()
        deadline = time.monotonic() + self._patience_s
        told = False
        while True:
            try:
                return call()
            except (NotNowError, UnreachableError) as error:
                if time.monotonic() >= deadline or unwanted.is_set():
                    raise
                if not told:
                    self._on_wait(f"{error} Waiting for the device.")
                    told = True
                unwanted.wait(self._pause_s)


class _Pending(Pending):
    """Block that is submitted again each time the device is lost, up to a limit."""

    def __init__(self, profiler: PatientProfiler, block: Block) -> None:
        self._profiler = profiler
        self._block = block
        self._sent_before = 0
        self._unwanted = threading.Event()
        self._current = profiler.submit_once(block)

    @property
    def bytes_sent(self) -> int:  # type: ignore[override]
        return self._sent_before + self._current.bytes_sent

    def result(self, on_progress: OnProgress = ignore) -> BlockResult:
        """Return the result of the block.

        Raises:
            DeviceError: the device was lost too often during the block.
        """
        losses = 0
        refused_since: float | None = None
        while True:
            try:
                return self._current.result(on_progress)
            except NotNowError as error:
                refused_since = self._profiler.wait(error, refused_since, self._unwanted)
            except UnreachableError as error:
                losses += 1
                if losses == _MAX_LOSSES:
                    raise DeviceError(
                        f"the agent was lost {losses} times during one block, perhaps for lack of "
                        f"memory: give a smaller {argument('block_size')}"
                    ) from error
                self._profiler.wait(error, None, self._unwanted)
                refused_since = None
            self._sent_before += self._current.bytes_sent
            self._current = self._profiler.submit_once(self._block)
            if self._unwanted.is_set():  # set by another thread meanwhile
                self._current.cancel()

    def finish(self) -> None:
        self._current.finish()

    def cancel(self) -> None:
        self._unwanted.set()
        self._current.cancel()
