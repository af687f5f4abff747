"""Metrics in the JSON of a timing of this or an older version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esm_protos.metrics import KNOWN, Metric, known_and_told

Json = Mapping[str, Any]

_TAKEN = (
    *("result", "label", "name", "model", "model_sha256", "device", "batch", "threads", "shapes"),
    *("dims", "assumed", "fed", "inputs", "input_types", "status", "failure", "low_ms", "high_ms"),
    *("ci95_low_ms", "ci95_high_ms", "provider", "verdict", "warnings", "interrupted"),
    *("provider_options", "session_options", "compiled"),
    *("energy_source", "energy_covers", "energy_problem"),
)
"""Other columns of frames and CSV. A metric with such a key appears in JSON only."""


def metrics_of(data: Json) -> tuple[Metric, ...]:
    """Return all metrics of a timing: this version's, and further ones that devices report.

    Raises:
        KeyError, TypeError, ValueError: a device reports an invalid metric.
    """
    infos = [device["info"] or {} for device in data["context"]["devices"].values()]
    told = [Metric.from_json(each) for info in infos for each in info.get("metrics", ())]
    keys = dict.fromkeys(key for result in data["results"] for key in result.get("metrics", ()))
    return tuple(m for m in known_and_told(told, keys) if m.field not in _TAKEN)


def energy_columns(result: Json, device: Json) -> dict[str, str | None]:
    """Return the sensor of a result's energy, what it covers, and why the energy is unresolved.

    All are None if no energy was asked for, or by an older version. The problem is empty if the
    energy is stable.

    Args:
        result: JSON of the result.
        device: JSON of its device, which may lack a sensor.
    """
    energy = result.get("energy")
    if energy is None:
        missing = device.get("energy_problem") or None
        return {"energy_source": None, "energy_covers": None, "energy_problem": missing}
    return {f"energy_{name}": energy[name] for name in ("source", "covers", "problem")}


def value_of(result: Json, metric: Metric, schema_version: int = 0) -> float | None:
    """Return the value of a metric in a result; None if it has no value.

    Args:
        result: JSON of the result.
        metric: The metric.
        schema_version: Schema version of the file; with 0 any metric may be missing.

    Raises:
        KeyError: a metric that the schema version requires is missing.
    """
    if metric.key in KNOWN and metric.field in result:
        value = result[metric.field]
    elif 0 < metric.since <= schema_version:
        raise KeyError(metric.field)
    else:
        value = result.get("metrics", {}).get(metric.key, metric.default)
    return None if value is None else metric.typed(float(value))
