"""Progress of a campaign on stderr: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from esm_host.arguments import on_command_line
from esm_host.campaign.estimate import Estimate
from esm_host.campaign.watcher import Watcher
from esm_host.cli.progress import LoadingTimes, duration, loading, waiting
from esm_host.cli.table import Verdict, print_table
from esm_host.dataset.table import Dataset
from esm_host.sampling.bins import depth_range
from esm_protos import messages
from esm_protos.terminal import shows_escapes
from esm_protos.text import counted


class Live:
    """Display of a campaign's progress, and observer of its loop and its collector.

    Args:
        quiet: Whether to print only warnings.
    """

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            refresh_per_second=2,  # drawing disturbs timings if this machine is the device
            disable=quiet or not shows_escapes(sys.stderr),
        )
        self._models = self._bars.add_task("models", total=1, count="", note="")
        self._blocks = {"": self._block("block")}
        self._total = 0
        self._pending = 0
        self._seconds: list[tuple[int, float]] = []
        self._estimate: Estimate | None = None
        self._block_began = time.monotonic()
        self._loading = LoadingTimes()
        if quiet:  # nothing is measured for an estimate that is not shown
            self.on_estimate = Watcher().on_estimate  # type: ignore[method-assign]

    def _block(self, name: str) -> TaskID:
        return self._bars.add_task(name, total=100, count="", note="")

    def __enter__(self) -> Live:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Clear the live view, so that results can be printed. Repeated calls do nothing."""
        self._bars.stop()

    def warn(self, text: str) -> None:
        """Print a warning, even if quiet."""
        print(f"warning: {on_command_line(text)}", file=sys.stderr, flush=True)

    # The collector

    def on_progress(self, progress: messages.Progress, device: str) -> None:
        loading_s = self._loading.seconds(device, progress)
        note = loading(loading_s) if loading_s >= 1 else progress.state.value
        if progress.standing is not None and progress.standing.ahead:
            note = waiting(progress.standing)
            if self._bars.disable:
                self.say(f"{device}: {note}" if device else note)
        if device not in self._blocks:
            self._bars.update(self._blocks[""], visible=False)
            self._blocks[device] = self._block(f"block on {device}")
        done = round(100 * progress.fraction)
        self._bars.update(self._blocks[device], completed=done, count=f"{done} %", note=note)

    def on_compare(self, begins: bool) -> None:
        if begins:
            self.say("comparing the devices by the reference models")
        self._bars.update(self._models, note="comparing the devices" if begins else "")
        self._block_began = time.monotonic()  # the comparison does not count in the time left

    def on_block(self, block_id: str, models: int, pending: int) -> None:
        now = time.monotonic()
        self._seconds.append((models, now - self._block_began))
        self._block_began = now
        self._pending = pending
        left = f"{duration(self._model_s * pending)} left" if pending else "round measured"
        first = len(self._seconds) == 1
        if first and self._estimate is not None and not self._estimate.is_measured:
            self.say(f"the first {counted(models, 'model')} took {duration(self._seconds[0][1])}")
        done = self._total - pending
        count = f"{done}/{self._total}"
        self._bars.update(self._models, completed=done, count=count, note=left)
        if self._bars.disable:
            self.say(f"{count} models measured, {left}")

    def on_remeasure(self, blocks: int) -> None:
        self.say(
            f"quality control: {counted(blocks, 'block')} with deviating reference "
            "models will be measured again"
        )
        self._bars.update(self._models, note="measuring again")

    @property
    def _model_s(self) -> float:
        """Mean time of a model so far, s."""
        return sum(s for _, s in self._seconds) / sum(m for m, _ in self._seconds)

    def _takes(self, models: int) -> str:
        """Return the time of this number of models, by blocks if any are measured; or nothing."""
        if self._seconds:
            return f"about {duration(self._model_s * models)}"
        told = self._estimate
        if told is None:
            return ""
        low, high = duration(told.model_low_s * models), duration(told.model_s * models)
        return f"about {high}" if low == high else f"about {low} to {high}"

    # The loop

    def on_estimate(self, estimate: Estimate) -> None:
        self._estimate = estimate
        if not estimate.is_measured:
            self.say(
                f"the smallest network takes about {estimate.least_ms:.3g} ms, the largest "
                f"{estimate.most_ms:.3g} ms; 20 models take {self._takes(20)} of device time"
            )

    def on_round(self, number: int, architectures: int) -> None:
        self._begin(f"round {number}:", architectures)

    def on_check(self, architectures: int) -> None:
        self._begin("check: random", architectures)

    def _begin(self, what: str, architectures: int) -> None:
        self._total = self._pending = architectures
        self._block_began = time.monotonic()
        count = f"0/{architectures}"
        self._bars.update(self._models, total=architectures, completed=0, count=count, note="")
        takes = self._takes(architectures)
        self.say(f"{what} {counted(architectures, 'architecture')}{takes and f', {takes}'}")

    def on_training(self) -> None:
        for block in self._blocks.values():
            self._bars.update(block, completed=100, count="", note="training")

    def on_evaluated(self, result: dict[str, Any]) -> None:
        parts = [
            f"{depth_range(entry['depth_min'], entry['depth_max'])}: "
            f"{percent(entry['accuracy_percent'])}{_at_least(entry.get('lower_percent'))}"
            for entry in result["bins"]
        ]
        self.say(
            f"{counted(result['measured_models'], 'model')} measured; accuracy "
            f"{percent(result['accuracy_percent'])} overall; by depth {', '.join(parts)}"
        )

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


def said_of_check(check: Mapping[str, Any] | None) -> list[str]:
    """Return the line about the check of a round; none without a check."""
    if not (check and check["models"]):
        return []
    low, high = check["low_percent"], check["high_percent"]
    interval = "" if low is None else f" ({low:.1f} to {high:.1f})"
    return [
        f"checked on {counted(check['models'], 'random model')} that it has not seen: accuracy "
        f"{check['accuracy_percent']:.1f} %{interval}"
    ]


def _at_least(lower_percent: float | None) -> str:
    """Return the lower bound of an accuracy in brackets; empty for None."""
    return "" if lower_percent is None else f" (at least {lower_percent:.1f})"


def percent(value: float | None) -> str:
    """Return a percentage with one decimal; a dash for None."""
    return "-" if value is None else f"{value:.1f} %"


def print_bins(result: Mapping[str, Any], target_percent: float | None) -> None:
    """Print the accuracy of every depth bin in the last round, against a target if there is one."""
    rows: list[Sequence[str]] = []
    for entry in result["bins"]:
        accuracy, surely = entry["accuracy_percent"], entry.get("lower_percent")
        remark = ""
        if target_percent is not None and (accuracy is None or accuracy < target_percent):
            remark = "below target"
        elif target_percent is not None and surely is not None and surely < target_percent:
            remark = "uncertain"
        told = percent(accuracy)
        if accuracy is not None and not entry["samples"]:
            told += ", from other bins"
        rows.append(
            (
                depth_range(entry["depth_min"], entry["depth_max"]),
                str(entry["samples"]),
                f"{told}{_at_least(surely)}",
                Verdict(remark),
            )
        )
    rows.append(("all", str(result["trusted_models"]), percent(result["accuracy_percent"]), ""))
    print_table(("blocks", "models", "accuracy", ""), rows, right=(1, 2))


def print_devices(devices: Sequence[Mapping[str, Any]]) -> None:
    """Print the blocks, the models and the pace of every device of a group."""
    rows = []
    for device in devices:
        pace, interval = device["pace"], device["pace_interval"]
        rows.append(
            (
                device["name"],
                device["hostname"] or "-",
                str(device["blocks"]),
                str(device["models"]),
                "-" if pace is None else f"{pace:.3f}" + (f" ± {interval:.3f}" if interval else ""),
                f"left {device['left_at']}" if device["left_at"] else "",
            )
        )
    print_table(("device", "hostname", "blocks", "models", "pace", ""), rows, right=(2, 3, 4))


def print_verdicts(dataset: Dataset) -> None:
    """Print the number of latencies of each verdict, and the most common reasons."""
    counts = dataset.verdict_counts()
    shares = ", ".join(f"{n} {Verdict(name).shown()}" for name, n in counts.items() if n)
    print(f"verdicts: {shares}; median interval ±{100 * np.median(dataset.interval):.1f} %")
    # Without the figures: "references off by 3.4 %" and "... by 4.1 %" are one reason.
    kinds: dict[str, list[str]] = {}
    for judgement in dataset.judgements:
        for reason in judgement.reasons:
            kinds.setdefault(re.sub(r"[\d.]+", "", reason), []).append(reason)
    for reasons in sorted(kinds.values(), key=len, reverse=True)[:3]:
        print(f"  {len(reasons)} of {len(dataset)}, for example: {reasons[0]}")
