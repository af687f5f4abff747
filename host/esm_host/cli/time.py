"""``esm-host time``: how long a user's own models take on a device."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import (
    AllowFallback,
    CudaGraph,
    Device,
    NoWait,
    Tf32,
    check_gpu_options,
)
from esm_host.cli.output import check_output, write_output
from esm_host.cli.profile import ProtocolName

if TYPE_CHECKING:
    from esm_host.timing import Timing
    from esm_protos.messages import Progress

FAILED, UNSURE = 1, 3


@one_line_errors
def time(
    models: Annotated[list[Path], typer.Argument(help="ONNX files.", metavar="MODEL.onnx")],
    device: Device = "local",
    runs: Annotated[
        int | None,
        typer.Option(help="Exactly so many counted runs per model, however precise."),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            help="Percent of the latency: a model is done when its 95 % interval is within plus "
            "or minus so much.",
            show_default="2",
        ),
    ] = None,
    max_runs: Annotated[
        int | None,
        typer.Option(help="Counted runs per model at most.", show_default="100000"),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(help="Seconds of measuring at most, all models together.", show_default="60"),
    ] = None,
    protocol: Annotated[
        ProtocolName,
        typer.Option(help="Models in turn, or all runs of a model in a row (needs --runs)."),
    ] = ProtocolName.interleaved,
    warmup: Annotated[int, typer.Option(help="Uncounted runs before each visit, at most.")] = 10,
    trim: Annotated[float, typer.Option(help="Share of runs dropped at each end.")] = 0.2,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    ep: Annotated[str, typer.Option(help="Execution provider: cpu or cuda.")] = "cpu",
    tf32: Tf32 = False,
    cuda_graph: CudaGraph = False,
    allow_fallback: AllowFallback = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds that one model may take at a time.")
    ] = 60.0,
    no_wait: NoWait = False,
    seed: Annotated[int, typer.Option(help="Of the inputs and the visiting order.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--json", help="Write JSON with all samples to this file; - is stdout."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Time ONNX models on a device.

    All models are measured together, in turn, until each is known to the precision. Weights
    must be inside the files; inputs are random, a free dimension is taken as 1.

    Exit codes: 0; 1 if a model failed; 2 wrong usage; 3 if one is not known to the precision,
    or the device throttled.

    Example: esm-host time a.onnx b.onnx --device pi4
    """
    from esm_host.timing import read_models, time_models, timing_spec
    from esm_host.transport import devices
    from esm_protos.messages import Protocol

    check_gpu_options(ep, tf32, cuda_graph, allow_fallback)
    spec = timing_spec(
        runs,
        precision,
        max_runs,
        max_time,
        protocol=Protocol(protocol.value),
        warmup=warmup,
        trim=trim,
        threads=threads,
        provider=ep,
        tf32=tf32,
        cuda_graph=cuda_graph,
        allow_fallback=allow_fallback,
        model_timeout_s=timeout,
        seed=seed,
    )
    check_output(output)
    given = read_models(models)
    with devices.connect(device) as profiler, _progress(quiet) as on_progress:
        profiler.reserve(f"time {len(given)} model{'s' * (len(given) != 1)}", not no_wait)
        timing = time_models(profiler, given, spec, on_progress)
    if str(output) != "-":
        _print_table(timing)
    if output is not None:
        # On one line: indented, thousands of samples would each have their own.
        text = json.dumps(timing.to_json(), allow_nan=False)
        write_output(output, text, f"all samples are in {output}")
    raise typer.Exit(_exit_code(timing))


def _exit_code(timing: Timing) -> int:
    """Says on stderr what is wrong, if anything is."""
    from esm_host.evaluation.verdict import Verdict

    failed = [timed for timed in timing.models if timed.failure is not None]
    for timed in failed:
        assert timed.failure is not None
        typer.echo(
            f"warning: {timed.model.model_id}: {timed.failure.kind.value}: {timed.failure.message}",
            err=True,
        )
    unsure = False
    for timed in timing.models:
        if timed.judgement is None or timed.judgement.verdict is Verdict.STABLE:
            continue
        verdict, reasons = timed.judgement.verdict, "; ".join(timed.judgement.reasons)
        typer.echo(f"warning: {timed.model.model_id}: {verdict}: {reasons}", err=True)
        # With --runs nobody asked for a precision.
        unsure |= verdict is Verdict.THROTTLED or (
            verdict is Verdict.UNRESOLVED and timing.spec.precision > 0
        )
    if unsure:
        typer.echo(
            "a quieter or cooler device, a longer --max-time or more --max-runs helps; "
            "esm-host devices doctor says what is wrong",
            err=True,
        )
    return FAILED if failed else UNSURE if unsure else 0


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("latency_ms", lambda row: _number(row["latency_ms"])),
    ("95%", lambda row: _interval(row["interval_percent"])),
    ("min_ms", lambda row: _number(row["min_ms"])),
    ("median_ms", lambda row: _number(row["median_ms"])),
    ("p95_ms", lambda row: _number(row["p95_ms"])),
    ("runs", lambda row: str(row["runs"])),
    ("verdict", lambda row: row["verdict"]),
    ("load_ms", lambda row: _number(row["load_ms"])),
    ("first_ms", lambda row: _number(row["first_run_ms"])),
)
"""Of the table, by their heading: the text of a model's row in JSON."""

_GPU_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("copy_in_ms", lambda row: "" if row["copy_in_ms"] is None else _number(row["copy_in_ms"])),
    ("copy_out_ms", lambda row: "" if row["copy_out_ms"] is None else _number(row["copy_out_ms"])),
    ("fallback", lambda row: str(len(row["fallback"]) or "")),
)
"""Likewise, shown where they have a text."""


def _print_table(timing: Timing) -> None:
    """One line per model; a model that failed has its outcome in place of numbers."""
    rows = [timed.to_json() for timed in timing.models]
    measured = [row for row in rows if not row["failure"]]
    shown = [column for column in _GPU_COLUMNS if any(column[1](row) for row in measured)]
    columns = [*_COLUMNS, *shown]
    headings = [heading for heading, _ in columns]
    cells = {row["path"]: [text(row) for _, text in columns] for row in measured}
    widths = [max(map(len, column)) for column in zip(headings, *cells.values(), strict=True)]
    name_width = max(len("model"), *(len(row["path"]) for row in rows))

    def line(name: str, texts: list[str]) -> str:
        padded = (f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        return f"{name:{name_width}}  {'  '.join(padded)}"

    print(line("model", headings))
    for row in rows:
        name, failure = row["path"], row["failure"]
        print(f"{name:{name_width}}  {failure['kind']}" if failure else line(name, cells[name]))


def _number(value: float) -> str:
    """Four digits or more, never an exponent."""
    return f"{value:.{4 if value < 10 else 3 if value < 100 else 2}f}"


def _interval(percent: float | None) -> str:
    """A dash where too few runs were taken to tell."""
    return "-" if percent is None else f"+-{percent:.1f}%"


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """A line on stderr that is written over, in a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda progress: None
        return

    from esm_host.cli.live import waiting

    def show(progress: Progress) -> None:
        text = f"{progress.state.value} {100 * progress.fraction:.0f} %"
        if progress.standing is not None and progress.standing.ahead:
            text = waiting(progress.standing)
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
