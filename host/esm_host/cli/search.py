"""``esm-host search``: search for architectures within limits, verified by measurement."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.arguments import on_command_line
from esm_host.cli.errors import INTERRUPTED, one_line_errors
from esm_host.cli.option_groups import SessionOptions, grouped
from esm_host.cli.options import (
    OWN,
    InContext,
    computing,
    read_context,
    search_methods,
    was_given,
)
from esm_host.errors import UsageError
from esm_host.search.methods import METHODS
from esm_protos.text import counted

if TYPE_CHECKING:
    from esm_host.search.settings import SearchFolder, SearchSettings
    from esm_host.search.verify import Round
    from esm_host.workflows.search import SearchResult

NOTHING_FOUND = 3
_SHOWN = 20
_LIMITS, _HOW = "Limits", "How"


@dataclass(frozen=True)
class WishOptions:
    """Objectives and limits of the search."""

    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="Objective besides the latency: energy, peak_memory, energy_delay (energy times "
            "latency), flops, params, memory, or NAME=SOURCE with table.parquet:COLUMN, "
            "file.py:FUNCTION or file.onnx:ENCODING as SOURCE. Append :min or :max for the "
            "direction. May be repeated. [default: flops:max]",
        ),
    ] = None
    max_latency: Annotated[
        list[float] | None,
        typer.Option(
            help="Latency limit, ms; with several devices one for all, or one per RUN.",
            rich_help_panel=_LIMITS,
        ),
    ] = None
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Least value of the objective accuracy.", rich_help_panel=_LIMITS),
    ] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="Limit on another quantity: 'flops<=3e8', 'energy_mj<=5', "
            "'peak_rss_bytes<=6e7'. May be repeated.",
            rich_help_panel=_LIMITS,
        ),
    ] = None
    confidence: Annotated[
        float,
        typer.Option(
            help="Least probability that a latency, an energy or a peak memory is within its "
            "limit, in percent.",
            rich_help_panel=_LIMITS,
        ),
    ] = 90.0
    context: InContext = None


@dataclass(frozen=True)
class MethodOptions:
    """Method of the search and number of measurements."""

    measure: Annotated[
        int,
        typer.Option(
            help="Most models to measure until the front is stable; 0 for predictions only."
        ),
    ] = 50
    batch: Annotated[int, typer.Option(help="Models measured per round.", rich_help_panel=_HOW)] = (
        10
    )
    method: Annotated[
        str | None,
        typer.Option(
            help=f"Search method: {', '.join(METHODS)}, or {OWN}. [default: exhaustive for small "
            "spaces and tables, else nsga2]",
            autocompletion=search_methods,
            rich_help_panel=_HOW,
        ),
    ] = None
    proxy: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Search with another device's predictor (One Proxy): a source of esm-host "
            "sources list, a campaign's folder or a Parquet file. With several devices, the one "
            "with the highest rank correlation is used. A proxy that ranks differently is adapted.",
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = ""
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="N|dask://HOST:PORT",
            help="Processes that evaluate your functions: N on this machine, or the workers of a "
            "Dask cluster (docs/cluster.md). [default: this process]",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None


@dataclass(frozen=True)
class FolderOptions:
    """Folder of the search."""

    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. [default: RUN/search]")
    ] = None
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the search in the folder, also with a larger --measure."
        ),
    ] = False


@one_line_errors
@grouped
def search(
    ctx: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folder of a campaign, or its predictor.onnx; one for each device.",
            metavar="RUN...",
        ),
    ],
    wishes: WishOptions,
    how: MethodOptions,
    kept: FolderOptions,
    session: SessionOptions,
) -> None:
    """Find the best architectures within limits, and measure them.

    Each round predicts a Pareto front with the campaign's predictor, measures a part of it on the
    campaign's device, and trains the predictor on the measurements. The search ends when the front
    is measured. Architectures whose measured latency is too high are removed from it.

    Example: esm-host search runs/pi4 --max-latency 30 --objective accuracy=accuracy.py:estimate
    """
    from esm_host.cli.live import Live
    from esm_host.search.settings import SearchFolder
    from esm_host.workflows.search import run_search

    folders = [run.parent if run.name == "predictor.onnx" else run for run in runs]
    folder = SearchFolder(kept.output or folders[0] / "search")
    if kept.resume:
        settings = _resumed(ctx, folder, folders, how.measure)
    else:
        settings = _new_settings(folders, wishes, how, session.seed)
        if not wishes.objective and not session.quiet:
            typer.echo("no --objective: FLOPs are maximised in place of accuracy", err=True)
    path = shlex.quote(str(folder.path))
    where = nullcontext() if how.parallel is None else computing(how.parallel)
    with Live(session.quiet) as live, where:
        try:
            result = run_search(
                settings,
                folder.path,
                kept.resume,
                session.patience,
                not session.no_wait,
                live,
                lambda rounds: live.say(_round_text(rounds)),
            )
        except KeyboardInterrupt:
            named = " ".join(shlex.quote(str(each)) for each in folders)
            live.warn(
                f"interrupted; measurements are kept: esm-host search {named} -o {path} --resume"
                if folder.settings.exists()
                else "interrupted before anything was measured"
            )
            raise typer.Exit(INTERRUPTED) from None
    _show(result)
    typer.echo(f"result in {folder.front}; next: esm-host report {path}")
    if not len(result.front):
        raise typer.Exit(NOTHING_FOUND)


def _resumed(
    ctx: typer.Context, folder: SearchFolder, folders: Sequence[Path], measure: int
) -> SearchSettings:
    """Return the settings of the folder's search, with the new --measure if given."""
    given = [name for name in _SETTINGS if was_given(ctx, name)]
    if given:
        raise UsageError(
            f"--resume keeps the settings of the search: leave out "
            f"{', '.join('--' + name.replace('_', '-') for name in given)}"
        )
    settings = folder.read_settings()
    if was_given(ctx, "measure"):
        settings = replace(settings, measure=measure)
    if settings.runs != tuple(map(str, folders)):
        raise UsageError(f"{folder.path} is a search of {' '.join(settings.runs)}: give these runs")
    return settings


def _new_settings(
    folders: Sequence[Path], wishes: WishOptions, how: MethodOptions, seed: int
) -> SearchSettings:
    from esm_host.search.settings import SearchSettings

    limits = [*(wishes.limit or ())]
    objectives = wishes.objective or ()
    if (least := wishes.min_accuracy) is not None:
        if not any(text.partition("=")[0].strip() == "accuracy" for text in objectives):
            raise UsageError(
                f"--min-accuracy {least:g} needs an objective accuracy: give --objective "
                "accuracy=table.parquet:COLUMN"
            )
        limits.append(f"accuracy>={least!r}")
    if not 0 < wishes.confidence < 100:
        raise UsageError(
            f"--confidence {wishes.confidence:g}: give a percentage above 0 and below 100"
        )
    return SearchSettings(
        runs=tuple(map(str, folders)),
        objectives=tuple(objectives),
        max_latency_ms=tuple(wishes.max_latency or ()),
        limits=tuple(limits),
        method=how.method,
        proxy=how.proxy,
        measure=how.measure,
        batch=how.batch,
        probability=wishes.confidence / 100,
        seed=seed,
        contexts=read_context(wishes.context),
    )


_SETTINGS = (
    *("objective", "max_latency", "min_accuracy", "limit", "confidence", "batch", "method"),
    *("proxy", "seed", "context"),
)


def _round_text(rounds: Sequence[Round]) -> str:
    last = rounds[-1]
    text = f"round {len(rounds)}: {len(last.front)} on the front of {last.evaluations:,} evaluated"
    return f"{text}, measuring {len(last.chosen)}" if len(last.chosen) else text


def _show(searched: SearchResult) -> None:
    from esm_host.cli.table import print_table

    front, verified = searched.front, searched.verified
    if not len(front):
        typer.echo(_nothing(searched))
    else:
        names = _columns(searched)
        rows = [
            (*(_text(front.values[name][row]) for name in names), architecture.to_text())
            for row, architecture in enumerate(searched.problem.space.decode(front.codes[:_SHOWN]))
        ]
        print_table((*names, "architecture"), rows, right=range(len(names)))
        if len(front) > _SHOWN:
            typer.echo(f"... and {len(front) - _SHOWN} more")
    if verified is None:
        typer.echo(f"{len(front)} on the predicted front; none measured")
        return
    if not len(front):
        typer.echo(f"{counted(verified.measured, 'model')} measured")
        return
    if searched.by_proxy is not None:
        typer.echo(on_command_line(searched.by_proxy.describe(len(front))))
        return
    typer.echo(
        f"{len(front)} on the front, {counted(verified.measured, 'model')} measured; the front is "
        + (
            "stable: no unmeasured architecture is expected to improve it"
            if verified.stable
            else "not stable yet: continue with --resume and a larger --measure"
        )
    )


def _nothing(searched: SearchResult) -> str:
    values = {name: each[0] for name, each in searched.closest.values.items() if len(each)}
    unknown = [name for name in _columns(searched) if not math.isfinite(values.get(name, 0))]
    if unknown:
        return (
            f"no architecture with a known {' and '.join(unknown)} was found: check --objective, "
            "or choose another --method"
        )
    known = ", ".join(f"{name} {_text(value)}" for name, value in values.items())
    closest = f"; the closest has {known}" if known else ""
    return f"no architecture meets {' and '.join(map(str, searched.problem.limits))}{closest}"


def _columns(searched: SearchResult) -> list[str]:
    from esm_host.search.problem import quantities_of

    return quantities_of(searched.problem.objectives, searched.problem.limits)


def _text(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
