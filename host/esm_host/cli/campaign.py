"""Set-up, run and display of a campaign: progress on stderr, the result on stdout."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

import typer

from esm_host.arguments import flag, on_command_line
from esm_host.campaign.folder import RunFolder
from esm_host.cli.errors import INTERRUPTED
from esm_host.cli.live import Live, print_bins, print_devices, print_verdicts, said_of_check
from esm_host.cli.table import Verdict
from esm_host.dataset.campaign_metric import CAMPAIGN_METRICS
from esm_host.dataset.table import Dataset
from esm_host.errors import UsageError
from esm_host.extension.settings import Settings
from esm_host.transfer.held_out import learnt_by, left_out
from esm_host.workflows import profile as campaign
from esm_host.workflows.profile import CampaignResult
from esm_protos.messages import MeasureSpec
from esm_protos.text import counted

TARGET_NOT_REACHED = 3


def safe(name: str) -> str:
    """Return a name as a part of a folder's name."""
    return "".join(c if c.isalnum() else "-" for c in name).strip("-").lower()


def new_settings(
    given: dict[str, Any], spec: dict[str, Any], make: Callable[..., Settings] = Settings
) -> Settings:
    """Return the settings of a campaign.

    Raises:
        UsageError: a setting is invalid; the message names the option.
    """
    try:
        return make(**given, spec=MeasureSpec(**spec))
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        most = name == "runs" and spec["precision"]
        raise UsageError(f"{'--max-runs' if most else flag(name)} {rest}") from error


def run_campaign(
    settings: Settings,
    folder: RunFolder,
    resume: bool,
    patience_s: float,
    live: Live,
    wait: bool = True,
    show: Callable[[CampaignResult, Settings], int] | None = None,
    finish: bool = False,
) -> int:
    """Run a campaign, show its result, and return the exit code.

    Args:
        show: Function that prints the result and returns the exit code. By default it prints the
            accuracy of every depth bin against the target.
        finish: Whether to train on the models measured so far instead of measuring more.
    """
    path = shlex.quote(str(folder.path))
    try:
        if finish:
            ended = campaign.finish_campaign(settings, folder, live)
        else:
            ended = campaign.run_campaign(settings, folder, resume, patience_s, wait, live)
    except KeyboardInterrupt:
        resumes = f"esm-host profile --run {path} --resume continues"
        if not folder.settings.exists():
            kept = "nothing was measured"
        elif folder.has_models():
            kept = f"measurements are kept: {resumes}, --resume --finish trains on them"
        else:
            kept = f"no model was measured yet: {resumes}"
        live.warn(f"interrupted; {kept}")
        return INTERRUPTED
    live.stop()
    if ended.failures:
        first = next(iter(ended.failures.values()))
        typer.echo(f"{counted(len(ended.failures), 'model')} failed; the first: {first}")
    code = (show or _show_target)(ended, settings)
    typer.echo(f"result in {folder.result}; next: esm-host predict {path} --sample 5")
    return code


def _show_target(ended: CampaignResult, settings: Settings) -> int:
    result, metrics = ended.result, ended.result["metrics"]
    for name, about in metrics.items():
        if len(metrics) > 1:
            typer.echo(f"{CAMPAIGN_METRICS[name].title}:")
        _show_metric(about, ended.datasets[name], settings.target_percent)
    for line in said_of_transfer(result.get("transfer")):
        typer.echo(line)
    if len(result["devices"]) > 1:
        print_devices(result["devices"])
    if settings.has_target:
        verdict = Verdict("converged" if ended.converged else "not converged").shown()
    else:
        verdict = Verdict("done").shown()
    typer.echo(f"{verdict}: {on_command_line(ended.reason)} {_times(result)}")
    for signature in result["signatures"]:
        typer.echo(signature["text"])
    if not settings.has_target:
        return 0
    missed = [name for name, about in metrics.items() if not about.get("reached")]
    if ended.converged and missed:
        typer.echo(
            f"{', '.join(CAMPAIGN_METRICS[name].title for name in missed)} below target: "
            "name it first in --metric of a new campaign, or raise --target-accuracy"
        )
    return TARGET_NOT_REACHED if missed else 0


def _show_metric(about: Mapping[str, Any], dataset: Dataset, target_percent: float | None) -> None:
    """Print the accuracy, the verdicts and the check of a metric."""
    if problem := about.get("problem"):
        typer.echo(f"no predictor: {problem}")
        return
    print_bins(about, target_percent)
    print_verdicts(dataset)
    for line in said_of_check(about["check"]):
        typer.echo(line)


def show_transfer(ended: CampaignResult, settings: Settings) -> int:
    """Print the result of a transfer, which has no target; return the exit code."""
    print_verdicts(ended.dataset)
    for line in said_of_transfer(ended.result["transfer"]):
        typer.echo(line)
    typer.echo(f"{Verdict('done').shown()} {_times(ended.result)}")
    return 0


def _times(result: dict[str, Any]) -> str:
    return (
        f"({result['wall_seconds'] / 60:.1f} min, device busy "
        f"{result['device_busy_seconds'] / 60:.1f} min)"
    )


def said_of_transfer(figures: dict[str, Any] | None) -> list[str]:
    """Return the lines that describe ``transfer`` of result.json."""
    if figures is None:
        return []
    count, sources = figures["samples"], len(figures["sources"])
    lines = [
        f"trained on {counted(count, 'model')} of this device and {counted(sources, 'source')}"
        f"{learnt_by(figures)}"
    ]
    if "left_out_error_percent" in figures:
        lines.append(f"leave-one-out: {left_out(figures)}")
    if "spearman" in figures:
        held_out = figures["held_out"]
        lines += [
            f"{held_out} held out: rank correlation {figures['spearman']:.3f} "
            f"({figures['spearman_low']:.2f} to {figures['spearman_high']:.2f}), accuracy "
            f"{figures['accuracy_percent']:.1f} %, {figures['covered']} of {held_out} within "
            "their 90 % intervals",
            f"the saved predictor is trained on all {count + held_out}",
        ]
    return lines
