"""The folder of one campaign, and the lock that keeps two programs out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from esm_host.errors import BusyError, DatasetError, RunExistsError, UsageError
from esm_host.extension.settings import Settings

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_models.space import SearchSpace


class RunFolder:
    """Where a campaign keeps everything: names of its files, nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = path / "store.sqlite"
        self.settings = path / "settings.json"
        self.result = path / "result.json"
        self.predictor_onnx = path / "predictor.onnx"
        self.predictions = path / "predictions.csv"
        self.sources = path / "sources.npz"
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
            if not self.settings.exists():
                raise UsageError(f"{self.path} holds no campaign to resume: leave --resume out")
            return
        if self.settings.exists() or self.store.exists():
            raise RunExistsError(
                f"{self.path} holds a campaign: esm-host profile --run {self.path} --resume goes "
                "on with it; or give another --run"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be made: {error.strerror}") from error

    def read_settings(self) -> Settings:
        """The settings of the folder's campaign.

        Raises:
            UsageError: there is none.
            DatasetError: its settings are damaged.
        """
        try:
            return Settings.from_json(json.loads(self.settings.read_text()))
        except FileNotFoundError:
            raise UsageError(
                f"{self.path} is no campaign: make one with esm-host profile --run {self.path}"
            ) from None
        except ValueError as error:
            raise DatasetError(
                f"{self.settings} is damaged ({error}): restore it from a copy"
            ) from error

    def encoder(self, settings: Settings, space: SearchSpace) -> Encoder:
        """That of the folder's campaign, which knows its sources if it has any.

        Raises:
            UsageError: there is no such encoding, or it does not suit the space.
            DatasetError: what the sources were learnt to be is gone or damaged.
        """
        if not settings.warm_start:
            return settings.encoder(space)
        from esm_host.encoding.sources import SourceModels, SourcesEncoder  # slow to load

        return SourcesEncoder(space, SourceModels.load(self.sources))

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
