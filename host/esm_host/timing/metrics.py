"""Metrics in the JSON of a timing, of this version or an older one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esm_protos.metrics import KNOWN, Metric, known_and_told

Json = Mapping[str, Any]

_TAKEN = (
    *("result", "label", "name", "model", "model_sha256", "device", "batch", "threads", "shapes"),
    *("dims", "assumed", "fed", "inputs", "input_types", "status", "failure", "low_ms", "high_ms"),
    *("ci95_low_ms", "ci95_high_ms", "provider", "verdict", "warnings", "interrupted"),
)
"""Columns of frames and CSV beside the metrics. A metric with such a key is in JSON alone."""


def metrics_of(data: Json) -> tuple[Metric, ...]:
    """Return all metrics of a timing: this version's, and those that its devices told of.

    Raises:
        KeyError, TypeError, ValueError: a device tells of a metric that is none.
    """
    infos = [device["info"] or {} for device in data["context"]["devices"].values()]
    told = [Metric.from_json(each) for info in infos for each in info.get("metrics", ())]
    keys = dict.fromkeys(key for result in data["results"] for key in result.get("metrics", ()))
    return tuple(m for m in known_and_told(told, keys) if m.field not in _TAKEN)


def value_of(result: Json, metric: Metric, schema_version: int = 0) -> float | None:
    """Return a metric's value of a result; None where it has none.

    Args:
        schema_version: of the file; 0 lets a file lack any metric.

    Raises:
        KeyError: the file lacks a metric that all of its version have.
    """
    if metric.key in KNOWN and metric.field in result:
        value = result[metric.field]
    elif 0 < metric.since <= schema_version:
        raise KeyError(metric.field)
    else:
        value = result.get("metrics", {}).get(metric.key, metric.default)
    return None if value is None else metric.typed(float(value))
