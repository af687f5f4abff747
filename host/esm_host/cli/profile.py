"""``esm-host profile``: learns a latency predictor for a device."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.options import (
    TIMING,
    AllowFallback,
    AsMeasured,
    Batch,
    CudaGraph,
    DeviceOrGroup,
    Dtype,
    Ep,
    EpOption,
    MaxRuns,
    NoWait,
    Patience,
    Precision,
    Quiet,
    Resolution,
    Seed,
    SharedStore,
    Space,
    Tf32,
    Threads,
    WidthMult,
    as_share,
    encoding_names,
    predictor_names,
    verdict_names,
    was_given,
)

if TYPE_CHECKING:
    from esm_host.campaign.folder import RunFolder
    from esm_host.extension.settings import Settings


class SamplingName(enum.StrEnum):
    balanced = "balanced"
    random = "random"


class ExtensionName(enum.StrEnum):
    balanced = "balanced"
    cost_aware = "cost-aware"


class WeightsName(enum.StrEnum):
    equal = "equal"
    interval = "interval"


class ProtocolName(enum.StrEnum):
    interleaved = "interleaved"
    sequential = "sequential"


class CacheName(enum.StrEnum):
    warm = "warm"
    cold = "cold"


class JudgeName(enum.StrEnum):
    bins = "bins"
    overall = "overall"


_ALSO_SET_BY = {
    "runs": ("max_runs",),
    "precision": ("runs",),
    "long_visits": ("cache",),
    "provider_options": ("tf32", "cuda_graph"),
}

_SAMPLES = "Sampling and stopping"


@one_line_errors
def profile(
    ctx: typer.Context,
    device: DeviceOrGroup = "local",
    run: Annotated[
        Path | None, typer.Option(help="Folder of the campaign. [default: runs/DEVICE-SPACE]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the folder's campaign.")
    ] = False,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="With --resume: measure no more, and train on what is there. The campaign can go "
            "on later.",
        ),
    ] = False,
    preset: Annotated[
        str,
        typer.Option(
            help="Begin with a published system's settings: esm (150 runs in a row, the paper's "
            "perceptron on plain inputs, equal weights, 300 and 100 models). Other options change "
            "single ones."
        ),
    ] = "",
    store: SharedStore = "",
    space: Space = "resnet",
    resolution: Resolution = None,
    width_mult: WidthMult = 1.0,
    batch: Batch = 1,
    dtype: Dtype = "float32",
    initial: Annotated[
        int,
        typer.Option(help="Models measured before the first training.", rich_help_panel=_SAMPLES),
    ] = 300,
    step: Annotated[
        int, typer.Option(help="Models added by each extension.", rich_help_panel=_SAMPLES)
    ] = 100,
    bins: Annotated[
        int | None,
        typer.Option(
            help="Bins along depth. [default: 5, or as many as there are depths]",
            rich_help_panel=_SAMPLES,
        ),
    ] = None,
    target_accuracy: Annotated[
        float,
        typer.Option(
            help="Percent that every bin must reach (100 - mean absolute percentage error).",
            rich_help_panel=_SAMPLES,
        ),
    ] = 95.0,
    judge: Annotated[
        JudgeName,
        typer.Option(
            help="Who must reach it: every bin, or all together.", rich_help_panel=_SAMPLES
        ),
    ] = JudgeName.bins,
    max_models: Annotated[
        int, typer.Option(help="Stop after so many models.", rich_help_panel=_SAMPLES)
    ] = 4000,
    predictor: Annotated[
        str,
        typer.Option(
            help="auto chooses by itself; mlp is the paper's; docs/predictors.md has them all.",
            autocompletion=predictor_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = "auto",
    encoding: Annotated[
        str | None,
        typer.Option(
            help="fcc, fc, statistical, ... [default: the one that suits the predictor]",
            autocompletion=encoding_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = None,
    warm_start: Annotated[
        str,
        typer.Option(
            metavar="SOURCES",
            help="Learn from other devices as well: sources of esm-host sources list, folders of "
            "campaigns or Parquet files, by commas; 'all' takes what there is of the space.",
            rich_help_panel=_SAMPLES,
        ),
    ] = "",
    sampling: Annotated[
        SamplingName,
        typer.Option(
            help="Equal numbers per bin, or all left to chance.", rich_help_panel=_SAMPLES
        ),
    ] = SamplingName.balanced,
    weight_below: Annotated[
        float,
        typer.Option(help="Share of a step for bins below the target.", rich_help_panel=_SAMPLES),
    ] = 0.8,
    weight_above: Annotated[
        float, typer.Option(help="Share of a step for the others.", rich_help_panel=_SAMPLES)
    ] = 0.2,
    extension: Annotated[
        ExtensionName,
        typer.Option(
            help="How a step is drawn: by chance within bins (the paper's Algorithm 1), or where "
            "the predictor is unsure, per second of device time.",
            rich_help_panel=_SAMPLES,
        ),
    ] = ExtensionName.balanced,
    train_on: Annotated[
        str,
        typer.Option(
            help="Verdicts of the numbers to learn from, by commas; all by default.",
            autocompletion=verdict_names,
            rich_help_panel=_SAMPLES,
            show_default=False,
        ),
    ] = "stable,noisy,unresolved,throttled",
    weights: Annotated[
        WeightsName,
        typer.Option(
            help="All numbers count the same, or uncertain ones less.", rich_help_panel=_SAMPLES
        ),
    ] = WeightsName.interval,
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            help="Models in turn, or all runs of a model in a row (the paper's).",
            rich_help_panel=TIMING,
        ),
    ] = ProtocolName.interleaved,
    precision: Precision = 2.0,
    max_runs: MaxRuns = 150,
    runs: Annotated[
        int | None,
        typer.Option(
            help="Exactly so many counted runs per model, whatever the interval (the paper: 150).",
            rich_help_panel=TIMING,
        ),
    ] = None,
    runs_per_visit: Annotated[
        int, typer.Option(help="Counted runs per visit (interleaved).", rich_help_panel=TIMING)
    ] = 1,
    warmup: Annotated[
        int,
        typer.Option(help="Uncounted runs before each visit, at most.", rich_help_panel=TIMING),
    ] = 2,
    trim: Annotated[
        float, typer.Option(help="Share of runs dropped at each end.", rich_help_panel=TIMING)
    ] = 0.2,
    threads: Threads = 1,
    ep: Ep = "cpu",
    ep_option: EpOption = None,
    tf32: Tf32 = False,
    cuda_graph: CudaGraph = False,
    allow_fallback: AllowFallback = False,
    timeout: Annotated[
        float,
        typer.Option(help="Seconds that one model may take at a time.", rich_help_panel=TIMING),
    ] = 60.0,
    block_size: Annotated[
        int, typer.Option(help="Models measured together.", rich_help_panel=TIMING)
    ] = 20,
    references: Annotated[
        int,
        typer.Option(
            help="The campaign's own reference models in every block.", rich_help_panel=TIMING
        ),
    ] = 4,
    reference_tolerance: Annotated[
        float,
        typer.Option(help="Percent by which a reference may stray.", rich_help_panel=TIMING),
    ] = 3.0,
    max_remeasurements: Annotated[
        int,
        typer.Option(help="Times a block that failed is measured again.", rich_help_panel=TIMING),
    ] = 2,
    group_tolerance: Annotated[
        float,
        typer.Option(
            help="Percent by which one device of a group may be slower or faster than the others.",
            rich_help_panel=TIMING,
        ),
    ] = 10.0,
    raw: AsMeasured = False,
    cache: Annotated[
        CacheName,
        typer.Option(
            help="Latencies of a model that has just run, or of one that follows another.",
            rich_help_panel=TIMING,
        ),
    ] = CacheName.warm,
    patience: Patience = 60.0,
    no_wait: NoWait = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Learn a latency predictor for a device by measuring as few models as possible.

    Samples a search space, measures the models on the device, trains a predictor, and measures
    more where it is not accurate enough, until every depth bin reaches the target. Ctrl-C keeps
    what was measured; --resume goes on from there. A group of devices of one kind measures
    together (docs/groups.md).

    Example: esm-host profile --device pi4 --space resnet --resolution 64 --run runs/pi4
    """
    from esm_host.campaign.folder import RunFolder
    from esm_host.cli.campaign import new_settings, run_campaign, safe
    from esm_host.cli.live import Live
    from esm_host.errors import UsageError
    from esm_host.extension.settings import LONG_VISITS
    from esm_host.timing.provider_options import given_options
    from esm_host.workflows.profile import absolute
    from esm_protos.messages import RunOrder

    given = {
        "device": device,
        "space": absolute(space),
        "resolution": resolution,
        "width_mult": width_mult,
        "batch": batch,
        "dtype": dtype,
        "initial": initial,
        "step": step,
        "bins": bins,
        "target_accuracy_percent": target_accuracy,
        "judge": judge.value,
        "predictor": predictor,
        "encoding": encoding,
        "sampling": sampling.value,
        "weight_below": weight_below,
        "weight_above": weight_above,
        "extension": extension.value,
        "train_on": train_on,
        "weights": weights.value,
        "references": references,
        "reference_tolerance_percent": reference_tolerance,
        "max_remeasurements": max_remeasurements,
        "group_tolerance_percent": group_tolerance,
        "block_size": block_size,
        "max_models": max_models,
        "seed": seed,
        "warm_start": warm_start,
        "raw": raw,
    }
    asked = {name for name in ("precision", "max_runs") if was_given(ctx, name)}
    if runs is not None and asked:
        raise UsageError("--runs takes exactly so many runs: leave out --precision and --max-runs")
    share = as_share("--precision", precision)
    together = protocol is ProtocolName.interleaved
    fixed = runs is not None or protocol is ProtocolName.sequential
    spec = {
        "protocol": RunOrder(protocol.value),
        "runs": max_runs if runs is None else runs,
        "precision": 0.0 if fixed else share,
        "runs_per_visit": runs_per_visit,
        "warmup": warmup,
        "trim": trim,
        "threads": threads,
        "seed": seed,
        "provider": ep,
        "model_timeout_s": timeout,
        "provider_options": given_options(
            ep_option or (), None if resume else ep, tf32=tf32, cuda_graph=cuda_graph
        ),
        "allow_fallback": allow_fallback,
        # In a row, all models are warm.
        "long_visits": LONG_VISITS if together and cache is CacheName.warm else 0,
    }
    if finish and not resume:
        raise UsageError("--finish trains on what a campaign has measured: give --resume as well")
    if preset and resume:
        raise UsageError("--preset is for a new campaign: leave it out, or --resume")
    path = run or Path("runs") / f"{safe(device)}-{safe(space)}"
    folder = RunFolder(path, "" if resume else store)
    if resume:
        if _on_the_command_line(ctx, "store"):
            folder.check_store(store)
        folder.prepare(resume=True)
        settings = _resumed(ctx, folder, given, spec)
    else:
        # Not on a resumed one, which is measured as it was begun.
        spec["references"] = together
        if preset:
            given["preset"] = preset
            _begin_with(preset, ctx, given, spec)
        settings = new_settings(given, spec)
    with Live(quiet) as live:
        raise typer.Exit(
            run_campaign(settings, folder, resume, patience, live, wait=not no_wait, finish=finish)
        )


def _begin_with(name: str, ctx: typer.Context, given: dict[str, Any], spec: dict[str, Any]) -> None:
    """Put a preset's values in place of those that nobody gave."""
    from esm_host.extension.presets import preset
    from esm_protos.messages import RunOrder

    found = preset(name)
    for values, asked in ((found.settings, given), (found.spec, spec)):
        for setting, value in values.items():
            if not any(was_given(ctx, option) for option in _options(setting)):
                asked[setting] = value
    if spec["protocol"] is RunOrder.SEQUENTIAL:
        spec |= {"references": False, "long_visits": 0}


def _options(setting: str) -> tuple[str, ...]:
    """Return the parameters that say a setting."""
    from esm_host.arguments import flag

    option = flag(setting).removeprefix("--").replace("-", "_")
    return (option, *_ALSO_SET_BY.get(setting, ()))


def _on_the_command_line(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _resumed(
    ctx: typer.Context, folder: RunFolder, given: dict[str, Any], spec: dict[str, Any]
) -> Settings:
    """The stored settings, with what may change taken from the command line where it is given."""
    from esm_host.errors import MismatchError
    from esm_host.workflows.profile import RESUMABLE

    stored = folder.read_settings()
    changes = {}
    for owner, asked in ((vars(stored), given), (vars(stored.spec), spec)):
        for name, value in asked.items():
            if value == owner[name]:
                continue
            if not any(was_given(ctx, option) for option in _options(name)):
                continue
            if name not in RESUMABLE:
                raise MismatchError(
                    f"{folder.path} was measured with {_written(name, owner)}, not "
                    f"{_written(name, asked)}: leave the option out, or give another --run"
                )
            changes[name] = value
    return replace(stored, **changes)


def _written(name: str, settings: Mapping[str, Any]) -> str:
    """A setting as it is written on the command line, or ``on`` and ``off``."""
    from esm_host.arguments import flag

    if name in ("runs", "precision"):  # exactly so many, or as many as a precision takes
        runs, precision = settings["runs"], settings["precision"]
        if not precision:
            return f"--runs {runs}"
        return f"--max-runs {runs}" if name == "runs" else f"--precision {100 * precision:g}"
    if name == "long_visits":
        return f"--cache {'warm' if settings[name] else 'cold'}"
    if name == "provider_options":
        given = " ".join(f"{flag(name)} {key}={value}" for key, value in settings[name].items())
        return given or f"no {flag(name)}"
    value = getattr(settings[name], "value", settings[name])
    if isinstance(value, bool):
        value = "on" if value else "off"
    return f"{flag(name)} {value}"
