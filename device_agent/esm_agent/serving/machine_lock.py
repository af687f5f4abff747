"""Lock that lets one agent of a user measure on this machine at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from esm_protos.locks import lock
from esm_protos.messages import Holder

_MOST_BYTES = 200


class MachineLock:
    """Lock made of two files in a user's folder; a process that dies releases it.

    An agent that waits for the lock holds the file ``next``, so an agent with many blocks cannot
    overtake one that waits for its first. If the folder is not writable or has no locks, agents
    do not wait.

    Args:
        folder: Folder of the user. Machines can share it, so file names contain the hostname.
    """

    def __init__(self, folder: Path) -> None:
        name = socket.gethostname().replace("/", "_")
        self._next_path = folder / f"next-{name}.lock"
        self._path = folder / f"measuring-{name}.lock"
        self._next: IO[bytes] | None = None
        self._held: IO[bytes] | None = None

    def acquire(self, purpose: str) -> bool:
        """Take the lock; if another agent has it, take the next place and return False.

        Args:
            purpose: Purpose to show to waiting agents.
        """
        if self._held is not None:
            return True
        try:
            if self._next is None:
                self._next = _locked(self._next_path)
            self._held = _locked(self._path)
            self._held.truncate(0)
            self._held.write(purpose.encode()[:_MOST_BYTES])
        except BlockingIOError:
            return False
        except OSError:
            return True
        self._next.close()
        self._next = None
        return True

    def release(self) -> None:
        """Release the lock and the place in the queue, if held."""
        for file in (self._held, self._next):
            if file is not None:
                file.close()
        self._held = self._next = None

    def holder(self) -> Holder:
        """Return the holder of the lock."""
        try:
            with self._path.open("rb") as file:
                purpose = file.read(_MOST_BYTES).decode(errors="replace")
        except OSError:
            purpose = ""
        return Holder("another measurement on this machine", purpose or "measure", "", 0.0)


def _locked(path: Path) -> IO[bytes]:
    """Open a file and lock it.

    Raises:
        BlockingIOError: another program holds the lock.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "wb", buffering=0)
    try:
        lock(file, wait=False)
    except OSError:
        file.close()
        raise
    return file
