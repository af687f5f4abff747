"""The right to measure on this machine, which one agent of a user has at a time."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import IO

from esm_protos.locks import lock
from esm_protos.messages import Holder

_MOST_BYTES = 200


class MachineLock:
    """Locked files in a user's folder, which are free again once their process has died.

    An agent waits with the file ``next`` locked until it has the other one. So one with many blocks
    does not overtake another that waits for its first. Where the folder cannot be written, or has
    no locks, nobody waits.

    Args:
        folder: of the user's; the files' names have the machine's, as several may share it.
    """

    def __init__(self, folder: Path) -> None:
        name = socket.gethostname().replace("/", "_")
        self._next_path = folder / f"next-{name}.lock"
        self._path = folder / f"measuring-{name}.lock"
        self._next: IO[bytes] | None = None
        self._held: IO[bytes] | None = None

    def acquire(self, purpose: str) -> bool:
        """Take the lock, or a place before all that come later; False if another agent has it.

        Args:
            purpose: shown to others that wait.
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
        """Give back what :meth:`acquire` took, if anything."""
        for file in (self._held, self._next):
            if file is not None:
                file.close()
        self._held = self._next = None

    def holder(self) -> Holder:
        """Return what to say of the agent that has the lock."""
        try:
            with self._path.open("rb") as file:
                purpose = file.read(_MOST_BYTES).decode(errors="replace")
        except OSError:
            purpose = ""
        return Holder("another measurement on this machine", purpose or "measure", "", 0.0)


def _locked(path: Path) -> IO[bytes]:
    """Open a file, locked; raise BlockingIOError if another program has it locked."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "wb", buffering=0)
    try:
        lock(file, wait=False)
    except OSError:
        file.close()
        raise
    return file
