"""``esm-host compare``: models that became slower between timings."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import grouped
from esm_host.cli.options import Json
from esm_host.cli.output import check_output, results_first
from esm_host.cli.table import Verdict, print_markdown, print_table
from esm_host.errors import UsageError
from esm_protos.text import counted, printable

if TYPE_CHECKING:
    from esm_host.timing.compare import Change, Comparison
    from esm_protos.metrics import Metric

SLOWER = 3


class Format(enum.StrEnum):
    """Format of the printed table."""

    text = "text"
    markdown = "markdown"
    github = "github"


@dataclass(frozen=True)
class ComparisonOptions:
    """Options of the comparison."""

    confidence: Annotated[float, typer.Option(help="Confidence of the intervals, in percent.")] = (
        95.0
    )
    tolerance: Annotated[
        float,
        typer.Option(help="Tolerated increase of a latency, in percent."),
    ] = 2.0
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Differences to accept, such as runtime,hostname. Device: hostname, machine, "
            "cpu_model, cpu_count, runtime. Provider: provider, version, its other facts, such as "
            "gpu, and its options by their names, or all as provider_options. Settings: protocol, "
            "runs, warmup, trim, threads, seed, precision, max_time, min_block_s, model_timeout_s, "
            "load_timeout_s, references, sessions, allow_fallback, opt_level, execution_mode, "
            "inter_op, session_options, free_dims. Also: cases (missing models or cases), inputs "
            "(other input shapes or types), raw (latencies as measured beside latencies at the "
            "usual pace).",
        ),
    ] = None
    match: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OLD=NEW",
            help="Old and new name of a renamed model; may be repeated.",
        ),
    ] = None
    max_latency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=LIMIT",
            help="Limit on a model's latency in the new timings, such as model.onnx=5ms; may be "
            "repeated.",
        ),
    ] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=LIMIT",
            help="Limit on another metric of every model in the new timings, such as "
            "peak_rss_bytes=200MB; may be repeated.",
        ),
    ] = None
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC[,METRIC...]",
            help="Other metrics whose changes are shown, such as peak_rss_bytes; may be repeated.",
        ),
    ] = None


@one_line_errors
@grouped
def compare(
    base: Annotated[
        Path,
        typer.Argument(metavar="BASE.json", help="Base timing: a file of esm-host time --json."),
    ],
    new: Annotated[
        Path, typer.Argument(metavar="NEW.json", help="New timing, from the same command.")
    ],
    more_base: Annotated[
        list[Path] | None,
        typer.Option(
            "--base",
            metavar="FILE",
            help="Further base timing; may be repeated. Several timings on each side show how "
            "much timings vary.",
        ),
    ] = None,
    more_new: Annotated[
        list[Path] | None,
        typer.Option("--new", metavar="FILE", help="Further new timing; may be repeated."),
    ] = None,
    *,
    comparing: ComparisonOptions,
    format: Annotated[
        Format, typer.Option(help="Format of the table; github adds annotations for its workflows.")
    ] = Format.text,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a change is undecided, too.")
    ] = False,
    output: Json = None,
) -> None:
    """Find models that became slower between two timings, for continuous integration.

    Exit codes: 0 if no model is slower; 2 if the timings cannot be compared; 3 if a model is
    slower, takes more energy or now fails. With --strict, also 3 if a change is undecided.

    Example: esm-host compare main.json branch.json --base main2.json --new branch2.json
    """
    from esm_host.timing.compare import check_timing, doubts_of
    from esm_host.timing.compare import compare as compared
    from esm_host.timing.metric_changes import check_metric, metrics_by_key

    confidence = comparing.confidence
    if not 50 <= confidence < 100:
        raise UsageError(f"--confidence {confidence:g}: give a percentage from 50 to below 100")
    paths = [base, *(more_base or ())], [new, *(more_new or ())]
    check_output(output, inputs=[path for side in paths for path in side])
    _check_once([path for side in paths for path in side])
    sides = [[check_timing(_read(path), str(path)) for path in side] for side in paths]
    names = [name for text in comparing.allow or () for name in text.split(",") if name]
    metrics = metrics_by_key(timing for side in sides for timing in side)
    keys = [key for text in comparing.metric or () for key in text.split(",") if key]
    shown = [check_metric("metric", key, metrics) for key in keys]
    comparison = compared(
        sides[0],
        sides[1],
        confidence / 100,
        comparing.tolerance,
        names,
        dict(_pair("--match", text, "OLD=NEW") for text in comparing.match or ()),
        dict(_max_latency(text) for text in comparing.max_latency or ()),
        dict(_limit(text, metrics) for text in comparing.limit or ()),
    )
    read = {
        str(path): timing
        for side, timings in zip(paths, sides, strict=True)
        for path, timing in zip(side, timings, strict=True)
    }
    comparison = replace(comparison, warnings=doubts_of(read))  # with the names of the files
    outputs = []
    if output is not None:
        text = json.dumps(comparison.to_json(), allow_nan=False, indent=2)
        outputs.append((output, text, f"comparison written to {output}"))
    with results_first(outputs):
        if str(output) != "-":
            _print_table(comparison, format, shown)
    for text in (*comparison.allowed, *comparison.warnings):
        typer.echo(f"warning: {text}", err=True)
    _print_certainty(comparison)
    if slower := comparison.regressions:
        limited = ", or take more energy" if any(each.metrics_regressed for each in slower) else ""
        limited += ", or are over their limit" if any(map(_over_limit, slower)) else ""
        typer.echo(
            f"{len(slower)} of {len(comparison.changes)} became slower or fail{limited}", err=True
        )
    if slower or (strict and comparison.undecided):
        raise typer.Exit(SLOWER)


def _over_limit(change: Change) -> bool:
    return change.over_limit or bool(change.metrics_over_limit)


def _worse(change: Change) -> bool:
    """Return whether something other than the outcome of the latency is a regression."""
    return _over_limit(change) or bool(change.metrics_regressed)


def _print_certainty(comparison: Comparison) -> None:
    """Print the degrees of freedom, and warn of undecided changes."""
    from esm_protos.statistics import t_quantile

    if freedom := comparison.degrees_of_freedom:
        base, new = comparison.timings
        errors = t_quantile(freedom, comparison.confidence)
        typer.echo(
            f"{base} + {new} timings leave {counted(freedom, 'degree')} of freedom: an interval is "
            f"{errors:.1f} standard errors to either side",
            err=True,
        )
    if undecided := comparison.undecided:
        typer.echo(
            f"warning: {len(undecided)} of {len(comparison.changes)} undecided, not stable: time "
            "each side again and give the further timings by --base and --new",
            err=True,
        )


def _check_once(paths: list[Path]) -> None:
    """Check that no timing is given twice, which would count as two."""
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UsageError(f"{path} is given twice: give another timing")
        seen.add(path.resolve())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is not JSON: give a file that esm-host time --json FILE wrote"
        ) from error


def _pair(option: str, text: str, wanted: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text}: give {wanted}")
    return name, value


_UNITS = {
    "ms": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "bytes": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9},
}
"""Factors of the units that a limit may be given in, by the unit of its metric."""


def _max_latency(text: str) -> tuple[str, float]:
    """Return the model and its limit, ms."""
    wanted = "MODEL=LIMIT, such as model.onnx=5ms"
    name, value = _pair("--max-latency", text, wanted)
    limit_ms = _amount(value, "ms")
    if limit_ms is None:
        raise UsageError(f"--max-latency {text}: give {wanted}")
    if not 0 < limit_ms < float("inf"):
        raise UsageError(f"--max-latency {text}: give more than 0")
    return name, limit_ms


def _limit(text: str, metrics: Mapping[str, Metric]) -> tuple[str, float]:
    """Return the key of a metric and its limit, in the metric's unit."""
    from esm_host.timing.metric_changes import check_metric

    wanted = "METRIC=LIMIT, such as peak_rss_bytes=200MB"
    key, value = _pair("--limit", text, wanted)
    limit = _amount(value, check_metric("limits", key, metrics).unit)
    if limit is None:
        raise UsageError(f"--limit {text}: give {wanted}")
    return key, limit


def _amount(text: str, unit: str) -> float | None:
    """Return an amount in a unit; None if the text is not an amount."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ%/")
    given = text[len(number) :]
    try:
        return float(number) * {**_UNITS.get(unit, {}), unit: 1.0, "": 1.0}[given]
    except (KeyError, ValueError):
        return None


def _print_table(comparison: Comparison, format: Format, shown: Sequence[Metric]) -> None:
    percent = f"{100 * comparison.confidence:g}%"
    headings = [
        *("model", "base_ms", "new_ms", "change", f"{percent} interval"),
        *(metric.heading for metric in shown),
        "",
    ]
    right = range(1, len(headings) - 1)
    rows = [
        (
            comparison.name(change),
            _ms(change.base_ms),
            _ms(change.new_ms),
            "" if change.change_percent is None else f"{change.change_percent:+.1f} %",
            ""
            if change.interval_percent is None
            else "{:+.1f} to {:+.1f} %".format(*change.interval_percent),
            *(_metric_text(change, metric) for metric in shown),
            Verdict(
                comparison.verdict(change),
                "slower" if _worse(change) else change.outcome.value,
            ),
        )
        for change in comparison.changes
    ]
    if format is Format.text:
        print_table(headings, rows, right=right)
        return
    print_markdown(headings, rows, right=right)
    if format is Format.github:
        for change, row in zip(comparison.changes, rows, strict=True):
            if change.is_regression:
                print(f"::error title=esm-host compare::{printable(f'{row[0]}: {row[-1]}')}")


def _metric_text(change: Change, metric: Metric) -> str:
    return next((each.text for each in change.metrics if each.metric.key == metric.key), "")


def _ms(value: float | None) -> str:
    return "failed" if value is None else f"{value:.4f}"
