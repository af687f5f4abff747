"""The folder of one campaign, and the lock that keeps two programs out of it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from esm_host.arguments import argument, either
from esm_host.atomic import write_bytes, write_json
from esm_host.dataset.database import (
    ID_FACT,
    Database,
    PostgresSchema,
    SqliteFile,
    without_password,
)
from esm_host.dataset.store import Store
from esm_host.errors import BusyError, DatasetError, MismatchError, RunExistsError, UsageError
from esm_host.extension.settings import Settings, TrainingSettings
from esm_host.predictors import make_predictor

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_host.encoding.sources import SourcesEncoder
    from esm_host.predictors.base import Predictor
    from esm_host.transfer.kept import KeptMethod
    from esm_models.space import SearchSpace

SETTINGS, RESULT = "settings.json", "result.json"


def resuming(path: Path) -> str:
    """Return, marked, what goes on with a campaign."""
    return either(f"esm_host.resume('{path}')", f"esm-host profile --run {path} --resume")


class RunFolder:
    """Where a campaign keeps everything: names of its files, and its store.

    Args:
        store: URL of the PostgreSQL database that a new campaign's records are to be in; those
            of an old one are where they are.

    Raises:
        UsageError: the URL is not one, or the folder's name cannot be a campaign's there.
        DatasetError: the database's driver is missing.
    """

    def __init__(self, path: Path, store: str = "") -> None:
        self.path = path
        self.store = path / "store.sqlite"
        self.shared_store = path / "store.json"
        self.settings = path / SETTINGS
        self.result = path / RESULT
        self.predictor_onnx = path / "predictor.onnx"
        self.predictions = path / "predictions.csv"
        self.sources = path / "sources.npz"
        self.method = path / "method.npz"
        self.plots = {
            name: path / f"{name}.png"
            for name in ("predicted_against_measured", "accuracy_by_round", "reference_stability")
        }
        name = Path(os.path.abspath(path)).name
        self._new = PostgresSchema(store, name, uuid.uuid4().hex) if store else None

    @cached_property
    def database(self) -> Database:
        """Of the campaign's records."""
        if not self.settings.exists():
            return self._new or SqliteFile(self.store)
        link = self._read_link()
        return PostgresSchema(*link) if link else SqliteFile(self.store)

    @property
    def shared(self) -> PostgresSchema | None:
        """The database, where it is one that a team shares."""
        return self.database if isinstance(self.database, PostgresSchema) else None

    def open_store(self, make: bool = False) -> Store:
        """The campaign's store.

        Args:
            make: where there is none yet.

        Raises:
            DatasetError: there is none, or it is unusable or out of reach.
            MismatchError: it is another campaign's by now.
        """
        if not make and not self.database.exists():
            raise DatasetError(
                f"{self.path} holds no measurements yet: {resuming(self.path)} begins"
            )
        return Store(self.database)

    def prepare(self, resume: bool) -> None:
        """Checks that the folder fits what is asked; makes it for a new campaign, brings that of
        a shared one up to date.

        Raises:
            RunExistsError: there is a campaign in it, or of its name in the shared store, and
                ``resume`` is false.
            UsageError: it holds none and ``resume`` is true, or it cannot be made.
            DatasetError: the shared store is out of reach.
            BusyError: another program uses the folder of a shared campaign.
        """
        if resume:
            if not self.settings.exists():
                raise UsageError(
                    f"{self.path} holds no campaign to resume: leave {argument('resume')} out"
                )
            self.refresh()
            return
        if self.settings.exists() or self.store.exists():
            raise RunExistsError(
                f"{self.path} holds a campaign: {resuming(self.path)} goes on with it; or give "
                f"another {argument('run')}"
            )
        if self._new is not None:
            self._new.check_new()
        self._make()

    def _make(self) -> None:
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
            data = json.loads(self.settings.read_text())
            if isinstance(data, dict) and "runs" in data:
                raise UsageError(
                    f"{self.path} is a search, not a campaign: give {' '.join(data['runs'])}"
                )
            return Settings.from_json(data)
        except (FileNotFoundError, NotADirectoryError):
            making = either("esm_host.profile", f"esm-host profile --run {self.path}")
            raise UsageError(f"{self.path} is no campaign: make one with {making}") from None
        except ValueError as error:
            raise DatasetError(
                f"{self.settings} is damaged ({error}): restore it from a copy"
            ) from error

    def encoder(self, settings: TrainingSettings, space: SearchSpace) -> Encoder:
        """That of the folder's campaign, which knows its sources if it has any.

        Raises:
            UsageError: there is no such encoding, or it does not suit the space.
            DatasetError: what the sources were learnt to be is gone or damaged.
        """
        if not settings.warm_start or settings.adapts:
            return settings.encoder(space)
        return self.sources_encoder(space)

    def sources_encoder(self, space: SearchSpace) -> SourcesEncoder:
        """Return the encoder that knows what the campaign's sources expect.

        Raises:
            DatasetError: what the sources were learnt to be is gone or damaged.
        """
        from esm_host.encoding.sources import SourceModels, SourcesEncoder  # slow to load

        return SourcesEncoder(space, SourceModels.load(self.sources))

    def kept_method(self, settings: TrainingSettings, space: SearchSpace) -> KeptMethod:
        """Return the campaign's few-shot method, as its folder has it."""
        from esm_host.transfer.kept import KeptMethod  # slow to load

        name, options = settings.method, settings.method_options
        return KeptMethod(self.method, space, name, options, settings.seed)

    def predictors(
        self, settings: TrainingSettings, encoder: Encoder
    ) -> Callable[[int], Predictor]:
        """Return what makes the campaign's predictor, unfitted, by the number of the member.

        Raises:
            UsageError: there is no such predictor, or it cannot learn from the encoding.
        """
        if settings.adapts:
            from esm_host.transfer.adapted import AdaptedPredictor  # slow to load

            kept = self.kept_method(settings, encoder.space)
            return lambda member: AdaptedPredictor(kept.learnt)
        return lambda member: make_predictor(settings.predictor, encoder, settings.seed + member)

    # Sharing

    def refresh(self) -> None:
        """Gets what other hosts have made of the campaign, where it is shared.

        Raises:
            MismatchError: it is another campaign's name by now.
            DatasetError: the shared store is out of reach.
            BusyError: another program uses the folder.
        """
        if (shared := self.shared) is not None and shared.exists():
            with closing(Store(shared)), self._locked_here():  # which says whether it is ours
                self._write(shared.kept_files())

    def share(self) -> None:
        """Copies of the files beside a shared store go into it, so that other machines can make
        the folder.

        Raises:
            DatasetError: the database is out of reach or full.
        """
        if self.shared is not None:
            files = (path for path in self._copied if path.exists())
            self.shared.keep_files({path.name: path.read_bytes() for path in files})

    def attach(self, database: PostgresSchema) -> None:
        """Makes the folder of a campaign that another machine began, or brings it up to date.

        Raises:
            RunExistsError: it is the folder of another campaign.
            DatasetError: the database is out of reach, or the campaign has not begun.
            BusyError: another program uses the folder.
        """
        with closing(Store(database)) as store:
            campaign_id, files = store.fact(ID_FACT), database.kept_files()
        if self.settings.name not in files:
            resume = either("esm_host.resume", "--resume")
            raise DatasetError(
                f"{database.location} has not begun: {resume} begins it on its machine"
            )
        if self.settings.exists() or self.store.exists():
            link = self._read_link()
            if link is None or link[2] != campaign_id:
                raise RunExistsError(f"{self.path} holds another campaign: give another folder")
        self._make()
        with self._locked_here():
            self._write_link(database.url, database.name, campaign_id)
            self._write(files)

    def check_store(self, url: str) -> None:
        """Raises MismatchError unless the campaign is in that shared store."""
        if self.settings.exists() and (
            self.shared is None or self.shared.url != without_password(url)
        ):
            where = self.shared.url if self.shared else self.store
            raise MismatchError(
                f"{self.path} has its records in {where}: leave {argument('store')} out"
            )

    @property
    def _copied(self) -> tuple[Path, ...]:
        """Files beside the store; settings last, which make a folder a campaign's."""
        return (
            self.sources,
            self.method,
            self.predictor_onnx,
            self.predictions,
            self.result,
            self.settings,
        )

    def _write(self, files: Mapping[str, bytes]) -> None:
        """The files beside the store, and no others; nothing where none were kept."""
        if self.settings.name not in files:
            return
        for path in self._copied:
            if path.name in files:
                write_bytes(path, files[path.name])
            else:
                path.unlink(missing_ok=True)

    def _read_link(self) -> tuple[str, str, str] | None:
        """Of the shared store: its URL, and the campaign's name and id there."""
        try:
            data = json.loads(self.shared_store.read_text())
            return str(data["store"]), str(data["campaign"]), str(data["id"])
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.shared_store} is damaged ({error}): esm-host campaigns attach writes it "
                "again in another folder"
            ) from error

    def _write_link(self, url: str, name: str, campaign_id: str) -> None:
        write_json(self.shared_store, {"store": url, "campaign": name, "id": campaign_id})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclusive use, of the shared store too, given back however the program ends.

        Raises:
            BusyError: another program uses the folder, or another host runs the campaign.
            DatasetError: the folder cannot be written, or the shared store is out of reach.
        """
        with self._locked_here():
            if (shared := self.shared) is None:
                yield
                return
            with shared.held():
                if not self.settings.exists():
                    self._write_link(shared.url, shared.name, shared.facts[ID_FACT])
                yield

    @contextmanager
    def _locked_here(self) -> Iterator[None]:
        from esm_protos.locks import lock

        try:
            handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise DatasetError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            locked = lock(handle, wait=False)
        except BlockingIOError:
            os.close(handle)
            raise BusyError(f"another esm-host is using {self.path}: wait for it to end") from None
        try:
            if not locked:
                raise DatasetError(
                    f"{self.path} is on a file system without locks, where two programs would "
                    "spoil each other's work: choose a folder on a disk of this machine"
                )
            yield
        finally:
            os.close(handle)
