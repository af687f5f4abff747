"""Runs a campaign and shows it: progress on stderr, what came of it on stdout."""

from __future__ import annotations

import typer

from esm_host import campaign
from esm_host.cli.errors import INTERRUPTED
from esm_host.cli.live import Live, print_bins, print_devices, print_verdicts
from esm_host.extension.settings import Settings
from esm_host.folder import RunFolder

TARGET_NOT_REACHED = 3


def run_campaign(
    settings: Settings,
    folder: RunFolder,
    resume: bool,
    patience_s: float,
    live: Live,
    wait: bool = True,
) -> int:
    """As :func:`esm_host.campaign.run_campaign`; returns the exit code."""
    try:
        ended = campaign.run_campaign(settings, folder, resume, patience_s, wait, live)
    except KeyboardInterrupt:
        kept = f"what was measured is kept: esm-host profile --run {folder.path} --resume"
        live.warn(f"interrupted; {kept if folder.settings.exists() else 'nothing begun'}")
        return INTERRUPTED
    live.stop()
    result = ended.result
    print_bins(result["rounds"][-1], settings.target_accuracy_percent)
    if ended.failures:
        first = next(iter(ended.failures.values()))
        typer.echo(f"{len(ended.failures)} models failed; the first: {first}")
    print_verdicts(ended.dataset)
    if len(result["devices"]) > 1:
        print_devices(result["devices"])
    typer.echo(
        f"{'converged' if ended.converged else 'not converged'}: {ended.reason} "
        f"({result['wall_seconds'] / 60:.1f} min, device busy "
        f"{result['device_busy_seconds'] / 60:.1f} min)"
    )
    typer.echo(f"result in {folder.result}; next: esm-host predict {folder.path} --sample 5")
    return 0 if ended.converged else TARGET_NOT_REACHED
