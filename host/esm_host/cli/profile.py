"""Command ``esm-host profile``: makes settings of options; :mod:`esm_host.workflows` runs them."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import (
    ProviderOptions,
    RuntimeOptions,
    SessionOptions,
    SpaceOptions,
    grouped,
    option_of,
    settings_of,
)
from esm_host.cli.options import (
    OWN,
    TIMING,
    AsMeasured,
    CampaignMetrics,
    DeviceOrGroup,
    EnergyTime,
    MaxRuns,
    Precision,
    SharedStore,
    Threads,
    as_share,
    encoding_names,
    predictor_names,
    read_contexts,
    sampler_names,
    verdict_names,
    was_given,
)
from esm_host.errors import UsageError

if TYPE_CHECKING:
    from esm_host.campaign.folder import RunFolder
    from esm_host.extension.settings import Settings


class ExtensionName(enum.StrEnum):
    """Values of ``--extension``."""

    balanced = "balanced"
    cost_aware = "cost-aware"


class WeightsName(enum.StrEnum):
    """Values of ``--weights``."""

    equal = "equal"
    interval = "interval"


class ProtocolName(enum.StrEnum):
    """Values of ``--protocol``."""

    interleaved = "interleaved"
    sequential = "sequential"


class CacheName(enum.StrEnum):
    """Values of ``--cache``."""

    warm = "warm"
    cold = "cold"


class JudgeName(enum.StrEnum):
    """Values of ``--judge``."""

    bins = "bins"
    overall = "overall"


_ALSO_SET_BY = {
    "runs": ("max_runs",),
    "precision": ("runs",),
    "long_visits": ("cache",),
    "provider_options": ("tf32", "cuda_graph"),
}

_SAMPLES = "Sampling and stopping"


@dataclass(frozen=True)
class CampaignOptions:
    """Options of the device and of the campaign's records."""

    device: DeviceOrGroup = "local"
    metric: CampaignMetrics = "latency"
    run: Annotated[
        Path | None, typer.Option(help="Campaign folder. [default: runs/DEVICE-SPACE]")
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the campaign in the folder.")
    ] = False
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="With --resume: train on the samples in the folder without measuring more. The "
            "campaign can be resumed later.",
        ),
    ] = False
    preset: Annotated[
        str,
        typer.Option(
            help="Settings of a published system. esm: --protocol sequential --runs 150 "
            "--predictor mlp-esm --encoding fcc --weights equal --raw. Other options override "
            "single settings."
        ),
    ] = ""
    store: SharedStore = ""


@dataclass(frozen=True)
class SamplingOptions:
    """Options of sampling, training and stopping."""

    initial: Annotated[
        int | None,
        typer.Option(
            help="Number of models measured before the first training.",
            show_default="20, or 300 with another sampler",
            rich_help_panel=_SAMPLES,
        ),
    ] = None
    step: Annotated[
        int | None,
        typer.Option(
            help="Number of models added by each extension.",
            show_default="20, or 100 with another sampler",
            rich_help_panel=_SAMPLES,
        ),
    ] = None
    bins: Annotated[
        int | None,
        typer.Option(
            help="Number of depth bins, which are ranges of the depth of networks (their number of "
            "blocks). [default: 5, or the number of depths if lower]",
            rich_help_panel=_SAMPLES,
        ),
    ] = None
    target_accuracy: Annotated[
        float,
        typer.Option(
            help="Target accuracy, in percent (100 - mean absolute percentage error).",
            rich_help_panel=_SAMPLES,
        ),
    ] = 95.0
    judge: Annotated[
        JudgeName,
        typer.Option(
            help="Whether each depth bin must reach the target, or only the overall accuracy.",
            rich_help_panel=_SAMPLES,
        ),
    ] = JudgeName.bins
    max_models: Annotated[
        int,
        typer.Option(help="Stop after learning from this many models.", rich_help_panel=_SAMPLES),
    ] = 4000
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Stop after this device time, such as 5m; without --target-accuracy all of it is "
            "used.",
            rich_help_panel=_SAMPLES,
        ),
    ] = None
    verify: Annotated[
        int,
        typer.Option(
            help="Number of random models that check the predictor once the target is reached or "
            "the budget used. If they show the target to be missed, the campaign learns from them "
            "and goes on. 0: no check.",
            rich_help_panel=_SAMPLES,
        ),
    ] = 20
    predictor: Annotated[
        str,
        typer.Option(
            help="Latency predictor: auto (mean of Gaussian processes, weighted by "
            "cross-validation), mlp (multilayer perceptron), another of docs/predictors.md, or "
            f"{OWN}.",
            autocompletion=predictor_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = "auto"
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of architectures as input of the predictor: fcc (counts of the "
            "combinations of features), fc (counts of each feature), another of "
            f"docs/predictors.md, or {OWN}. [default: depends on the predictor]",
            autocompletion=encoding_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = None
    warm_start: Annotated[
        str,
        typer.Option(
            metavar="SOURCES",
            help="Also train on latencies of other devices: names from esm-host sources list, "
            "campaign folders or Parquet files, separated by commas; 'all' takes every source of "
            "the space.",
            rich_help_panel=_SAMPLES,
        ),
    ] = ""
    sampling: Annotated[
        str,
        typer.Option(
            help="Sampler: informative (the models that teach the predictor most; a depth bin "
            "passes when the lower bound of its accuracy does), balanced (equal numbers per depth "
            f"bin, then Algorithm 1 of the ESM paper), random (uniform), or {OWN}.",
            autocompletion=sampler_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = "informative"
    confidence: Annotated[
        float,
        typer.Option(
            help="Confidence of the lower bound of a bin's accuracy, in percent (informative "
            "sampling only).",
            rich_help_panel=_SAMPLES,
        ),
    ] = 90.0
    weight_below: Annotated[
        float,
        typer.Option(
            help="Weight of the depth bins below the target, with --sampling balanced. Their share "
            "of a step is this weight over the sum of both weights.",
            rich_help_panel=_SAMPLES,
        ),
    ] = 0.8
    weight_above: Annotated[
        float,
        typer.Option(help="Weight of the other depth bins in a step.", rich_help_panel=_SAMPLES),
    ] = 0.2
    extension: Annotated[
        ExtensionName,
        typer.Option(
            help="Selection of a step's models with --sampling balanced: balanced (at random "
            "within depth bins, Algorithm 1 of the ESM paper) or cost-aware (most uncertainty of "
            "the predictor per second of device time).",
            rich_help_panel=_SAMPLES,
        ),
    ] = ExtensionName.balanced
    train_on: Annotated[
        str,
        typer.Option(
            help="Verdicts of the latencies to train on, separated by commas: stable, noisy (the "
            "device was disturbed), unresolved (the interval is wider than --precision), throttled "
            "(the device reduced its clock). [default: all]",
            autocompletion=verdict_names,
            rich_help_panel=_SAMPLES,
            show_default=False,
        ),
    ] = "stable,noisy,unresolved,throttled"
    weights: Annotated[
        WeightsName,
        typer.Option(
            help="Weights of the training latencies: equal, or lower for wide intervals.",
            rich_help_panel=_SAMPLES,
        ),
    ] = WeightsName.interval


@dataclass(frozen=True)
class TimingOptions:
    """Options of a model's runs."""

    protocol: Annotated[
        ProtocolName,
        typer.Option(
            help="Order of runs: models in turn, or all runs of a model in a row (the paper's).",
            rich_help_panel=TIMING,
        ),
    ] = ProtocolName.interleaved
    precision: Precision = 2.0
    max_runs: MaxRuns = 150
    runs: Annotated[
        int | None,
        typer.Option(
            help="Exact number of counted runs per model, regardless of the interval (the paper: "
            "150).",
            rich_help_panel=TIMING,
        ),
    ] = None
    runs_per_visit: Annotated[
        int,
        typer.Option(
            help="Number of counted runs each time that it is a model's turn (interleaved only).",
            rich_help_panel=TIMING,
        ),
    ] = 1
    warmup: Annotated[
        int,
        typer.Option(
            help="Maximum number of uncounted warm-up runs each time that it is a model's turn.",
            rich_help_panel=TIMING,
        ),
    ] = 2
    trim: Annotated[
        float,
        typer.Option(
            help="Share of the fastest and of the slowest runs to drop.", rich_help_panel=TIMING
        ),
    ] = 0.2
    threads: Threads = 1


@dataclass(frozen=True)
class BlockOptions:
    """Options of blocks and their quality control."""

    timeout: Annotated[
        float,
        typer.Option(
            help="Time limit for one inference, in seconds.",
            rich_help_panel=TIMING,
        ),
    ] = 60.0
    load_timeout: Annotated[
        float,
        typer.Option(
            help="Time limit for loading a model, in seconds. Some providers compile for minutes.",
            rich_help_panel=TIMING,
        ),
    ] = 600.0
    block_size: Annotated[
        int,
        typer.Option(
            help="Number of models in a block, which are measured together.", rich_help_panel=TIMING
        ),
    ] = 20
    references: Annotated[
        int,
        typer.Option(
            help="Number of reference models: architectures that are measured in every block, to "
            "detect drift of the device.",
            rich_help_panel=TIMING,
        ),
    ] = 4
    reference_tolerance: Annotated[
        float,
        typer.Option(
            help="Maximum drift of a reference model between blocks, in percent. With more, the "
            "block is measured again.",
            rich_help_panel=TIMING,
        ),
    ] = 3.0
    max_remeasurements: Annotated[
        int,
        typer.Option(
            help="Maximum number of times that a block is measured again.",
            rich_help_panel=TIMING,
        ),
    ] = 2
    group_tolerance: Annotated[
        float,
        typer.Option(
            help="Maximum difference in latency between a device of a group and the others, in "
            "percent. A device beyond it is left out.",
            rich_help_panel=TIMING,
        ),
    ] = 10.0
    raw: AsMeasured = False
    energy_time: EnergyTime = 40.0
    cache: Annotated[
        CacheName,
        typer.Option(
            help="Processor caches that latencies are for: warm (the model itself ran just "
            "before) or cold (another model ran just before).",
            rich_help_panel=TIMING,
        ),
    ] = CacheName.warm


@one_line_errors
@grouped
def profile(
    ctx: typer.Context,
    campaign: CampaignOptions,
    space: SpaceOptions,
    sampling: SamplingOptions,
    timing: TimingOptions,
    provider: ProviderOptions,
    runtime: RuntimeOptions,
    blocks: BlockOptions,
    session: SessionOptions,
) -> None:
    """Train a predictor of latency, energy or memory from as few measurements as possible.

    The command samples a search space, measures the models and trains a predictor. It then
    measures more models where accuracy is low, until every depth bin (a range of numbers of
    blocks) reaches the target. Ctrl-C keeps all measurements; --resume continues. Devices of one
    kind can share the work as a group (docs/groups.md).

    Example: esm-host profile --device pi4 --space resnet --resolution 64 --run runs/pi4
    """
    from esm_host.campaign.folder import RunFolder
    from esm_host.cli.campaign import new_settings, run_campaign, safe
    from esm_host.cli.live import Live
    from esm_host.extension.settings import LEAST_INITIAL, Settings
    from esm_host.timing.spread import parse_duration
    from esm_protos.plugins import absolute

    for name, value, least in (
        ("initial", sampling.initial, LEAST_INITIAL),
        ("step", sampling.step, 1),
    ):
        if value == 0:  # which means the default to SamplingSettings
            raise UsageError(f"--{name} 0: give {least} or more, or omit it")
    found = settings_of(Settings, campaign, space, sampling, blocks, session)
    found["contexts"] = read_contexts(space.context) or None
    given = {name: value for name, value in found.items() if value is not None}
    plugins = ("space", "predictor", "encoding", "sampling")
    given |= {name: absolute(given[name]) for name in plugins if given.get(name)}
    if sampling.budget is not None:
        given["budget_s"] = parse_duration(sampling.budget, "budget_s")
        if not (campaign.resume or was_given(ctx, "target_accuracy")):
            given["target_accuracy_percent"] = 100.0
    spec = _spec(ctx, campaign, timing, provider, blocks, session)
    spec["session"] = runtime.settings()
    if campaign.finish and not campaign.resume:
        raise UsageError("--finish needs --resume")
    if campaign.preset and campaign.resume:
        raise UsageError("--preset cannot be combined with --resume: leave one of them out")
    name = f"{safe(campaign.device)}-{safe(space.space)}"
    path = campaign.run or Path("runs") / name
    folder = RunFolder(path, "" if campaign.resume else campaign.store)
    if campaign.resume:
        if _on_the_command_line(ctx, "store"):
            folder.check_store(campaign.store)
        folder.prepare(resume=True)
        settings = _resumed(ctx, folder, given, spec)
    else:
        # A resumed campaign keeps its stored setting.
        spec["references"] = timing.protocol is ProtocolName.interleaved
        if campaign.preset:
            _apply_preset(campaign.preset, ctx, given, spec)
        settings = new_settings(given, spec)
    with Live(session.quiet) as live:
        raise typer.Exit(
            run_campaign(
                settings,
                folder,
                campaign.resume,
                session.patience,
                live,
                wait=not session.no_wait,
                finish=campaign.finish,
            )
        )


def _spec(
    ctx: typer.Context,
    campaign: CampaignOptions,
    timing: TimingOptions,
    provider: ProviderOptions,
    blocks: BlockOptions,
    session: SessionOptions,
) -> dict[str, Any]:
    """Return the fields of ``MeasureSpec`` that the options set."""
    from esm_host.extension.settings import LONG_VISITS
    from esm_protos.messages import MeasureSpec, RunOrder

    asked = {name for name in ("precision", "max_runs") if was_given(ctx, name)}
    if timing.runs is not None and asked:
        raise UsageError("--runs cannot be combined with --precision or --max-runs: leave them out")
    share = as_share("--precision", timing.precision)
    together = timing.protocol is ProtocolName.interleaved
    spec = {
        **settings_of(MeasureSpec, timing, blocks, session),
        **provider.spec(is_resumed=campaign.resume),
        "run_order": RunOrder(timing.protocol.value),
        "runs": timing.max_runs if timing.runs is None else timing.runs,
        "precision": 0.0 if timing.runs is not None or not together else share,
        # Sequential runs are always warm.
        "long_visits": LONG_VISITS if together and blocks.cache is CacheName.warm else 0,
    }
    del spec["references"]  # the option of this name counts the campaign's own references
    return spec


def _apply_preset(
    name: str, ctx: typer.Context, given: dict[str, Any], spec: dict[str, Any]
) -> None:
    """Replace the values that the user did not set by those of a preset."""
    from esm_host.extension.presets import preset
    from esm_protos.messages import RunOrder

    found = preset(name)
    for values, asked in ((found.settings, given), (found.spec, spec)):
        for setting, value in values.items():
            if not any(was_given(ctx, option) for option in _options(setting)):
                asked[setting] = value
    if spec["run_order"] is RunOrder.SEQUENTIAL:
        spec |= {"references": False, "long_visits": 0}


def _options(setting: str) -> tuple[str, ...]:
    """Return the parameters that can set a setting."""
    return (option_of(setting), *_ALSO_SET_BY.get(setting, ()))


def _on_the_command_line(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _resumed(
    ctx: typer.Context, folder: RunFolder, given: dict[str, Any], spec: dict[str, Any]
) -> Settings:
    """Return the stored settings, updated by the command line.

    Raises:
        MismatchError: an option differs from the stored setting and may not change.
    """
    from esm_host.errors import MismatchError
    from esm_host.workflows.profile import RESUMABLE

    stored = folder.read_settings()
    changes, spec_changes = {}, {}
    asked_spec = {**spec, **vars(spec["session"])}
    del asked_spec["session"]
    measured = {**vars(stored.spec), **vars(stored.spec.session)}
    for owner, asked in ((vars(stored), given), (measured, asked_spec)):
        for name, value in asked.items():
            if value == owner[name]:
                continue
            if not any(was_given(ctx, option) for option in _options(name)):
                continue
            if name == _RESUMABLE_SPEC:
                spec_changes[name] = value
                continue
            if name not in RESUMABLE:
                raise MismatchError(
                    f"{folder.path} was measured with {_as_option(name, owner)}, not "
                    f"{_as_option(name, asked)}: leave the option out, or give another --run"
                )
            changes[name] = value
    return replace(stored, spec=replace(stored.spec, **spec_changes), **changes)


_RESUMABLE_SPEC = "load_timeout_s"
"""Field of the spec that a resumed campaign may change, because it decides no latency."""


def _as_option(name: str, settings: Mapping[str, Any]) -> str:
    """Return a setting as an option of the command line; flags as ``on`` or ``off``."""
    from esm_host.arguments import flag

    if name in ("runs", "precision"):
        runs, precision = settings["runs"], settings["precision"]
        if not precision:
            return f"--runs {runs}"
        return f"--max-runs {runs}" if name == "runs" else f"--precision {100 * precision:g}"
    if name == "long_visits":
        return f"--cache {'warm' if settings[name] else 'cold'}"
    if isinstance(settings[name], Mapping):
        given = " ".join(
            f"{flag(name)} {key}={','.join(map(str, v)) if isinstance(v, tuple) else v}"
            for key, v in settings[name].items()
        )
        return given or f"no {flag(name)}"
    value = getattr(settings[name], "value", settings[name])
    if isinstance(value, bool):
        value = "on" if value else "off"
    return f"{flag(name)} {value}"
