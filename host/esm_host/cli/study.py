"""``esm-host study``: a comparison of predictors, encodings and training sizes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.cli.errors import INTERRUPTED, one_line_errors
from esm_host.cli.options import Parallel, Quiet, computing
from esm_protos.text import counted

if TYPE_CHECKING:
    from esm_host.research.study.results import Study
    from esm_host.research.study.task import TaskResult


@one_line_errors
def study(
    file: Annotated[Path, typer.Argument(help="Description of the study.", metavar="FILE.toml")],
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; by default runs/study-FILE.", metavar="DIR"),
    ] = None,
    parallel: Parallel = None,
    only_plots: Annotated[
        bool,
        typer.Option("--only-plots", help="Write tables and plots of the existing results only."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare predictors, encodings and training sizes on public latencies or your campaigns.

    Each finished task is saved. After an interrupt, run the same command to continue.

    Example: esm-host study studies/nasbench201.toml --results runs/nasbench201
    """
    from esm_host.research.study.results import StudyFolder, load_study

    where = results or Path("runs") / f"study-{file.stem}"
    if not only_plots:
        from esm_host.research.study.run import run_study

        try:
            with computing(parallel):
                run_study(file, where, _Progress(quiet))
        except KeyboardInterrupt:
            typer.echo(
                f"interrupted; finished tasks are kept in {where}: the same command continues",
                err=True,
            )
            raise typer.Exit(INTERRUPTED) from None
    found = load_study(where)
    _write(found, StudyFolder(where))
    if found.missing:
        typer.echo(
            f"{counted(found.missing, 'task')} missing: run without --only-plots to compute them"
        )
    failures = found.failures()
    if len(failures):
        first = failures.iloc[0]
        typer.echo(
            f"{counted(len(failures), 'task')} failed; the first, {first['label']} with "
            f"{counted(first['size'], 'sample')} on {first['device']}: {first['failure']}",
            err=True,
        )
        raise typer.Exit(1)


def _write(found: Study, folder: object) -> None:
    from esm_host.cli.table import print_table
    from esm_host.research.study.plots import write_plots
    from esm_host.research.study.results import StudyFolder, write_frame
    from esm_host.research.study.summary import tables

    assert isinstance(folder, StudyFolder)
    results = found.results()
    write_frame(results, folder.results)
    made = tables(results, found.metrics)
    folder.tables.write_text("\n".join(table.markdown() for table in made), encoding="utf-8")
    for table in made:
        print(table.title)
        print_table(table.headings, table.rows, right=range(1, len(table.headings)))
        print()
    plots = write_plots(found, folder.plots)
    typer.echo(f"results in {folder.results}, tables in {folder.tables}", nl=not plots)
    if plots:
        typer.echo(f", {counted(len(plots), 'plot')} in {folder.plots}")


class _Progress:
    """Progress of a study on stderr, a line per task."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._done = self._tasks = 0

    def on_planned(self, tasks: int, there: int) -> None:
        self._done, self._tasks = there, tasks
        if there:
            self._say(f"{there} of {tasks} tasks are done already")

    def on_task(self, outcome: TaskResult) -> None:
        self._done += 1
        rows = outcome.rows
        first = rows.iloc[0]
        came = first["failure"] or f"tau {rows['tau'].mean():.3f}, {rows['fit_s'].sum():.1f} s"
        self._say(
            f"[{self._done}/{self._tasks}] {first['data']} {first['device']} {first['label']} "
            f"{first['size']}: {came}"
        )

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)
