"""Campaigns in the shared store of a team, and their folders on this machine."""

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
from esm_host.sources.registry import describe_settings
from esm_host.typed import typed
from esm_protos.nearest import unknown


@dataclass(frozen=True)
class Campaign:
    """Campaign in a list.

    Attributes:
        name: Name of the campaign.
        device: Name of the device on the host that last ran the campaign.
        hostname: Host name of the device; None without measurements.
        space: Name of the search space, with its settings if they are not the defaults.
        measured_models: Number of measured architectures.
        last_measured_at: Time of the last block, ISO 8601 in UTC; None without measurements.
        running: Whether a host runs the campaign now.
        finished: Whether the campaign ended, and nothing was measured since.
        converged: Whether it reached its target; None if it is not finished or has no target.
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


@typed
def campaigns(store: str) -> tuple[list[Campaign], list[str]]:
    """Return all campaigns in a shared store by name, and one line per unreadable campaign.

    Args:
        store: URL of the database.

    Raises:
        UsageError: the URL is invalid.
        DatasetError: the database is unreachable.
    """
    found, problems = [], []
    for name, running in database.campaigns(store).items():
        try:
            found.append(_campaign(PostgresSchema(store, name), running))
        except EsmError as error:
            problems.append(str(error))
    return found, problems


@typed
def attach(name: str, path: str | Path, store: str) -> None:
    """Create or update the folder of a campaign that another machine began.

    Args:
        name: Name of the campaign.
        path: Path of the folder.
        store: URL of the database.

    Raises:
        UsageError: the campaign does not exist.
        RunExistsError: the folder holds another campaign.
        DatasetError: the store is unreachable, or the campaign has not begun.
        BusyError: another program uses the folder.
    """
    known = database.campaigns(store)
    if name not in known:
        raise UsageError(
            unknown(
                "campaign",
                name,
                known,
                where=f"in {database.without_password(store)}",
                choices="see esm-host campaigns list",
            )
        )
    RunFolder(Path(path)).attach(PostgresSchema(store, name))


def _campaign(place: PostgresSchema, running: bool) -> Campaign:
    with closing(Store(place)) as store:
        extent, files = store.extent(), place.kept_files()
    if SETTINGS not in files:
        raise DatasetError(
            f"{place.location} has not begun: esm-host profile --resume on its machine begins it"
        )
    try:
        settings = Settings.from_json(json.loads(files[SETTINGS]))
        result = json.loads(files[RESULT]) if RESULT in files else {}
    except ValueError as error:
        raise DatasetError(
            f"{place.location} has damaged files ({error}): esm-host profile --resume on its "
            "machine writes them again"
        ) from error
    finished = result.get("measured_models") == extent.measured_models
    return Campaign(
        place.name,
        settings.device,
        extent.hostname,
        describe_settings(settings),
        extent.measured_models,
        extent.measured_at,
        running,
        finished,
        bool(result["converged"]) if finished and settings.has_target else None,
    )
