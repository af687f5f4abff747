"""``esm-host time``: how long a user's own models take on devices."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.arguments import on_command_line
from esm_host.cli.errors import INTERRUPTED, one_line_errors
from esm_host.cli.option_groups import ProviderOptions, grouped
from esm_host.cli.options import NoWait, Quiet, device_names, examples
from esm_host.cli.output import check_output, results_first
from esm_host.cli.profile import ProtocolName
from esm_host.errors import UsageError

if TYPE_CHECKING:
    from esm_host.timing import Timing

FAILED, UNSURE = 1, 3

_CASES = "Cases"


@dataclass(frozen=True)
class CaseOptions:
    """Options of the cases that models are measured in."""

    batch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE[,SIZE...]",
            help="Batch sizes, such as 1,8,32: the first dimension of inputs that leave it free.",
            rich_help_panel=_CASES,
        ),
    ] = None
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of an input, such as x:1x3x224x224 (N for a dimension left free); the name "
            "of an only input may be left out.",
            rich_help_panel=_CASES,
        ),
    ] = None
    dim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE[,SIZE...]",
            help="Sizes of a named dimension, such as H=320,640; several options make all "
            "combinations.",
            rich_help_panel=_CASES,
        ),
    ] = None
    threads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COUNT[,COUNT...]",
            help="Threads of the runtime, such as 1,2,4.",
            show_default="1",
            rich_help_panel=_CASES,
        ),
    ] = None
    feed: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            help="An .npz with inputs by name, or a file or folder of ONNX values, such as "
            "input_0.pb. Other inputs are random. May be repeated.",
            rich_help_panel=_CASES,
        ),
    ] = None


@dataclass(frozen=True)
class RunOptions:
    """Options of a model's runs."""

    runs: Annotated[
        int | None,
        typer.Option(
            help="Exactly so many counted runs per model, however precise. An interval takes 5."
        ),
    ] = None
    precision: Annotated[
        float | None,
        typer.Option(
            help="Percent of the latency: a model is done when its 95 % interval is within plus "
            "or minus so much.",
            show_default="2",
        ),
    ] = None
    max_runs: Annotated[
        int | None,
        typer.Option(
            help="Counted runs per model at most. An interval takes 5.", show_default="100000"
        ),
    ] = None
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Seconds of measuring, all models together, after which no new round of runs "
            "begins. By default slow models go on until they have 5 runs, which an interval takes.",
            show_default="20, and 2 per further model",
        ),
    ] = None
    sessions: Annotated[
        int | None,
        typer.Option(
            help="Sessions of each model in a block, in turn; with a precision at least so many. "
            "A session's place in memory changes its latency.",
            show_default="2",
        ),
    ] = None
    spread: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Spread 3 to 10 blocks evenly over this time, such as 30s, 10m or 1h, for an "
            "interval that holds what the device does meanwhile. Each block takes the runs and "
            "the time that other options say. Others can use the device between blocks.",
        ),
    ] = None
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Report latencies and intervals as measured, not at the device's usual pace.",
        ),
    ] = False
    protocol: Annotated[
        ProtocolName,
        typer.Option(help="Models in turn, or all runs of a model in a row (needs --runs)."),
    ] = ProtocolName.interleaved
    warmup: Annotated[int, typer.Option(help="Uncounted runs before each visit, at most.")] = 10
    trim: Annotated[float, typer.Option(help="Share of runs dropped at each end.")] = 0.2
    timeout: Annotated[
        float,
        typer.Option(help="Seconds that loading a model, or one inference, may take."),
    ] = 60.0
    no_wait: NoWait = False
    seed: Annotated[int, typer.Option(help="Of the inputs and the visiting order.")] = 0


@dataclass(frozen=True)
class OutputOptions:
    """Options of what is shown and kept."""

    profile: Annotated[
        bool, typer.Option("--profile", help="Also show which operators and nodes take the time.")
    ] = False
    profile_runs: Annotated[
        int, typer.Option(help="Runs to profile, apart from those timed.", min=1, max=1000)
    ] = 20
    wide: Annotated[
        bool,
        typer.Option(
            "--wide",
            help="Show every number. latency_ms is at the device's usual pace, raw_ms and all "
            "other times are as measured.",
        ),
    ] = False
    output: Annotated[
        Path | None,
        typer.Option("--json", help="Write JSON with all samples to this file; - is stdout."),
    ] = None
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write a line per result to this file; - is stdout."),
    ] = None
    quiet: Quiet = False

    def check(self, inputs: list[Path]) -> None:
        """Raise UsageError where results cannot be written, or would replace an input."""
        check_output(self.output, inputs=inputs)
        check_output(self.csv, "--csv", [*inputs, self.output])
        if str(self.output) == str(self.csv) == "-":
            raise UsageError("--json - and --csv - would mix on stdout: give one a file")


@one_line_errors
@grouped
def time(
    context: typer.Context,
    models: Annotated[
        list[Path] | None, typer.Argument(help="ONNX files.", metavar="MODEL.onnx")
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A well-known network that comes with the program, such as mobilenetv3, resnet18 "
            "or resnet50, with random weights; may be repeated.",
            autocompletion=examples,
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="'local', host:port, or a name from devices.toml; give several to measure on all "
            "of them at once.",
            envvar="ESM_DEVICE",
            show_default="local",
            autocompletion=device_names,
        ),
    ] = None,
    *,
    cases: CaseOptions,
    measuring: RunOptions,
    provider: ProviderOptions,
    shown: OutputOptions,
) -> None:
    """Time ONNX models on devices.

    All models, in all cases, are measured together, in turn, until each is known to the
    precision. Latencies are at the device's usual pace, and intervals hold at any time. Inputs are
    random unless given. A free dimension that no option sets is taken as 1, with a warning. Ctrl-C
    ends the timing and keeps what was measured.

    Exit codes: 0; 1 if a model or a device failed; 2 wrong usage; 3 if one is not known to the
    precision, or the device throttled; 130 interrupted.

    Example: esm-host time a.onnx b.onnx --device pi4 --batch 1,8
    """
    from esm_host.cli.progress import DeviceLines
    from esm_host.timing import for_models, parse_duration, read_request, time_models, timing_spec
    from esm_host.timing.examples import example_file
    from esm_host.transport import devices
    from esm_protos.messages import RunOrder

    names = [name for text in device or ["local"] for name in text.split(",") if name]
    counts = _numbers("--threads", cases.threads or ["1"])
    spec = timing_spec(
        measuring.runs,
        measuring.precision,
        measuring.max_runs,
        measuring.max_time,
        measuring.sessions,
        protocol=RunOrder(measuring.protocol.value),
        warmup=measuring.warmup,
        trim=measuring.trim,
        threads=counts[0],
        **provider.spec(),
        model_timeout_s=measuring.timeout,
        seed=measuring.seed,
    )
    spread_s = 0.0 if measuring.spread is None else parse_duration(measuring.spread)
    given = [*(models or ()), *map(example_file, example or ())]
    if not given:
        raise UsageError(
            "missing argument 'MODEL.onnx': give a file, or --example mobilenetv3; see esm-host "
            "time --help"
        )
    values = [file for path in cases.feed or () for file in (path, *path.glob("*.pb"))]
    shown.check([*(models or ()), *values])
    batches = _numbers("--batch", cases.batch or [])
    folder = Path(context.with_resource(TemporaryDirectory(prefix="esm-")))
    request = read_request(
        given, batches, cases.shape or (), counts, cases.feed or (), folder, cases.dim or ()
    )
    if batches:
        for path in dict.fromkeys(entry.path for entry in request if entry.batch is None):
            typer.echo(
                f"warning: {path}: --batch is ignored: no first dimension of an input is free",
                err=True,
            )
    beside = [file.path for entry in request for _, file in entry.model.external]
    check_output(shown.output, inputs=beside)
    check_output(shown.csv, "--csv", beside)
    spec = for_models(spec, len(request), measuring.max_time)
    with DeviceLines(names, shown.quiet) as on_progress:
        timing = time_models(
            devices.connect,
            names,
            request,
            spec,
            profile_runs=shown.profile_runs if shown.profile else 0,
            wait=not measuring.no_wait,
            on_progress=on_progress,
            raw=measuring.raw,
            spread_s=spread_s,
            on_wait=on_progress.wait,
            on_interrupt=_say_interrupted,
        )
    _show(timing, shown)
    raise typer.Exit(_exit_code(timing))


def _show(timing: Timing, shown: OutputOptions) -> None:
    from esm_host.cli.timing_table import as_csv, print_profiles, print_tables

    texts = []
    if shown.output is not None:
        # On one line: indented, thousands of samples would each have their own.
        text = json.dumps(timing.to_json(on_command_line), allow_nan=False)
        texts.append((shown.output, text, f"all samples are in {shown.output}"))
    if shown.csv is not None:
        texts.append((shown.csv, as_csv(timing), f"a line per result is in {shown.csv}"))
    with results_first(texts):
        if "-" not in (str(shown.output), str(shown.csv)):
            print_tables(timing, shown.wide)
            print_profiles(timing)


def _say_interrupted() -> None:
    typer.echo("interrupted: ending with what was measured; Ctrl-C again stops at once", err=True)


def _numbers(flag: str, texts: list[str]) -> tuple[int, ...]:
    """Read numbers that commas or repeated options keep apart."""
    try:
        return tuple(int(number) for text in texts for number in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {' '.join(texts)}: give whole numbers, such as 1,8") from None


def _exit_code(timing: Timing) -> int:
    """Says on stderr what is wrong, if anything is."""
    from esm_host.evaluation.verdict import Verdict

    several = len(timing.devices) > 1
    failed = unsure = disturbed = False
    doubts: dict[tuple[str, str], list[str]] = {}
    assumed: dict[tuple[str, str], None] = {}
    for device in timing.devices:
        if device.error is not None:
            failed = True
            typer.echo(f"warning: {device.name}: {device.error.for_command()}", err=True)
    for result in timing.results:
        name = f"{result.device}: {result.name}" if several else result.name
        if result.failure is not None:
            failed = True
            kind, message = result.failure.kind.value, result.failure.message
            typer.echo(f"warning: {name}: {kind}: {message}", err=True)
        for text in result.assumptions:
            assumed[result.entry.path, on_command_line(text)] = None
        if result.judgement is None or not result.warnings:
            continue
        verdict = result.judgement.verdict
        why = on_command_line(f"{verdict}: {'; '.join(result.warnings)}")
        doubts.setdefault((result.device, why), []).append(name)
        # With --runs nobody asked for a precision.
        unsure |= verdict is Verdict.THROTTLED or (
            verdict is Verdict.UNRESOLVED and timing.spec.precision > 0
        )
        disturbed |= result.judgement.disturbed
    for (_, why), names in doubts.items():
        # What disturbs a device disturbs all models of a block.
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"warning: {names[0]}{more}: {why}", err=True)
    for path, text in assumed:
        typer.echo(f"warning: {path}: {text}", err=True)
    if unsure and disturbed:
        typer.echo(
            "a quieter or cooler device helps; esm-host devices doctor says what is wrong", err=True
        )
    if timing.interrupted:
        return INTERRUPTED
    return FAILED if failed else UNSURE if unsure else 0
