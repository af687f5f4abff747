"""The folder of one campaign, and the lock that keeps two programs out of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esm_host.errors import BusyError, DatasetError, RunExistsError, UsageError


class RunFolder:
    """Where a campaign keeps everything: names of its files, nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "store.sqlite"
        self.settings = path / "settings.json"
        self.result = path / "result.json"
        self.predictor = path / "predictor.pt"
        self.predictor_onnx = path / "predictor.onnx"
        self.plots = {
            name: path / f"{name}.png"
            for name in ("predicted_against_measured", "accuracy_by_round", "reference_stability")
        }

    def prepare(self, resume: bool) -> None:
        """Checks that the folder fits what is asked; makes it for a new campaign.

        Raises:
            RunExistsError: it holds a campaign and ``resume`` is false.
            UsageError: it holds none and ``resume`` is true, or it cannot be made.
        """
        if resume:
            if not self.store.exists():
                raise UsageError(f"{self.path} holds no campaign to resume: leave --resume out")
            return
        if self.store.exists():
            raise RunExistsError(
                f"{self.path} holds a campaign: add --resume to go on, or give another --run"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be made: {error.strerror}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive use, given back however the program ends.

        Raises:
            BusyError: another program uses the folder.
        """
        import fcntl

        try:
            handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise BusyError(f"another esm-host is using {self.path}: wait for it to end") from None
        try:
            yield
        finally:
            os.close(handle)
