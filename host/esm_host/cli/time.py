"""Command ``esm-host time``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from esm_host.arguments import flag, of_agent, on_command_line
from esm_host.cli.errors import INTERRUPTED, one_line_errors
from esm_host.cli.option_groups import ProviderOptions, RuntimeOptions, grouped
from esm_host.cli.options import NoWait, Quiet, device_names, examples, was_given
from esm_host.cli.output import check_output, results_first
from esm_host.cli.profile import ProtocolName
from esm_host.errors import UsageError

if TYPE_CHECKING:
    from esm_host.timing import Timing

FAILED, UNSURE = 1, 3

_CASES = "Cases"


@dataclass(frozen=True)
class CaseOptions:
    """Options of the cases in which models are measured."""

    batch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE[,SIZE...]",
            help="Batch sizes, such as 1,8,32. Sets the first dimension of inputs where it is "
            "free.",
            rich_help_panel=_CASES,
        ),
    ] = None
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of an input, such as x:1x3x224x224. N in place of a size leaves that "
            "dimension free. With a single input, leave the name out. May be repeated.",
            rich_help_panel=_CASES,
        ),
    ] = None
    dim: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZE[,SIZE...]",
            help="Sizes of a named dimension, such as H=320,640. May be repeated; all combinations "
            "are measured.",
            rich_help_panel=_CASES,
        ),
    ] = None
    threads: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COUNT[,COUNT...]",
            help="Numbers of threads of ONNX Runtime, such as 1,2,4.",
            show_default="1",
            rich_help_panel=_CASES,
        ),
    ] = None
    feed: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            help="Input values: an .npz file with arrays by name, or a file or folder of ONNX "
            "values such as input_0.pb. Other inputs are random. May be repeated.",
            rich_help_panel=_CASES,
        ),
    ] = None


@dataclass(frozen=True)
class RunOptions:
    """Options of a model's runs."""

    runs: Annotated[
        int | None,
        typer.Option(
            help="Exact number of counted runs per model, regardless of the interval. An interval "
            "needs 5."
        ),
    ] = None
    precision: Annotated[
        float | None,
        typer.Option(
            help="Half-width of the 95 % confidence interval at which a model is done, in percent "
            "of its latency.",
            show_default="2",
        ),
    ] = None
    max_runs: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of counted runs per model. An interval needs 5.",
            show_default="100000",
        ),
    ] = None
    max_time: Annotated[
        float | None,
        typer.Option(
            help="Maximum measuring time of all models together, in seconds. By default, slow "
            "models still get the 5 runs that an interval needs.",
            show_default="20 + 2 per further model",
        ),
    ] = None
    sessions: Annotated[
        int | None,
        typer.Option(
            help="Number of times that each model is loaded; with --precision, the minimum. "
            "Latency depends on where a model lies in memory.",
            show_default="2",
        ),
    ] = None
    spread: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Repeat the timing 3 to 10 times, spread evenly over this time, such as 30s, 10m "
            "or 1h. The interval then includes the variation of the device over it. The other "
            "options apply to each repetition. Others can use the device in between.",
        ),
    ] = None
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Report latencies and intervals as measured, without correction to the device's "
            "usual pace (its typical speed in earlier timings).",
        ),
    ] = False
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            help="Order of runs: models in turn, or all runs of a model in a row (needs --runs)."
        ),
    ] = ProtocolName.interleaved
    warmup: Annotated[
        int,
        typer.Option(
            help="Maximum number of uncounted warm-up runs each time that it is a model's turn."
        ),
    ] = 10
    trim: Annotated[
        float, typer.Option(help="Share of the fastest and of the slowest runs to drop.")
    ] = 0.2
    timeout: Annotated[
        float,
        typer.Option(help="Time limit for one inference, in seconds."),
    ] = 60.0
    load_timeout: Annotated[
        float,
        typer.Option(
            help="Time limit for loading a model, in seconds. Some providers compile for minutes."
        ),
    ] = 600.0
    no_wait: NoWait = False
    seed: Annotated[int, typer.Option(help="Random seed of the inputs and the order of runs.")] = 0


@dataclass(frozen=True)
class OutputOptions:
    """Options of the output."""

    profile: Annotated[
        bool, typer.Option("--profile", help="Also show the time of each operator and node.")
    ] = False
    profile_runs: Annotated[
        int,
        typer.Option(
            help="Number of profiled runs, in addition to the timed ones.", min=1, max=1000
        ),
    ] = 20
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help="Also measure energy per inference, where the device has a sensor.",
        ),
    ] = False
    energy_time: Annotated[
        float,
        typer.Option(
            help="Time per model for --energy, in seconds. The device is idle for half of it.",
            min=1,
            max=86_400,
        ),
    ] = 40.0
    wide: Annotated[
        bool,
        typer.Option(
            "--wide",
            help="Show all columns. latency_ms is at the device's usual pace; raw_ms and all other "
            "times are as measured.",
        ),
    ] = False
    output: Annotated[
        Path | None,
        typer.Option("--json", help="Write JSON with all samples to this file; - is stdout."),
    ] = None
    csv: Annotated[
        Path | None,
        typer.Option("--csv", help="Write a CSV line per result to this file; - is stdout."),
    ] = None
    quiet: Quiet = False

    def check(self, inputs: list[Path]) -> None:
        """Check the output files.

        Raises:
            UsageError: a file cannot be written or would overwrite an input.
        """
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
            help="Example network with random weights, such as mobilenetv3, resnet18 or resnet50. "
            "May be repeated.",
            autocompletion=examples,
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="Device: 'local', host:port, or a name from devices.toml. May be repeated; "
            "devices measure in parallel.",
            envvar="ESM_DEVICE",
            show_default="local",
            autocompletion=device_names,
        ),
    ] = None,
    *,
    cases: CaseOptions,
    measuring: RunOptions,
    provider: ProviderOptions,
    runtime: RuntimeOptions,
    shown: OutputOptions,
) -> None:
    """Time ONNX models on devices.

    Models run in turn, round after round, until the interval of each latency is within
    --precision. Latencies are corrected to the device's usual pace, its typical speed in earlier
    timings; intervals include its variation over time. Inputs are random unless given. A free
    dimension that no option sets becomes 1, with a warning. Ctrl-C ends the timing and keeps all
    results.

    Verdicts: stable; noisy (the device was disturbed); unresolved (the interval is wider than
    --precision); throttled (the device reduced its clock).

    Exit codes: 0 success; 1 a model or a device failed; 2 wrong usage; 3 a model missed the
    precision, the device throttled, or the energy is missing or unresolved; 130 interrupted.

    Example: esm-host time a.onnx b.onnx --device pi4 --batch 1,8
    """
    from esm_host.cli.progress import DeviceLines
    from esm_host.timing import (
        TimingSettings,
        TimingWatcher,
        for_models,
        parse_duration,
        read_request,
        time_models,
        timing_spec,
    )
    from esm_host.timing.examples import example_file
    from esm_host.transport import devices
    from esm_protos.messages import RunOrder

    names = [name.strip() for text in device or ["local"] for name in text.split(",")]
    if not all(names):
        raise UsageError(f"--device '{','.join(names)}': give 'local', host:port or a name")
    counts = _numbers("--threads", cases.threads or ["1"])
    providers, session = provider.executions(), runtime.settings()
    spec = timing_spec(
        measuring.runs,
        measuring.precision,
        measuring.max_runs,
        measuring.max_time,
        measuring.sessions,
        run_order=RunOrder(measuring.protocol.value),
        warmup=measuring.warmup,
        trim=measuring.trim,
        threads=counts[0],
        provider=providers[0].provider,
        provider_options=providers[0].options,
        allow_fallback=provider.allow_fallback,
        session=session,
        model_timeout_s=measuring.timeout,
        load_timeout_s=measuring.load_timeout,
        seed=measuring.seed,
    )
    for needed, option in (("profile", "profile_runs"), ("energy", "energy_time")):
        if was_given(context, option) and not getattr(shown, needed):
            name = flag(option)
            raise UsageError(
                f"{name} {getattr(shown, option):g} has no effect without {flag(needed)}: add it, "
                f"or leave {name} out"
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
        given,
        batches,
        cases.shape or (),
        counts,
        cases.feed or (),
        folder,
        cases.dim or (),
        providers,
        session.free_dims,
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
    spec = for_models(spec, len(request) // len(providers), measuring.max_time)
    with DeviceLines(names, shown.quiet) as on_progress:
        timing = time_models(
            devices.connect,
            names,
            request,
            spec,
            TimingSettings(
                profile_runs=shown.profile_runs if shown.profile else 0,
                wait=not measuring.no_wait,
                raw=measuring.raw,
                spread_s=spread_s,
                energy_s=shown.energy_time if shown.energy else 0.0,
            ),
            TimingWatcher(on_progress, on_progress.wait, _say_interrupted),
        )
    _show(timing, shown)
    raise typer.Exit(_exit_code(timing))


def _show(timing: Timing, shown: OutputOptions) -> None:
    from esm_host.cli.timing_table import as_csv, print_profiles, print_tables

    texts = []
    if shown.output is not None:
        # Not indented: each of thousands of samples would take a line.
        text = json.dumps(timing.to_json(on_command_line), allow_nan=False)
        texts.append((shown.output, text, f"all samples are in {shown.output}"))
    if shown.csv is not None:
        texts.append((shown.csv, as_csv(timing), f"a line per result is in {shown.csv}"))
    with results_first(texts):
        if "-" not in (str(shown.output), str(shown.csv)):
            print_tables(timing, shown.wide)
            print_profiles(timing)


def _say_interrupted() -> None:
    typer.echo(
        "interrupted: keeping the results so far; press Ctrl-C again to stop at once", err=True
    )


def _numbers(flag: str, texts: list[str]) -> tuple[int, ...]:
    """Return the numbers of comma-separated or repeated options."""
    try:
        return tuple(int(number) for text in texts for number in text.split(","))
    except ValueError:
        raise UsageError(f"{flag} {' '.join(texts)}: give whole numbers, such as 1,8") from None


def _exit_code(timing: Timing) -> int:
    """Print warnings to stderr and return the exit code."""
    from esm_host.evaluation.verdict import Verdict

    several = len(timing.devices) > 1
    failed = unsure = disturbed = False
    doubts: dict[tuple[str, str], list[str]] = {}
    assumed: dict[tuple[str, str], None] = {}
    for device in timing.devices:
        if device.error is not None:
            failed = True
            typer.echo(f"warning: {device.name}: {device.error.for_command()}", err=True)
        if device.energy_problem:
            unsure = True
            typer.echo(f"warning: {device.name}: {device.energy_problem}", err=True)
    for result in timing.results:
        name = f"{result.device}: {result.name}" if several else result.name
        if result.failure is not None:
            failed = True
            kind = result.failure.kind.value
            message = on_command_line(of_agent(result.failure.message))
            typer.echo(f"warning: {name}: {kind}: {message}", err=True)
        unsure |= bool(result.measurement.energy and result.measurement.energy.problem)
        for text in result.assumptions:
            assumed[result.entry.path, on_command_line(text)] = None
        if result.judgement is None or not result.warnings:
            continue
        verdict = result.judgement.verdict
        why = on_command_line(f"{verdict}: {'; '.join(result.warnings)}")
        doubts.setdefault((result.device, why), []).append(name)
        # --runs sets no precision to reach.
        unsure |= verdict is Verdict.THROTTLED or (
            verdict is Verdict.UNRESOLVED and timing.spec.precision > 0
        )
        disturbed |= result.judgement.disturbed
    for (_, why), names in doubts.items():
        # A disturbed device affects all models of a block: one line is enough.
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        typer.echo(f"warning: {names[0]}{more}: {why}", err=True)
    for path, text in assumed:
        typer.echo(f"warning: {path}: {text}", err=True)
    if unsure and disturbed:
        typer.echo("run esm-host devices doctor to find what disturbs the device", err=True)
    if timing.interrupted:
        return INTERRUPTED
    return FAILED if failed else UNSURE if unsure else 0
