"""Command ``esm-host transfer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import (
    ProviderOptions,
    RuntimeOptions,
    SessionOptions,
    SpaceOptions,
    grouped,
    settings_of,
)
from esm_host.cli.options import (
    OWN,
    AsMeasured,
    CampaignMetrics,
    DeviceOrGroup,
    EnergyTime,
    MaxRuns,
    Precision,
    SharedStore,
    Threads,
    as_share,
    read_contexts,
    transfer_methods,
    transfer_samplers,
)
from esm_host.transfer import DEFAULT, ENCODINGS, METHODS, SAMPLERS, Method, read_options

_HOW = "Method"


def _listed(names: Mapping[str, str | Method]) -> str:
    """Return names, each with its description."""
    abouts = {n: each.about if isinstance(each, Method) else each for n, each in names.items()}
    return "; ".join(f"{name} ({about})" for name, about in abouts.items())


@dataclass(frozen=True)
class CampaignOptions:
    """Options of the device, the sources and the campaign's records."""

    device: DeviceOrGroup = "local"
    metric: CampaignMetrics = "latency"
    run: Annotated[
        Path | None,
        typer.Option(help="Folder of the new campaign. [default: runs/DEVICE-SPACE-transfer]"),
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Source of latencies: a TABLE or TABLE/DEVICE from esm-host sources list, a "
            "campaign folder or a Parquet file. May be repeated. [default: all sources of the "
            "space and the campaigns beside --run]"
        ),
    ] = None
    store: SharedStore = ""


@dataclass(frozen=True)
class MethodOptions:
    """Options of the samples and the method."""

    samples: Annotated[
        int, typer.Option(help="Number of models to train on, chosen by the sampler.", min=5)
    ] = 20
    held_out: Annotated[
        int,
        typer.Option(
            help="Number of random held-out models for the accuracy estimate: 0, or 4 and more.",
            min=0,
        ),
    ] = 10
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Transfer method (docs/transfer.md): {_listed(METHODS)}; or {OWN}.",
            autocompletion=transfer_methods,
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = DEFAULT
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Option of the method, such as epochs=20. May be repeated.",
            rich_help_panel=_HOW,
        ),
    ] = None
    sampler: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Sampler of the training models: {_listed(SAMPLERS)}. ENCODING is "
            f"{', '.join(ENCODINGS)}, several joined by +, or caz for all. [default: depends on "
            "the method]",
            autocompletion=transfer_samplers,
            rich_help_panel=_HOW,
        ),
    ] = ""


@dataclass(frozen=True)
class TimingOptions:
    """Options of a model's runs."""

    precision: Precision = 2.0
    max_runs: MaxRuns = 150
    threads: Threads = 1
    raw: AsMeasured = False
    energy_time: EnergyTime = 40.0


@one_line_errors
@grouped
def transfer(
    campaign: CampaignOptions,
    space: SpaceOptions,
    method: MethodOptions,
    timing: TimingOptions,
    provider: ProviderOptions,
    runtime: RuntimeOptions,
    session: SessionOptions,
) -> None:
    """Train a latency predictor from a few measurements and latencies of other devices.

    The command measures the most informative models and a few random held-out ones. It trains on
    them and on other devices: imported tables and earlier campaigns. The result is a campaign for
    predict and report. To measure more: esm-host profile --run ... --resume --max-models 300.

    --method and --sampler also select published systems.

    Example: esm-host transfer --device pi5 --space fbnet --samples 20
    """
    from esm_host.campaign.folder import RunFolder
    from esm_host.cli.campaign import new_settings, run_campaign, safe, show_transfer
    from esm_host.cli.live import Live
    from esm_host.extension.settings import Settings
    from esm_protos.messages import MeasureSpec

    given = {
        **settings_of(Settings, campaign, space, method, timing, session),
        "contexts": read_contexts(space.context),
        "samples": method.samples,
        "sources": campaign.source or (),
        "method_options": read_options(method.option or ()),
    }
    spec = {
        **settings_of(MeasureSpec, timing, session),
        **provider.spec(),
        "session": runtime.settings(),
        "references": True,
        "runs": timing.max_runs,
        "precision": as_share("--precision", timing.precision),
    }
    settings = new_settings(given, spec, Settings.for_transfer)
    name = f"{safe(campaign.device)}-{safe(space.space)}-transfer"
    folder = RunFolder(campaign.run or Path("runs") / name, campaign.store)
    with Live(session.quiet) as live:
        raise typer.Exit(
            run_campaign(
                settings,
                folder,
                False,
                session.patience,
                live,
                not session.no_wait,
                show_transfer,
            )
        )
