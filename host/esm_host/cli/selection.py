"""``esm-host selection``: accuracy lost by selecting architectures by predicted latency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import grouped
from esm_host.cli.options import Parallel, computing, encoding_names
from esm_host.cli.table import print_table
from esm_host.errors import UsageError
from esm_protos.text import counted

if TYPE_CHECKING:
    import pandas as pd

    from esm_host.dataset.benchmarks import LatencyTable
    from esm_host.research.selection import Pair, SelectionSettings


@dataclass(frozen=True)
class SimulationOptions:
    """Options of the simulated selections."""

    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Numbers of candidates, besides all. By default 100,500,1000,5000,10000.",
        ),
    ] = None
    simulations: Annotated[
        int, typer.Option(help="Simulations per pair, size and standard deviation.", min=1)
    ] = 1000
    repeats: Annotated[int, typer.Option(help="Number of trainings of each predictor.", min=1)] = 5
    seed: Annotated[int, typer.Option(help="Random seed.", min=0)] = 0


@one_line_errors
@grouped
def selection(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE.parquet",
            help="Table with latencies in lat_ms_DEVICE and accuracies in acc_TASK.",
        ),
    ],
    pair: Annotated[
        list[str],
        typer.Option(
            metavar="DEVICE:TASK",
            help="Device of the latencies and task of the accuracies, such as "
            "raspi4:imagenet16_test; may be repeated.",
        ),
    ],
    predictor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:SAMPLES",
            help="Predictor to include and its number of training samples, such as mlp:500; may be "
            "repeated.",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of all predictors; by default that of each predictor.",
            autocompletion=encoding_names,
        ),
    ] = None,
    *,
    simulated: SimulationOptions,
    parallel: Parallel = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for selection.parquet and charts."
        ),
    ] = None,
) -> None:
    """Measure the accuracy lost when architectures are selected by predicted latency.

    Predictors from perfect to poor are simulated. Each selects the Pareto front by predicted
    latency and true accuracy. The tables show the accuracy lost against the true front, before and
    after the selected architectures are measured.

    Example: esm-host selection nasbench201.parquet --pair raspi4:imagenet16_test -o selection
    """
    from esm_host.dataset.benchmarks import read_benchmark
    from esm_host.research.selection import SelectionSettings, run_selection

    settings = SelectionSettings(
        sizes=None
        if simulated.sizes is None
        else tuple(_number(text, "--sizes") for text in _split(simulated.sizes)),
        simulations=simulated.simulations,
        predictors=tuple(_predictor(text) for text in predictor or ()),
        repeats=simulated.repeats,
        encoding=encoding,
        seed=simulated.seed,
    )
    pairs = [_pair(text) for text in dict.fromkeys(pair)]
    if output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"--output {output} is a file: give a folder")
    known = read_benchmark(table)
    with computing(parallel):
        results = run_selection(known, pairs, settings, lambda line: typer.echo(line, err=True))
    _print(results)
    if output is not None:
        _write(output, results, known, pairs[0], settings)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _number(text: str, flag: str) -> int:
    if not text.isdecimal() or not int(text):
        raise UsageError(f"{flag}: '{text}' is not a number of architectures: give 1 or more")
    return int(text)


def _pair(text: str) -> Pair:
    from esm_host.research.selection import Pair

    device, colon, task = text.partition(":")
    if not colon or not device or not task:
        raise UsageError(f"--pair '{text}': give DEVICE:TASK, such as raspi4:imagenet16_test")
    return Pair(device, task)


def _predictor(text: str) -> tuple[str, int]:
    name, colon, samples = text.rpartition(":")
    if not colon or not name:
        raise UsageError(f"--predictor '{text}': give NAME:SAMPLES, such as mlp:500")
    return name, _number(samples, f"--predictor {name}")


def _print(results: pd.DataFrame) -> None:
    from esm_host.research.selection import at_tau, averaged, tau_worth

    total = int(results["candidates"].max())
    averages = averaged(results)
    shown = averages[averages["candidates"] == total]
    rows = [
        (
            f"{row.source}:{row.train_samples}" if row.train_samples else row.source,
            f"{row.deviation_std:.2f}",
            f"{row.kendall_tau:.3f}",
            f"{row.selected:.1f}",
            f"{row.verified:.1f}",
            f"{row.mra_all_percent:.2f}",
            f"{row.mra_verified_percent:.2f}",
            f"{row.hypervolume:.3f}",
        )
        for row in shown.itertuples()
    ]
    headings = ("predictor", "sd", "tau", "selected", "verified", "mra_all", "mra_verified")
    print_table((*headings, "hypervolume"), rows, right=range(1, 8))
    for tau in (0.9, 0.8):
        lost = at_tau(results, tau, "mra_all_percent"), at_tau(results, tau, "mra_verified_percent")
        if lost[0] == lost[0]:  # NaN is not
            print(f"at tau {tau}: {lost[0]:.2f} points lost, {lost[1]:.2f} after verification")
    best = float(averages["best_hypervolume"].iloc[0])
    print(f"front of the whole table: hypervolume {best:.3f}")
    for size in sorted(set(averages["candidates"]) - {total}):
        if (tau := tau_worth(results, size)) == tau:
            print(f"{size} measured candidates are as good as {total} predicted at tau {tau:.2f}")


def _write(
    folder: Path,
    results: pd.DataFrame,
    table: LatencyTable,
    pair: Pair,
    settings: SelectionSettings,
) -> None:
    from esm_host.report.plots import save
    from esm_host.research import selection_plots as plots
    from esm_host.research.selection import SIMULATION, averaged, example

    folder.mkdir(parents=True, exist_ok=True)
    results.to_parquet(folder / "selection.parquet", index=False)
    averages = averaged(results)
    whole, all_whole = (each["candidates"] == len(table) for each in (averages, results))
    simulated, all_simulated = (each["source"] == SIMULATION for each in (averages, results))
    one = example(table, pair, 0.5, settings)
    charts = {
        "reduction": plots.reduction(averages[whole]),
        "reduction-by-pair": plots.reduction_by_pair(results[all_whole & all_simulated]),
        "hypervolume": plots.hypervolume(averages[simulated]),
        "example-predicted": plots.selection(one, "predicted_ms"),
        "example-true": plots.selection(one, "latency_ms"),
    }
    for name, chart in charts.items():
        save(chart, folder / f"{name}.png")
    typer.echo(
        f"selection.parquet and {counted(len(charts), 'chart')} written to {folder}", err=True
    )
