"""``esm-host transfer``: learns a device from few measurements and what is known of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from esm_host.cli.errors import one_line_errors
from esm_host.cli.option_groups import (
    ProviderOptions,
    SessionOptions,
    SpaceOptions,
    grouped,
    settings_of,
)
from esm_host.cli.options import (
    OWN,
    AsMeasured,
    DeviceOrGroup,
    MaxRuns,
    Precision,
    SharedStore,
    Threads,
    as_share,
    transfer_methods,
    transfer_samplers,
)
from esm_host.transfer import DEFAULT, ENCODINGS, METHODS, SAMPLERS, Method, read_options

_HOW = "How it learns"


def _listed(names: Mapping[str, str | Method]) -> str:
    """Names, and what each is."""
    abouts = {n: each.about if isinstance(each, Method) else each for n, each in names.items()}
    return "; ".join(f"{name} ({about})" for name, about in abouts.items())


@dataclass(frozen=True)
class CampaignOptions:
    """Options of the device, the sources and the campaign's records."""

    device: DeviceOrGroup = "local"
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the campaign that it makes. [default: runs/DEVICE-SPACE-transfer]"
        ),
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="A table or TABLE/DEVICE of esm-host sources list, a campaign's folder or a "
            "Parquet file; may be repeated. [default: all that there are of the space, and the "
            "campaigns beside --run]"
        ),
    ] = None
    store: SharedStore = ""


@dataclass(frozen=True)
class MethodOptions:
    """Options of the samples and of how they are learnt from."""

    samples: Annotated[
        int, typer.Option(help="Models to learn from, chosen to tell most.", min=5)
    ] = 20
    held_out: Annotated[
        int,
        typer.Option(
            help="Models drawn at random that tell how good it is; 4 or more, or 0.", min=0
        ),
    ] = 10
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"{_listed(METHODS)}. docs/transfer.md says more of them. Or {OWN}.",
            autocompletion=transfer_methods,
            rich_help_panel=_HOW,
            show_default=False,
        ),
    ] = DEFAULT
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of the method, in place of its default: epochs=20. May be repeated.",
            rich_help_panel=_HOW,
        ),
    ] = None
    sampler: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"How the models to learn from are chosen: {_listed(SAMPLERS)}. ENCODING is "
            f"{', '.join(ENCODINGS)}, or several joined by +, or caz for all. [default: the "
            "method's own]",
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


@one_line_errors
@grouped
def transfer(
    campaign: CampaignOptions,
    space: SpaceOptions,
    method: MethodOptions,
    timing: TimingOptions,
    provider: ProviderOptions,
    session: SessionOptions,
) -> None:
    """Learn a device from a few measurements and what is known of others.

    Chooses the models that tell most, measures them and a few that chance chooses, and learns
    from these and from latencies of other devices: imported tables and earlier campaigns. What it
    makes is a campaign: predict and report take it, and esm-host profile --run ... --resume
    --max-models 300 measures on.

    --method and --sampler take published systems instead of the default.

    Example: esm-host transfer --device pi5 --space fbnet --samples 20
    """
    from esm_host.campaign.folder import RunFolder
    from esm_host.cli.campaign import new_settings, run_campaign, safe, show_transfer
    from esm_host.cli.live import Live
    from esm_host.extension.settings import Settings
    from esm_protos.messages import MeasureSpec

    given = {
        **settings_of(Settings, campaign, space, method, timing, session),
        "samples": method.samples,
        "sources": campaign.source or (),
        "method_options": read_options(method.option or ()),
    }
    spec = {
        **settings_of(MeasureSpec, timing, session),
        **provider.spec(),
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
