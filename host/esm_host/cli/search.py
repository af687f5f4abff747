"""``esm-host search``: the best architectures within limits, measured."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.cli.errors import INTERRUPTED, one_line_errors
from esm_host.cli.option_groups import SessionOptions, grouped
from esm_host.cli.options import OWN, computing, search_methods, was_given
from esm_host.errors import UsageError
from esm_host.search.methods import METHODS

if TYPE_CHECKING:
    from esm_host.search.settings import SearchFolder, SearchSettings
    from esm_host.search.verify import Round
    from esm_host.workflows.search import SearchResult

NOTHING_FOUND = 3
_SHOWN = 20
_LIMITS, _HOW = "Limits", "How"


@dataclass(frozen=True)
class WishOptions:
    """Options of what is searched for."""

    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="What else than the latency: flops, params, memory, or NAME=SOURCE with "
            "table.parquet:COLUMN, file.py:FUNCTION or file.onnx:ENCODING; :min or :max behind it "
            "says which way. May be repeated. [default: flops:max]",
        ),
    ] = None
    max_latency: Annotated[
        list[float] | None,
        typer.Option(
            help="Milliseconds; of several devices one for all, or one each in their order.",
            rich_help_panel=_LIMITS,
        ),
    ] = None
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Of the objective accuracy.", rich_help_panel=_LIMITS),
    ] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="Of another quantity: 'flops<=3e8'. May be repeated.", rich_help_panel=_LIMITS
        ),
    ] = None
    confidence: Annotated[
        float,
        typer.Option(
            help="Percent: how probable it is that a latency is within its limit.",
            rich_help_panel=_LIMITS,
        ),
    ] = 90.0


@dataclass(frozen=True)
class MethodOptions:
    """Options of how it is searched for, and of how much is measured."""

    measure: Annotated[
        int,
        typer.Option(
            help="Models to measure at most, until the front is stable; 0: predictions alone."
        ),
    ] = 50
    batch: Annotated[
        int, typer.Option(help="Of these between two searches.", rich_help_panel=_HOW)
    ] = 10
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(METHODS)}, or {OWN}. [default: exhaustive of small spaces and of "
            "tables, else nsga2]",
            autocompletion=search_methods,
            rich_help_panel=_HOW,
        ),
    ] = None
    proxy: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Search by another device's predictor, as One Proxy does: a source of esm-host "
            "sources list, a campaign's folder or a Parquet file; of several devices the one that "
            "ranks most alike. It is adapted where it does not rank as this device does.",
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = ""
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="N|dask://HOST:PORT",
            help="Where functions of yours are asked: N processes on this machine, or the workers "
            "of a Dask cluster (docs/cluster.md). [default: in this process]",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None


@dataclass(frozen=True)
class FolderOptions:
    """Options of the search's folder."""

    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder. [default: RUN/search]")
    ] = None
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the folder's search, to a larger --measure too."),
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

    Searches by a campaign's predictor for architectures that no other beats, measures them on the
    campaign's device, learns from that and searches again, until the front is measured. What the
    device refutes is dropped.

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
            typer.echo(
                "no --objective: the most FLOPs within the limits stand in for accuracy", err=True
            )
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
                lambda rounds: live.say(_said_of_round(rounds)),
            )
        except KeyboardInterrupt:
            named = " ".join(shlex.quote(str(each)) for each in folders)
            live.warn(
                f"interrupted; what was measured is kept: esm-host search {named} -o {path} "
                "--resume"
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
    """Return the settings of the folder's search, with another number to measure if given."""
    given = [name for name in _SETTINGS if was_given(ctx, name)]
    if given:
        raise UsageError(
            f"--resume goes on with what the search was asked for: leave out "
            f"{', '.join('--' + name.replace('_', '-') for name in given)}"
        )
    settings = folder.read_settings()
    if was_given(ctx, "measure"):
        settings = replace(settings, measure=measure)
    if settings.runs != tuple(map(str, folders)):
        raise UsageError(f"{folder.path} is of {' '.join(settings.runs)}: give these")
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
                f"--min-accuracy {least:g}: of which? give it, as --objective "
                "accuracy=table.parquet:COLUMN"
            )
        limits.append(f"accuracy>={least!r}")
    if not 0 < wishes.confidence < 100:
        raise UsageError(f"--confidence {wishes.confidence:g}: give percent, above 0 and below 100")
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
    )


_SETTINGS = (
    *("objective", "max_latency", "min_accuracy", "limit", "confidence", "batch", "method"),
    *("proxy", "seed"),
)


def _said_of_round(rounds: Sequence[Round]) -> str:
    last = rounds[-1]
    found = f"search {len(rounds)}: {len(last.front)} on the front of {last.evaluations:,} scored"
    return f"{found}, {len(last.chosen)} of them measured now" if len(last.chosen) else found


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
        typer.echo(f"{len(front)} predicted to be best; none was measured")
        return
    if not len(front):
        typer.echo(f"{verified.measured} were measured for it")
        return
    if searched.by_proxy is not None:
        typer.echo(searched.by_proxy.describe(len(front)))
        return
    typer.echo(
        f"{len(front)} on the front; {verified.measured} were measured for it, and it is "
        + (
            "stable: what is left is not expected there, nor did hope find more"
            if verified.stable
            else "not stable yet: --resume with a larger --measure goes on"
        )
    )


def _nothing(searched: SearchResult) -> str:
    values = {name: each[0] for name, each in searched.closest.values.items() if len(each)}
    unknown = [name for name in _columns(searched) if not math.isfinite(values.get(name, 0))]
    if unknown:
        return (
            f"nothing was found of which {' and '.join(unknown)} is known: check what "
            "--objective names, or choose another --method"
        )
    known = ", ".join(f"{name} {_text(value)}" for name, value in values.items())
    closest = f"; what comes closest has {known}" if known else ""
    return f"nothing keeps {' and '.join(map(str, searched.problem.limits))}{closest}"


def _columns(searched: SearchResult) -> list[str]:
    from esm_host.search.problem import quantities_of

    return quantities_of(searched.problem.objectives, searched.problem.limits)


def _text(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.3e}"
