"""Run of a study, which computes its missing results."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Protocol

from esm_host.campaign.folder import RunFolder
from esm_host.errors import EsmError
from esm_host.parallel import map_unordered
from esm_host.research.study.data import read_data
from esm_host.research.study.plan import PlannedTask, plan
from esm_host.research.study.results import Study, StudyFolder, load_study
from esm_host.research.study.settings import StudySettings, read_study
from esm_host.research.study.task import TaskResult, compute
from esm_host.typed import typed


class StudyWatcher(Protocol):
    """Observer of a study."""

    def on_planned(self, tasks: int, there: int) -> None:
        """Receive the number of tasks, and of those with a result."""

    def on_task(self, outcome: TaskResult) -> None:
        """Receive the result of a finished task, after it is kept."""


@typed
def run_study(
    study: StudySettings | str | Path,
    results: str | Path,
    watcher: StudyWatcher | None = None,
) -> Study:
    """Compute the missing results of a study; failed tasks are tried again.

    Every result is kept at once, so an interrupted study resumes. Tasks run one by one, unless
    within ``with esm_host.parallel.parallel(...)``: then in several processes or on a cluster.

    Args:
        study: Settings, or the path of their TOML file.
        results: Folder of the results, which is made.
        watcher: Observer; None for none.

    Raises:
        UsageError: the settings are wrong.
        DatasetError: the data are damaged.
        BusyError: another program uses the folder.
        EsmError: the worker processes or the cluster failed; finished results are kept.
    """
    settings = study if isinstance(study, StudySettings) else read_study(Path(study))
    tasks = plan(settings, read_data(settings))
    folder = StudyFolder(Path(results))
    folder.prepare()
    with RunFolder(folder.path).locked():
        folder.describe(settings, tasks)
        different = {task.key: task for task in tasks}  # equal tasks of two labels run once
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
            raise type(error)(f"{error.marked}; finished results are kept") from error
    return load_study(folder.path)


def _keyed(planned: PlannedTask) -> tuple[str, TaskResult]:
    return planned.key, compute(planned.task)
