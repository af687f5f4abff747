"""Failure signatures of campaigns that miss their target (ESM), with cures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esm_host.arguments import argument
from esm_host.dataset.campaign_metric import LATENCY
from esm_host.evaluation.verdict import DEFAULT_PRECISION
from esm_host.extension.settings import MeasuringSettings, SamplingSettings, Settings
from esm_host.sampling.bins import depth_range
from esm_protos.text import counted

_LOOKED_AT = 3
"""Number of last rounds in which a signature must appear."""
_GAINED_PERCENT = 0.5
"""Smallest gain of accuracy over these rounds that counts as progress."""
_WIDE = 3.0
"""Multiple of the requested interval above which the device is the cause, not the precision."""
_FAILED_SHARE = 0.3
"""Share of remeasured blocks above which quality control counts as failing."""


@dataclass(frozen=True)
class Signature:
    """Failure signature at the end of a campaign, and its cure.

    Attributes:
        name: ``"plateau"``, ``"noise"`` (a plateau with wide confidence intervals), ``"bin"`` or
            ``"quality control"``.
        text: One line with marked names of arguments.
    """

    name: str
    text: str


def signatures(
    rounds: Sequence[Mapping[str, Any]], settings: Settings, interval: float = 0.0
) -> list[Signature]:
    """Return the failure signatures of a campaign that missed its target.

    Args:
        rounds: Rounds as in ``result.json``.
        settings: Settings of the campaign.
        interval: Median half-width of the latencies' 95 % confidence intervals, as a share.
    """
    last = list(rounds[-_LOOKED_AT:])
    found = []
    if len(last) == _LOOKED_AT:
        found += _bin_signatures(last, settings) or _plateau_signatures(last, settings, interval)
    return [*found, *_control_signatures(rounds, settings)]


def _plateau_signatures(
    last: Sequence[Mapping[str, Any]], settings: Settings, interval: float
) -> list[Signature]:
    gained = last[-1]["accuracy_percent"] - last[0]["accuracy_percent"]
    more = last[-1]["measured_models"] - last[0]["measured_models"]
    if gained >= _GAINED_PERCENT:
        return []
    brought = f"plateau: {more} more models have brought {gained:+.1f} points"
    asked = settings.spec.precision or DEFAULT_PRECISION
    if interval > _WIDE * asked:
        values = "latencies" if settings.lead == LATENCY else "values"
        text = (
            f"{brought}. Their {values} have intervals of ±{100 * interval:.0f} % (median) "
            f"instead of ±{100 * asked:g} %: stop other programs on the device; {_QUIETER}"
        )
        return [Signature("noise", text)]
    text = (
        f"{brought}. The encoding may not distinguish the architectures: "
        f"try {argument('encoding')} views or {argument('predictor')} auto"
    )
    if settings.predictor == "auto" and settings.encoding in (None, "views"):
        text = (
            f"{brought}. The rest may be noise: try a narrower {argument('precision')} in a "
            f"new campaign, or {_QUIETER}"
        )
    return [Signature("plateau", text)]


def _bin_signatures(
    last: Sequence[Mapping[str, Any]], settings: SamplingSettings
) -> list[Signature]:
    """Return a signature if a single bin misses the target in all of the rounds."""
    target = settings.target_accuracy_percent
    below = [
        {n for n, entry in enumerate(each["bins"]) if entry["samples"] and _misses(entry, target)}
        for each in last
    ]
    if len(below[-1]) != 1 or not all(below[-1] <= each for each in below):
        return []
    entry = last[-1]["bins"][below[-1].pop()]
    blocks = depth_range(entry["depth_min"], entry["depth_max"])
    cure = f"try {argument('sampling')} informative in a new campaign"
    if settings.chooses:
        cure = f"it gets most of each step already: raise {argument('max_models')}"
    elif settings.by_bin:
        cure = (
            f"give it more of each step with {argument('extension')} cost-aware or a larger "
            f"{argument('weight_below')} ({settings.weight_below:g})"
        )
    text = (
        f"one bin misses the target: architectures of {blocks} blocks, "
        f"{entry['accuracy_percent']:.1f} % from {counted(entry['samples'], 'model')}; {cure}"
    )
    return [Signature("bin", text)]


def _control_signatures(
    rounds: Sequence[Mapping[str, Any]], settings: MeasuringSettings
) -> list[Signature]:
    last, earlier = rounds[-_LOOKED_AT:], rounds[:-_LOOKED_AT]
    again = sum(each["qc"]["remeasured_blocks"] for each in last)
    models = last[-1]["measured_models"] - (earlier[-1]["measured_models"] if earlier else 0)
    blocks = max(models / settings.block_size, 1)
    steady = again / blocks < _FAILED_SHARE and last[-1]["qc"]["passed"]
    if steady or not again:
        return []
    runs = "max_runs" if settings.spec.precision else "runs"
    text = (
        f"quality control keeps failing: {counted(again, 'block')} of the last rounds had to be "
        f"measured again. The device is unstable: {_QUIETER}, or give more runs of each model in a "
        f"new campaign ({argument(runs)} {settings.spec.runs})"
    )
    return [Signature("quality control", text)]


_QUIETER = "run `esm-host devices doctor` to find the cause"


def _misses(entry: Mapping[str, Any], target: float) -> bool:
    surely = entry.get("lower_percent")
    percent = entry["accuracy_percent"] if surely is None else surely
    return percent is None or percent < target
