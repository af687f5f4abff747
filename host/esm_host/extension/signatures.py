"""Failure signatures of campaigns that miss their target (ESM), with cures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esm_host.arguments import argument
from esm_host.evaluation.verdict import DEFAULT_PRECISION
from esm_host.extension.settings import MeasuringSettings, SamplingSettings, Settings
from esm_host.sampling.bins import depth_range

_LOOKED_AT = 3
"""Rounds that a signature is seen in: the last ones."""
_GAINED_PERCENT = 0.5
"""Accuracy gained over them that still is progress."""
_WIDE = 3.0
"""Times the asked interval from which the device, and not the precision, is to blame."""
_FAILED_SHARE = 0.3
"""Share of blocks measured again from which quality control counts as failing."""


@dataclass(frozen=True)
class Signature:
    """Failure signature at the end of a campaign, and its cure.

    Attributes:
        name: ``"plateau"``, ``"noise"`` (a plateau of numbers that are hardly known), ``"bin"`` or
            ``"quality control"``.
        text: one line, with marked names of arguments.
    """

    name: str
    text: str


def signatures(
    rounds: Sequence[Mapping[str, Any]], settings: Settings, interval: float = 0.0
) -> list[Signature]:
    """Return the signatures of a campaign that has missed its target.

    Args:
        rounds: as ``result.json`` has them.
        interval: median half-width of the latencies' 95 % intervals, as a share.
    """
    last = list(rounds[-_LOOKED_AT:])
    found = []
    if len(last) == _LOOKED_AT:
        found += _of_a_bin(last, settings) or _of_a_plateau(last, settings, interval)
    return [*found, *_of_quality_control(last, settings)]


def _of_a_plateau(
    last: Sequence[Mapping[str, Any]], settings: Settings, interval: float
) -> list[Signature]:
    gained = last[-1]["accuracy_percent"] - last[0]["accuracy_percent"]
    more = last[-1]["measured_models"] - last[0]["measured_models"]
    if gained >= _GAINED_PERCENT:
        return []
    brought = f"plateau: {more} more models have brought {gained:+.1f} points"
    asked = settings.spec.precision or DEFAULT_PRECISION
    if interval > _WIDE * asked:
        text = (
            f"{brought}. Their latencies are known to ±{100 * interval:.0f} % (median) where "
            f"±{100 * asked:g} % was asked: measure where less else runs; {_QUIETER}"
        )
        return [Signature("noise", text)]
    text = (
        f"{brought}. The encoding may not tell architectures apart: try {argument('encoding')} "
        f"views or {argument('predictor')} auto"
    )
    if settings.predictor == "auto" and settings.encoding in (None, "views"):
        text = (
            f"{brought}. What is left may be noise: try a narrower {argument('precision')} on a "
            f"new campaign, or {_QUIETER}"
        )
    return [Signature("plateau", text)]


def _of_a_bin(last: Sequence[Mapping[str, Any]], settings: SamplingSettings) -> list[Signature]:
    """One bin is below the target in all of the rounds, and all others above in the last one."""
    target = settings.target_accuracy_percent
    below = [
        {n for n, entry in enumerate(each["bins"]) if entry["samples"] and _misses(entry, target)}
        for each in last
    ]
    if len(below[-1]) != 1 or not all(below[-1] <= each for each in below):
        return []
    entry = last[-1]["bins"][below[-1].pop()]
    blocks = depth_range(entry["depth_min"], entry["depth_max"])
    cure = f"try {argument('sampling')} balanced"
    if settings.by_bin:
        cure = (
            f"give it more of each step, by {argument('extension')} cost-aware or a larger "
            f"{argument('weight_below')} ({settings.weight_below:g})"
        )
    text = (
        f"one bin stays behind: architectures of {blocks} blocks, {entry['accuracy_percent']:.1f} "
        f"% from {entry['samples']} models; {cure}"
    )
    return [Signature("bin", text)]


def _of_quality_control(
    last: Sequence[Mapping[str, Any]], settings: MeasuringSettings
) -> list[Signature]:
    again = sum(each["qc"]["remeasured_blocks"] for each in last)
    models = last[-1]["measured_models"] - (last[0]["measured_models"] if len(last) > 1 else 0)
    blocks = max(models / settings.block_size, 1)
    steady = again / blocks < _FAILED_SHARE and last[-1]["qc"]["passed"]
    if steady or not again:
        return []
    text = (
        f"quality control keeps failing: {again} blocks of the last rounds were measured again. "
        f"The device is not steady: {_QUIETER}, or give more {argument('runs')}"
    )
    return [Signature("quality control", text)]


_QUIETER = "ask `esm-host devices doctor` what disturbs it"


def _misses(entry: Mapping[str, Any], target: float) -> bool:
    return entry["accuracy_percent"] is None or entry["accuracy_percent"] < target
