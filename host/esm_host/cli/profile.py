"""``esm-host profile``: learns a latency predictor for a device."""

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
    DeviceOrGroup,
    MaxRuns,
    Precision,
    SharedStore,
    Threads,
    as_share,
    encoding_names,
    predictor_names,
    sampler_names,
    verdict_names,
    was_given,
)
from esm_host.errors import UsageError

if TYPE_CHECKING:
    from esm_host.campaign.folder import RunFolder
    from esm_host.extension.settings import Settings


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


@dataclass(frozen=True)
class CampaignOptions:
    """Options of the device and of the campaign's records."""

    device: DeviceOrGroup = "local"
    run: Annotated[
        Path | None, typer.Option(help="Folder of the campaign. [default: runs/DEVICE-SPACE]")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the folder's campaign.")] = (
        False
    )
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="With --resume: measure no more, and train on what is there. The campaign can go "
            "on later.",
        ),
    ] = False
    preset: Annotated[
        str,
        typer.Option(
            help="Begin with a published system's settings: esm (150 runs in a row, the paper's "
            "perceptron on plain inputs, equal weights, 300 and 100 models). Other options change "
            "single ones."
        ),
    ] = ""
    store: SharedStore = ""


@dataclass(frozen=True)
class SamplingOptions:
    """Options of sampling, training and the target."""

    initial: Annotated[
        int,
        typer.Option(help="Models measured before the first training.", rich_help_panel=_SAMPLES),
    ] = 300
    step: Annotated[
        int, typer.Option(help="Models added by each extension.", rich_help_panel=_SAMPLES)
    ] = 100
    bins: Annotated[
        int | None,
        typer.Option(
            help="Bins along depth. [default: 5, or as many as there are depths]",
            rich_help_panel=_SAMPLES,
        ),
    ] = None
    target_accuracy: Annotated[
        float,
        typer.Option(
            help="Percent that every bin must reach (100 - mean absolute percentage error).",
            rich_help_panel=_SAMPLES,
        ),
    ] = 95.0
    judge: Annotated[
        JudgeName,
        typer.Option(
            help="Who must reach it: every bin, or all together.", rich_help_panel=_SAMPLES
        ),
    ] = JudgeName.bins
    max_models: Annotated[
        int, typer.Option(help="Stop after so many models.", rich_help_panel=_SAMPLES)
    ] = 4000
    predictor: Annotated[
        str,
        typer.Option(
            help="auto chooses by itself; mlp is the paper's; docs/predictors.md has them all. Or "
            f"{OWN}.",
            autocompletion=predictor_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = "auto"
    encoding: Annotated[
        str | None,
        typer.Option(
            help=f"fcc, fc, statistical, ..., or {OWN}. [default: the one that suits the "
            "predictor]",
            autocompletion=encoding_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = None
    warm_start: Annotated[
        str,
        typer.Option(
            metavar="SOURCES",
            help="Learn from other devices as well: sources of esm-host sources list, folders of "
            "campaigns or Parquet files, by commas; 'all' takes what there is of the space.",
            rich_help_panel=_SAMPLES,
        ),
    ] = ""
    sampling: Annotated[
        str,
        typer.Option(
            help=f"balanced (equal numbers per bin), random (all left to chance), or {OWN}.",
            autocompletion=sampler_names,
            rich_help_panel=_SAMPLES,
        ),
    ] = "balanced"
    weight_below: Annotated[
        float,
        typer.Option(help="Share of a step for bins below the target.", rich_help_panel=_SAMPLES),
    ] = 0.8
    weight_above: Annotated[
        float, typer.Option(help="Share of a step for the others.", rich_help_panel=_SAMPLES)
    ] = 0.2
    extension: Annotated[
        ExtensionName,
        typer.Option(
            help="How a step is drawn: by chance within bins (the paper's Algorithm 1), or where "
            "the predictor is unsure, per second of device time.",
            rich_help_panel=_SAMPLES,
        ),
    ] = ExtensionName.balanced
    train_on: Annotated[
        str,
        typer.Option(
            help="Verdicts of the numbers to learn from, by commas; all by default.",
            autocompletion=verdict_names,
            rich_help_panel=_SAMPLES,
            show_default=False,
        ),
    ] = "stable,noisy,unresolved,throttled"
    weights: Annotated[
        WeightsName,
        typer.Option(
            help="All numbers count the same, or uncertain ones less.", rich_help_panel=_SAMPLES
        ),
    ] = WeightsName.interval


@dataclass(frozen=True)
class TimingOptions:
    """Options of a model's runs."""

    protocol: Annotated[
        ProtocolName,
        typer.Option(
            help="Models in turn, or all runs of a model in a row (the paper's).",
            rich_help_panel=TIMING,
        ),
    ] = ProtocolName.interleaved
    precision: Precision = 2.0
    max_runs: MaxRuns = 150
    runs: Annotated[
        int | None,
        typer.Option(
            help="Exactly so many counted runs per model, whatever the interval (the paper: 150).",
            rich_help_panel=TIMING,
        ),
    ] = None
    runs_per_visit: Annotated[
        int, typer.Option(help="Counted runs per visit (interleaved).", rich_help_panel=TIMING)
    ] = 1
    warmup: Annotated[
        int,
        typer.Option(help="Uncounted runs before each visit, at most.", rich_help_panel=TIMING),
    ] = 2
    trim: Annotated[
        float, typer.Option(help="Share of runs dropped at each end.", rich_help_panel=TIMING)
    ] = 0.2
    threads: Threads = 1


@dataclass(frozen=True)
class BlockOptions:
    """Options of blocks and their quality control."""

    timeout: Annotated[
        float,
        typer.Option(help="Seconds that one model may take at a time.", rich_help_panel=TIMING),
    ] = 60.0
    block_size: Annotated[
        int, typer.Option(help="Models measured together.", rich_help_panel=TIMING)
    ] = 20
    references: Annotated[
        int,
        typer.Option(
            help="The campaign's own reference models in every block.", rich_help_panel=TIMING
        ),
    ] = 4
    reference_tolerance: Annotated[
        float,
        typer.Option(help="Percent by which a reference may stray.", rich_help_panel=TIMING),
    ] = 3.0
    max_remeasurements: Annotated[
        int,
        typer.Option(help="Times a block that failed is measured again.", rich_help_panel=TIMING),
    ] = 2
    group_tolerance: Annotated[
        float,
        typer.Option(
            help="Percent by which one device of a group may be slower or faster than the others.",
            rich_help_panel=TIMING,
        ),
    ] = 10.0
    raw: AsMeasured = False
    cache: Annotated[
        CacheName,
        typer.Option(
            help="Latencies of a model that has just run, or of one that follows another.",
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
    blocks: BlockOptions,
    session: SessionOptions,
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
    from esm_host.extension.settings import Settings
    from esm_protos.plugins import absolute

    given = settings_of(Settings, campaign, space, sampling, blocks, session)
    plugins = ("space", "predictor", "encoding", "sampling")
    given |= {name: absolute(given[name]) for name in plugins if given.get(name)}
    spec = _spec(ctx, campaign, timing, provider, blocks, session)
    if campaign.finish and not campaign.resume:
        raise UsageError("--finish trains on what a campaign has measured: give --resume as well")
    if campaign.preset and campaign.resume:
        raise UsageError("--preset is for a new campaign: leave it out, or --resume")
    name = f"{safe(campaign.device)}-{safe(space.space)}"
    path = campaign.run or Path("runs") / name
    folder = RunFolder(path, "" if campaign.resume else campaign.store)
    if campaign.resume:
        if _on_the_command_line(ctx, "store"):
            folder.check_store(campaign.store)
        folder.prepare(resume=True)
        settings = _resumed(ctx, folder, given, spec)
    else:
        # Not on a resumed one, which is measured as it was begun.
        spec["references"] = timing.protocol is ProtocolName.interleaved
        if campaign.preset:
            _begin_with(campaign.preset, ctx, given, spec)
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
    """Return the settings of a measurement, by their names in ``MeasureSpec``."""
    from esm_host.extension.settings import LONG_VISITS
    from esm_protos.messages import MeasureSpec, RunOrder

    asked = {name for name in ("precision", "max_runs") if was_given(ctx, name)}
    if timing.runs is not None and asked:
        raise UsageError("--runs takes exactly so many runs: leave out --precision and --max-runs")
    share = as_share("--precision", timing.precision)
    together = timing.protocol is ProtocolName.interleaved
    spec = {
        **settings_of(MeasureSpec, timing, blocks, session),
        **provider.spec(is_resumed=campaign.resume),
        "protocol": RunOrder(timing.protocol.value),
        "runs": timing.max_runs if timing.runs is None else timing.runs,
        "precision": 0.0 if timing.runs is not None or not together else share,
        # In a row, all models are warm.
        "long_visits": LONG_VISITS if together and blocks.cache is CacheName.warm else 0,
    }
    del spec["references"]  # the option is the number of the campaign's own
    return spec


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
    return (option_of(setting), *_ALSO_SET_BY.get(setting, ()))


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
