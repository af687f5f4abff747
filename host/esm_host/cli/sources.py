"""``esm-host sources``: latencies of other devices, imported or measured by campaigns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_host.arguments import on_command_line
from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import Json, source_names, space_names
from esm_host.cli.output import check_output, write_output
from esm_host.cli.table import print_table
from esm_host.errors import UsageError
from esm_models.spaces import FAMILY
from esm_protos.commands import Commands
from esm_protos.nearest import unknown
from esm_protos.text import counted, printable

if TYPE_CHECKING:
    from esm_host.sources.registry import Entry
    from esm_host.transfer.comparison import Comparison
    from esm_host.transfer.monotonicity import RankCorrelation
    from esm_host.transfer.source import Source
    from esm_models.space import SearchSpace

SCHEMA_VERSION = 1

_Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE]...",
        help="Imported tables, TABLE/DEVICE, campaigns' folders, Parquet files; by default all "
        "imported tables and the campaigns in --runs.",
        autocompletion=source_names,
    ),
]
_Space = Annotated[
    str | None,
    typer.Option(
        help="Search space; needed if the sources have several.",
        autocompletion=space_names,
    ),
]
_RUNS = Path("runs")


def _checked_runs(runs: Path) -> Path:
    if runs != _RUNS and not runs.is_dir():
        raise typer.BadParameter(f"there is no folder {runs}")
    return runs


_Runs = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder of campaigns.", callback=_checked_runs)
]

sources = typer.Typer(
    cls=Commands,
    help="Manage and compare the data of other devices.",
    epilog="Start with: esm-host import FILE, esm-host sources list",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@sources.command("list")
@one_line_errors
def list_sources(space: _Space = None, runs: _Runs = _RUNS, output: Json = None) -> None:
    """List the devices of imported tables, and campaigns.

    Example: esm-host sources list --space fbnet
    """
    from esm_host.sources.registry import entries

    check_output(output)
    found, problems = entries(runs)
    spaces = [entry.space.partition(",")[0] for entry in found]
    shown = [entry for entry, own in zip(found, spaces, strict=True) if space in (None, own)]
    if space is not None and not shown and space not in (known := FAMILY.names()):
        raise UsageError(unknown("search space", space, dict.fromkeys([*known, *spaces])))
    if output is not None:
        data = {"schema_version": SCHEMA_VERSION, "sources": [asdict(entry) for entry in shown]}
        write_output(
            output,
            json.dumps(data, indent=2),
            f"{counted(len(shown), 'source')} written to {output}",
        )
    if str(output) != "-" and shown:
        print_table(
            ("source", "space", "architectures", "missing", "kind"),
            [
                (
                    entry.name,
                    entry.space,
                    str(entry.architectures),
                    str(entry.missing),
                    _kind(entry),
                )
                for entry in shown
            ],
            right=(2, 3),
        )
    for problem in problems:
        typer.echo(printable(f"warning: {on_command_line(problem)}"), err=True)
    if not shown:
        typer.echo("no such sources: esm-host import FILE adds some", err=True)


def _kind(entry: Entry) -> str:
    if entry.kind == "campaign":
        return f"campaign on {entry.device}"
    metric = "" if entry.metric == "latency" else f", {entry.metric} in {entry.unit}"
    return f"{entry.kind}{metric}"


@sources.command()
@one_line_errors
def remove(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of an imported table.", autocompletion=source_names
        ),
    ],
) -> None:
    """Remove an imported table.

    Example: esm-host sources remove fbnet
    """
    from esm_host.sources import registry

    registry.remove(name)
    typer.echo(f"source {name} removed", err=True)


@sources.command()
@one_line_errors
def correlation(
    names: _Names = None,
    space: _Space = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Device to find the best proxy for; may be repeated.",
            autocompletion=source_names,
        ),
    ] = None,
    threshold: Annotated[
        float,
        typer.Option(help="Least rank correlation of a proxy that needs no adaptation."),
    ] = 0.9,
    runs: _Runs = _RUNS,
    chart: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File of the heat map: .png, .svg or .html."),
    ] = None,
    output: Json = None,
) -> None:
    """Print the rank correlations between devices, and the best proxy for the others.

    The figures are Spearman's rank correlations over the architectures that both devices have.

    Example: esm-host sources correlation fbnet --target pixel3 --out fbnet.png
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: give more than 0 and at most 1")
    check_output(output)
    check_output(chart, "--out", [output])
    if chart is not None and chart.suffix not in (".png", ".svg", ".html"):
        raise UsageError(f"--out {chart}: give a file that ends in .png, .svg or .html")
    from esm_host.transfer.comparison import compare

    chosen, targets = _chosen(names, runs, space, target or ())
    compared = compare(chosen)
    proxies = {number: compared.with_target(number) for number in targets}
    if targets and not any(proxies.values()):
        raise UsageError(
            f"no source has enough architectures in common with {compared.names[targets[0]]}: "
            "measure some that other sources have"
        )
    best = compared.best_proxy(targets, threshold)
    labels = _short(compared.names)
    if str(output) != "-":
        _print(compared, labels, best, proxies, threshold)
    if chart is not None:
        from esm_host.report.plots import save
        from esm_host.report.source_plots import correlations

        order = compared.order
        shown = correlations(
            [labels[number] for number in order], compared.matrix[order][:, order], threshold
        )
        save(shown, chart)
        typer.echo(f"heat map written to {chart}", err=True)
    if output is not None:
        data = _correlation_json(chosen[0].space, compared, best, proxies, threshold)
        text = json.dumps(data, indent=2, allow_nan=False)
        write_output(output, text, f"correlations written to {output}")


@sources.command()
@one_line_errors
def split(
    train: Annotated[int, typer.Option(help="Number of training devices.")],
    test: Annotated[int, typer.Option(help="Number of target devices.")],
    names: _Names = None,
    space: _Space = None,
    seed: Annotated[int, typer.Option(help="Random seed.", min=0)] = 0,
    hardest: Annotated[
        bool,
        typer.Option(
            "--hardest",
            help="Begin with the halves of lowest rank correlation: harder than NASFLAT's, and "
            "nearly the same for every seed.",
        ),
    ] = False,
    runs: _Runs = _RUNS,
    output: Json = None,
) -> None:
    """Choose training and target devices between which transfer is hard.

    The two sets of devices have low rank correlations (Algorithm 1 of NASFLAT).

    Example: esm-host sources split fbnet --train 5 --test 5
    """
    check_output(output)
    from esm_host.research.hard_sets import hard_sets, mean_correlation
    from esm_host.transfer.comparison import compare

    chosen, _ = _chosen(names, runs, space, ())
    compared = compare(chosen)
    try:
        sets = hard_sets(compared.matrix, train, test, seed, hardest)
    except ValueError as error:
        raise UsageError(f"--train and --test: {error}") from error
    means = {
        "within_train": mean_correlation(compared.matrix, sets.train, sets.train),
        "within_test": mean_correlation(compared.matrix, sets.test, sets.test),
        "between": mean_correlation(compared.matrix, sets.train, sets.test),
    }
    parts = {"train": sets.train, "test": sets.test}
    if str(output) != "-":
        labels = _short(compared.names)
        for part, numbers in parts.items():
            print(printable(f"{part}: {', '.join(labels[number] for number in numbers)}"))
        print(
            "mean correlation: "
            + ", ".join(f"{name.replace('_', ' ')} {_number(m)}" for name, m in means.items())
        )
    if output is not None:
        data = {
            "schema_version": SCHEMA_VERSION,
            "space": chosen[0].space.settings(),
            "seed": seed,
            "hardest": hardest,
            **{part: [compared.names[n] for n in numbers] for part, numbers in parts.items()},
            "mean_correlation": {name: _or_none(mean) for name, mean in means.items()},
        }
        write_output(output, json.dumps(data, indent=2), f"device sets written to {output}")


def _chosen(
    names: Sequence[str] | None, runs: Path, space: str | None, targets: Sequence[str]
) -> tuple[list[Source], list[int]]:
    """Return two sources or more, and the indices of the targets among them."""
    from esm_host.sources.registry import of_one_space

    found, numbers = of_one_space(names or (), runs, space, targets)
    if len(found) <= max(len(set(numbers)), 1):
        raise UsageError(
            f"{', '.join(source.name for source in found)}: nothing to compare with: name or "
            "import more sources"
        )
    return found, list(dict.fromkeys(numbers))


def _short(names: Sequence[str]) -> list[str]:
    """Return the devices' names, without the table if all are of one table."""
    parts = [name.split("/") for name in names]
    alike = all(len(part) == 2 and part[0] == parts[0][0] for part in parts)
    return [printable(part[1] if alike else "/".join(part)) for part in parts]


def _print(
    compared: Comparison,
    labels: Sequence[str],
    best: int,
    proxies: Mapping[int, Mapping[int, RankCorrelation]],
    threshold: float,
) -> None:
    if len(proxies) == 1:
        ((target, found),) = proxies.items()
        print(printable(f"rank correlation with {labels[target]}"))
        _print_intervals("proxy", labels, found, threshold)
        print(printable(f"best proxy: {labels[best]}"))
        return
    print("rank correlation in hundredths")
    if not proxies:
        _print_matrix(compared, labels)
        others = [number for number in range(len(labels)) if number != best]
        strong = int((compared.matrix[best, others] >= threshold).sum())
        agrees = f"correlation {threshold:g} or more with {strong} of {len(others)} other devices"
        print(printable(f"best proxy device: {labels[best]} ({agrees})"))
        return
    print_table(
        ("proxy", *(labels[target] for target in proxies)),
        [
            (labels[proxy], *(_number(100 * compared.matrix[proxy, t], 0) for t in proxies))
            for proxy in compared.order
            if proxy not in proxies
        ],
        right=range(1, 1 + len(proxies)),
    )
    print(printable(f"best proxy: {labels[best]}"))
    values = {target: found[best] for target, found in proxies.items() if best in found}
    _print_intervals("target", labels, values, threshold)


def _print_matrix(compared: Comparison, labels: Sequence[str]) -> None:
    """Print the lower half of the symmetric matrix."""
    order = compared.order
    digits = len(str(len(order)))
    rows = []
    for place, number in enumerate(order):
        cells = [_number(100 * compared.matrix[number, other], 0) for other in order[:place]]
        rest = [""] * (len(order) - 1 - place)
        rows.append((f"{place + 1:{digits}}  {labels[number]}", *cells, *rest))
    headings = (f"{'':{digits}}  device", *(str(place) for place in range(1, len(order))))
    print_table(headings, rows, right=range(1, len(headings)))


def _print_intervals(
    what: str, labels: Sequence[str], values: Mapping[int, RankCorrelation], threshold: float
) -> None:
    """Print correlations, and the decisions of Algorithm 1 of One Proxy.

    It decides by the interval of a correlation, and by its estimate alone, as in the paper.
    """
    from esm_host.transfer.monotonicity import decide

    print_table(
        (what, "correlation", "95 % interval", "architectures", "by interval", "Algorithm 1"),
        [
            (
                labels[number],
                f"{value.value:.3f}",
                f"{value.low:.3f} to {value.high:.3f}",
                str(value.samples),
                decide(value, threshold).value,
                decide(value, threshold, by_interval=False).value,
            )
            for number, value in values.items()
        ],
        right=range(1, 4),
    )


def _correlation_json(
    space: SearchSpace,
    compared: Comparison,
    best: int,
    proxies: Mapping[int, Mapping[int, RankCorrelation]],
    threshold: float,
) -> dict[str, Any]:
    from esm_host.transfer.monotonicity import decide

    order = compared.order
    return {
        "schema_version": SCHEMA_VERSION,
        "space": space.settings(),
        "sources": [compared.names[number] for number in order],
        "correlation": [[_or_none(compared.matrix[a, b]) for b in order] for a in order],
        "architectures": compared.shared[order][:, order].tolist(),
        "threshold": threshold,
        "best_proxy": compared.names[best],
        "targets": [
            {
                "target": compared.names[target],
                "proxies": [
                    {
                        "source": compared.names[number],
                        "correlation": value.value,
                        "interval": [value.low, value.high],
                        "architectures": value.samples,
                        "decision": decide(value, threshold).value,
                        "decision_by_estimate": decide(value, threshold, by_interval=False).value,
                    }
                    for number, value in found.items()
                ],
            }
            for target, found in proxies.items()
        ],
    }


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value == value else "-"  # NaN is not


def _or_none(value: float) -> float | None:
    return float(value) if value == value else None
