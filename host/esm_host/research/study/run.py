"""Runs a study: what is not there yet, on as many processors or machines as there are."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Protocol

from esm_host.campaign.folder import RunFolder
from esm_host.errors import EsmError
from esm_host.parallel import map_unordered
from esm_host.research.study.data import read_data
from esm_host.research.study.plan import Planned, plan
from esm_host.research.study.results import Study, StudyFolder, load_study
from esm_host.research.study.settings import StudySettings, read_study
from esm_host.research.study.task import Outcome, compute


class StudyWatcher(Protocol):
    """Is told how a study goes on."""

    def on_planned(self, tasks: int, there: int) -> None:
        """So many tasks in all, of which so many have a result already."""

    def on_task(self, outcome: Outcome) -> None:
        """A task is over and kept."""


def run_study(
    study: StudySettings | str | Path,
    results: str | Path,
    watcher: StudyWatcher | None = None,
) -> Study:
    """Computes what a study's folder does not hold yet; what failed before is tried again.

    Every finished task is kept at once: a study broken off anywhere goes on from there. Tasks are
    computed one after another, unless within ``with esm_host.parallel.parallel(...)``: in several
    processes, or on a cluster.

    Args:
        study: settings, or the path of their TOML file.
        results: folder; made if need be.

    Raises:
        UsageError: the study makes no sense.
        DatasetError: its data are damaged.
        BusyError: another program uses the folder.
        EsmError: processes or the cluster that compute are gone; what is done is kept.
    """
    settings = study if isinstance(study, StudySettings) else read_study(Path(study))
    tasks = plan(settings, read_data(settings))
    folder = StudyFolder(Path(results))
    folder.prepare()
    with RunFolder(folder.path).locked():
        folder.describe(settings, tasks)
        different = {task.key: task for task in tasks}  # two labels of the same: computed once
        pending = [task for key, task in different.items() if not folder.done(key)]
        if watcher is not None:
            watcher.on_planned(len(different), len(different) - len(pending))
        try:
            with closing(map_unordered(_keyed, pending)) as outcomes:
                for key, outcome in outcomes:
                    folder.keep(key, outcome)
                    if watcher is not None:
                        watcher.on_task(outcome)
        except EsmError as error:
            raise type(error)(f"{error.marked}; what is done is kept") from error
    return load_study(folder.path)


def _keyed(planned: Planned) -> tuple[str, Outcome]:
    return planned.key, compute(planned.task)
