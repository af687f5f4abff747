"""Folder of one campaign, and the lock that keeps a second program out of it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from esm_host.arguments import argument, either
from esm_host.atomic import write_bytes, write_json
from esm_host.dataset.campaign_metric import CAMPAIGN_METRICS, LATENCY, CampaignMetric
from esm_host.dataset.database import (
    ID_FACT,
    Database,
    PostgresSchema,
    SqliteFile,
    without_password,
)
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.errors import BusyError, DatasetError, MismatchError, RunExistsError, UsageError
from esm_host.extension.settings import Settings, TrainingSettings
from esm_host.plugins import own_failures
from esm_host.predictors import make_predictor

if TYPE_CHECKING:
    from esm_host.encoding.base import Encoder
    from esm_host.encoding.sources import SourcesEncoder
    from esm_host.predictors.base import Predictor
    from esm_host.transfer.kept import KeptMethod
    from esm_models.space import SearchSpace

SETTINGS, RESULT = "settings.json", "result.json"


class MetricFiles(NamedTuple):
    """Files of a metric: its predictor as ONNX, and its held-out predictions."""

    onnx: Path
    predictions: Path


def resume_command(path: Path) -> str:
    """Return, marked, the command that resumes a campaign."""
    return either(f"esm_host.resume('{path}')", f"esm-host profile --run {path} --resume")


class RunFolder:
    """Folder of a campaign: the names of its files, and its store.

    Args:
        path: Path of the folder.
        store: URL of the PostgreSQL database for the store of a new campaign; empty for a file.
            An old campaign keeps its store.

    Raises:
        UsageError: the URL is invalid, or the folder's name cannot be the name of a schema.
        DatasetError: the PostgreSQL driver is not installed.
    """

    def __init__(self, path: Path, store: str = "") -> None:
        self.path = path
        self.store = path / "store.sqlite"
        self.shared_store = path / "store.json"
        self.settings = path / SETTINGS
        self.result = path / RESULT
        self.sources = path / "sources.npz"
        self.method = path / "method.npz"
        self.plots = {
            name: path / f"{name}.png"
            for name in ("predicted_against_measured", "accuracy_by_round", "reference_stability")
        }
        name = Path(os.path.abspath(path)).name
        self._new = PostgresSchema(store, name, uuid.uuid4().hex) if store else None

    def files(self, metric: CampaignMetric) -> MetricFiles:
        """Return the files of a metric."""
        end = "" if metric == LATENCY else f"-{metric.name}"
        return MetricFiles(self.path / f"predictor{end}.onnx", self.path / f"predictions{end}.csv")

    def keep_onnx(self, predictor: Predictor, metric: CampaignMetric = LATENCY) -> None:
        """Write a predictor as ONNX; an earlier file goes if the predictor has no such form.

        Raises:
            EsmError: a class from a user's file fails.
            OSError: the file cannot be written.
        """
        with own_failures(predictor):
            exported = predictor.to_onnx()
        path = self.files(metric).onnx
        if exported is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, exported)

    @cached_property
    def database(self) -> Database:
        """Database of the campaign's store."""
        if not self.settings.exists():
            return self._new or SqliteFile(self.store)
        link = self._read_link()
        return PostgresSchema(*link) if link else SqliteFile(self.store)

    @property
    def shared(self) -> PostgresSchema | None:
        """Database of the team, if the campaign is shared; else None."""
        return self.database if isinstance(self.database, PostgresSchema) else None

    def open_store(self, make: bool = False) -> Store:
        """Open the campaign's store.

        Args:
            make: Whether to create a missing store.

        Raises:
            DatasetError: the store is missing, unusable or unreachable.
            MismatchError: the store now belongs to another campaign.
        """
        if not make and not self.database.exists():
            raise DatasetError(
                f"{self.path} holds no measurements yet: {resume_command(self.path)} begins them"
            )
        return Store(self.database)

    def has_models(self) -> bool:
        """Return whether models are measured, besides the references.

        Raises:
            DatasetError: the store is unusable or unreachable.
        """
        if not self.database.exists():
            return False
        with closing(self.open_store()) as store:
            return any(block.round != REFERENCE_ROUND for block in store.blocks())

    def prepare(self, resume: bool) -> None:
        """Create the folder of a new campaign, or check and refresh that of an old one.

        Args:
            resume: Whether to continue the folder's campaign.

        Raises:
            RunExistsError: ``resume`` is false, and the folder or the shared store holds a
                campaign of this name.
            UsageError: ``resume`` is true and the folder holds no campaign, or the folder cannot
                be created.
            DatasetError: the shared store is unreachable.
            BusyError: another program uses the folder of a shared campaign.
        """
        if resume:
            if not self.settings.exists():
                raise UsageError(
                    f"{self.path} holds no campaign to resume: omit {argument('resume')}"
                )
            self.refresh()
            return
        if self.settings.exists() or self.store.exists():
            raise RunExistsError(
                f"{self.path} holds a campaign: {resume_command(self.path)} continues it; or give "
                f"another {argument('run')}"
            )
        if self._new is not None:
            self._new.check_new()
        self._make()

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be created: {error.strerror}") from error

    def read_settings(self) -> Settings:
        """Return the settings of the folder's campaign.

        Raises:
            UsageError: the folder holds no campaign.
            DatasetError: the settings are damaged.
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
            raise UsageError(f"{self.path} is not a campaign: create one with {making}") from None
        except ValueError as error:
            raise DatasetError(
                f"{self.settings} is damaged ({error}): restore it from a copy"
            ) from error

    def encoder(self, settings: TrainingSettings, space: SearchSpace) -> Encoder:
        """Return the encoder of the campaign's predictor, with its sources if it has any.

        Raises:
            UsageError: the encoding does not exist or does not suit the space.
            DatasetError: the file of the sources is missing or damaged.
        """
        if not settings.warm_start or settings.adapts:
            return settings.encoder(space)
        return self.sources_encoder(space)

    def sources_encoder(self, space: SearchSpace) -> SourcesEncoder:
        """Return the encoder with the predictions of the campaign's sources.

        Raises:
            DatasetError: the file of the sources is missing or damaged.
        """
        from esm_host.encoding.sources import SourceModels, SourcesEncoder  # slow to load

        return SourcesEncoder(space, SourceModels.load(self.sources))

    def kept_method(self, settings: TrainingSettings, space: SearchSpace) -> KeptMethod:
        """Return the campaign's few-shot method from its folder."""
        from esm_host.transfer.kept import KeptMethod  # slow to load

        name, options = settings.method, settings.method_options
        return KeptMethod(self.method, space, name, options, settings.seed)

    def predictors(
        self, settings: TrainingSettings, encoder: Encoder
    ) -> Callable[[int], Predictor]:
        """Return a factory of the campaign's unfitted predictors, by committee member.

        Raises:
            UsageError: the predictor does not exist or cannot use the encoding.
        """
        if settings.adapts:
            from esm_host.transfer.adapted import AdaptedPredictor  # slow to load

            kept = self.kept_method(settings, encoder.space)
            return lambda member: AdaptedPredictor(kept.learnt)
        return lambda member: make_predictor(settings.predictor, encoder, settings.seed + member)

    # Sharing

    def refresh(self) -> None:
        """Update the folder from the shared store, if the campaign is shared.

        Raises:
            MismatchError: the shared store now holds another campaign of this name.
            DatasetError: the shared store is unreachable.
            BusyError: another program uses the folder.
        """
        if (shared := self.shared) is not None and shared.exists():
            with closing(Store(shared)), self._locked_here():  # checks the campaign's id
                self._write(shared.kept_files())

    def share(self) -> None:
        """Copy the folder's files into a shared store, so that other machines can restore them.

        Raises:
            DatasetError: the database is unreachable or full.
        """
        if self.shared is not None:
            files = (path for path in self._copied if path.exists())
            self.shared.keep_files({path.name: path.read_bytes() for path in files})

    def attach(self, database: PostgresSchema) -> None:
        """Create or update the folder of a campaign that another machine began.

        Args:
            database: Database of the campaign.

        Raises:
            RunExistsError: the folder holds another campaign.
            DatasetError: the database is unreachable, or the campaign has not begun.
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
        """Check that the campaign is in a shared store.

        Raises:
            MismatchError: its store is elsewhere.
        """
        if self.settings.exists() and (
            self.shared is None or self.shared.url != without_password(url)
        ):
            where = self.shared.url if self.shared else self.store
            raise MismatchError(f"{self.path} has its store in {where}: omit {argument('store')}")

    @property
    def _copied(self) -> tuple[Path, ...]:
        """Files beside the store; the settings come last, because they mark a complete folder."""
        return (
            self.sources,
            self.method,
            *(path for each in CAMPAIGN_METRICS.values() for path in self.files(each)),
            self.result,
            self.settings,
        )

    def _write(self, files: Mapping[str, bytes]) -> None:
        """Write these files and delete the others; do nothing without settings."""
        if self.settings.name not in files:
            return
        for path in self._copied:
            if path.name in files:
                write_bytes(path, files[path.name])
            else:
                path.unlink(missing_ok=True)

    def _read_link(self) -> tuple[str, str, str] | None:
        """Return the URL of the shared store, and the campaign's name and id there."""
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
        """Lock the folder and the shared store; the lock ends with the program at the latest.

        Raises:
            BusyError: another program uses the folder, or another host runs the campaign.
            DatasetError: the folder cannot be written, or the shared store is unreachable.
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
                    f"{self.path} is on a file system without locks, where two programs could "
                    "overwrite each other's files: choose a folder on a local disk"
                )
            yield
        finally:
            os.close(handle)
