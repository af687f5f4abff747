"""What a team shares: the campaigns in its store, and folders of them on this machine."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from esm_host.campaign.folder import RESULT, SETTINGS, RunFolder
from esm_host.dataset import database
from esm_host.dataset.database import PostgresSchema
from esm_host.dataset.store import Store
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.extension.settings import Settings
from esm_host.sources.registry import described
from esm_protos.nearest import nearest


@dataclass(frozen=True)
class Campaign:
    """A campaign as a list shows it.

    Attributes:
        device: what it was called where the campaign was last run.
        hostname: of the device; None until it measured something.
        space: name of the search space, and where they are not its own, its settings.
        last_measured_at: ISO 8601, UTC; None likewise.
        running: a host runs it now.
        finished: it has come to an end, and nothing was measured since.
        converged: whether it then had reached its target; None unless it is finished and has one.
    """

    name: str
    device: str
    hostname: str | None
    space: str
    measured_models: int
    last_measured_at: str | None
    running: bool
    finished: bool
    converged: bool | None


def campaigns(store: str) -> tuple[list[Campaign], list[str]]:
    """All campaigns in a shared store, by name; and in a line each, what cannot be read.

    Args:
        store: URL of the database.

    Raises:
        UsageError: it is not one.
        DatasetError: it is out of reach.
    """
    found, problems = [], []
    for name, running in database.campaigns(store).items():
        try:
            found.append(_campaign(PostgresSchema(store, name), running))
        except EsmError as error:
            problems.append(str(error))
    return found, problems


def attach(name: str, path: Path, store: str) -> None:
    """Makes a folder of a campaign that another machine began, or brings it up to date.

    Args:
        store: URL of the database.

    Raises:
        UsageError: there is no such campaign.
        RunExistsError: the folder is another campaign's.
        DatasetError: the store is out of reach, or the campaign has not begun.
        BusyError: another program uses the folder.
    """
    known = database.campaigns(store)
    if name not in known:
        raise UsageError(
            f"there is no campaign '{name}' in {database.without_password(store)}: "
            f"{nearest(name, known)}esm-host campaigns list shows what there is"
        )
    RunFolder(path).attach(PostgresSchema(store, name))


def _campaign(place: PostgresSchema, running: bool) -> Campaign:
    with closing(Store(place)) as store:
        extent, files = store.extent(), place.kept_files()
    if SETTINGS not in files:
        raise DatasetError(f"{place.location} has not begun: --resume begins it on its machine")
    try:
        settings = Settings.from_json(json.loads(files[SETTINGS]))
        result = json.loads(files[RESULT]) if RESULT in files else {}
    except ValueError as error:
        raise DatasetError(
            f"{place.location} has damaged files ({error}): --resume writes them again where it "
            "was run"
        ) from error
    finished = result.get("measured_models") == extent.measured_models
    return Campaign(
        place.name,
        settings.device,
        extent.hostname,
        described(settings),
        extent.measured_models,
        extent.measured_at,
        running,
        finished,
        bool(result["converged"]) if finished and settings.has_target else None,
    )
