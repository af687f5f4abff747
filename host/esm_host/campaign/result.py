"""``result.json``, the result of a campaign for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from esm_host.arguments import on_command_line
from esm_host.campaign.warnings import campaign_warnings
from esm_host.dataset.campaign_metric import CampaignMetric
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import GROUP_FACT, REFERENCE_ROUND, Store, StoredBlock
from esm_host.dataset.table import WIDEST
from esm_host.evaluation.device_paces import DevicePace, compare_devices
from esm_host.extension.settings import Settings
from esm_host.extension.signatures import Signature, signatures

SCHEMA_VERSION = 1


def campaign_result(
    store: Store,
    measurements: Measurements,
    settings: Settings,
    device: Mapping[str, Any],
    converged: bool,
    unfinished: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of ``result.json``, derived from the store.

    Times cover all sessions of the campaign. The device time of a group is the sum over its
    devices.

    Args:
        store: Store of the campaign.
        measurements: Measurements of the store.
        settings: Settings of the campaign.
        device: Self-description of the device.
        converged: Whether the target accuracy was reached.
        unfinished: Result of an incomplete round; None if there is none.
    """
    blocks = store.blocks()
    rounds = store.rounds() + ([] if unfinished is None else [dict(unfinished)])
    busy = sum(block.busy_ns for block in blocks) / 1e9
    wall = sum(b.wall_seconds for b in blocks) + sum(r["training_seconds"] for r in rounds)
    return {
        "schema_version": SCHEMA_VERSION,
        "converged": converged,
        "signatures": [
            {"name": each.name, "text": on_command_line(each.text)}
            for each in (
                _signatures(rounds, settings, measurements)
                if rounds and settings.has_target and not converged
                else []
            )
        ],
        "measured_models": rounds[-1]["measured_models"] if rounds else 0,
        "rounds": rounds,
        "wall_seconds": wall,
        "device_busy_seconds": busy,
        "bytes_sent": sum(block.bytes_sent for block in blocks),
        "warnings": [
            on_command_line(text)
            for text in campaign_warnings(store, measurements, settings).values()
        ],
        "device": dict(device),
        "devices": devices(store, measurements),
        "settings": settings.to_json(),
    }


def metric_result(
    metric: CampaignMetric, last: Mapping[str, Any], settings: Settings, reached: bool
) -> dict[str, Any]:
    """Return the entry of a metric in ``metrics`` of ``result.json``.

    Args:
        metric: The metric.
        last: Its last round, as in ``rounds``.
        settings: Settings of the campaign.
        reached: Whether it reaches the target accuracy.
    """
    names = ("measured_models", "trusted_models", "accuracy_percent", "bins", "check", "verdicts")
    return {
        **_described(metric),
        "reached": reached if settings.has_target else None,
        **{name: last[name] for name in names},
    }


def without_predictor(metric: CampaignMetric, problem: str) -> dict[str, Any]:
    """Return the entry of a metric that has too few values for a predictor."""
    return {**_described(metric), "problem": problem}


def _described(metric: CampaignMetric) -> dict[str, Any]:
    return {"key": metric.key, "unit": metric.unit}


def _signatures(
    rounds: Sequence[Mapping[str, Any]], settings: Settings, measurements: Measurements
) -> list[Signature]:
    intervals = np.minimum(measurements.of(settings.lead).interval, WIDEST)
    return signatures(rounds, settings, float(np.median(intervals)) if len(intervals) else 0.0)


def devices(store: Store, measurements: Measurements) -> list[dict[str, Any]]:
    """Return every device of the campaign, with its pace over all of its blocks.

    ``pace`` is relative to the median device: 1.04 for a device that takes 4 % longer. It is None
    for a single device. ``left_at`` is the time of a device's last departure, None if it measured
    again.
    """
    blocks = store.blocks()
    departures = {departure.device: departure for departure in store.departures()}
    models = _models(store, measurements)
    paces: dict[str, DevicePace]
    if store.fact(GROUP_FACT) is None and blocks:  # a single device, even if its name changed
        name = blocks[-1].device
        blocks = [replace(block, device=name) for block in blocks]
        models, paces = Counter({name: models.total()}), {}
    else:
        paces = _paces(measurements, blocks)
    result = []
    for name in dict.fromkeys([*(block.device for block in blocks), *departures]):
        own = [block for block in blocks if block.device == name]
        left = departures.get(name)
        if left is not None and own and own[-1].measured_at > left.left_at:
            left = None
        pace = paces.get(name)
        result.append(
            {
                "name": name,
                "hostname": own[-1].hostname if own else None,
                "blocks": len([block for block in own if block.round != REFERENCE_ROUND]),
                "models": models[name],
                "pace": _finite(pace.ratio) if pace else None,
                "pace_interval": _finite(pace.ratio * pace.interval) if pace else None,
                "stray_percent": _finite(100 * pace.stray) if pace else None,
                "left_at": left and left.left_at,
                "left_because": left and left.reason,
            }
        )
    return result


def _paces(measurements: Measurements, blocks: Sequence[StoredBlock]) -> dict[str, DevicePace]:
    counted = measurements.readings()
    readings = measurements.readings({block.block_id for block in blocks}) | counted
    return compare_devices(readings, counted or readings) if len(readings) > 1 else {}


def _models(store: Store, measurements: Measurements) -> Counter[str]:
    """Return the number of models that each device measured, references not counted."""
    references = {a.key for a in store.references()}
    table = measurements.table()
    models: Counter[str] = Counter()
    for block, found in zip(table.blocks, table.models, strict=True):
        models[block.device] += len(found.keys() - references)
    return models


def _finite(value: float) -> float | None:
    """Return a value, or None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None
