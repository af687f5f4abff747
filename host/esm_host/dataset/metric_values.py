"""Data set of a metric other than latency, from the measurements of a campaign."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from esm_host.dataset.campaign_metric import CampaignMetric
from esm_host.dataset.table import WIDEST, Dataset
from esm_host.evaluation.verdict import Judgement, Verdict
from esm_models.architecture import Architecture
from esm_protos.messages import Measurement
from esm_protos.metrics import INTERVALS


def value_of(metric: CampaignMetric, measured: Measurement) -> tuple[float, float] | None:
    """Return the value of a metric and the half-width of its 95 % interval, as a share.

    The peak memory of a model has no interval of its own: it repeats to a few pages.

    Returns:
        None without a value above 0.
    """
    value = measured.metrics.get(metric.key)
    if value is None or not value > 0:
        return None
    if metric.key not in INTERVALS:
        return float(value), 0.0
    percent = measured.metrics.get(INTERVALS[metric.key])
    return float(value), WIDEST if percent is None else percent / 100


def judgement_of(metric: CampaignMetric, measured: Measurement) -> Judgement:
    """Return the verdict on a value: that of its energy; of other metrics ``stable``."""
    energy = measured.energy if metric.key in INTERVALS else None
    if energy is None or not energy.problem:
        return Judgement(Verdict.STABLE, ())
    return Judgement(Verdict.UNRESOLVED, (energy.problem,))


def dataset_of(
    metric: CampaignMetric, latencies: Dataset, measured: Mapping[str, Measurement]
) -> Dataset:
    """Return the architectures that have a value of a metric, with the values as ``latency_ms``.

    Args:
        metric: The metric.
        latencies: Data set of the latencies.
        measured: Measurements by architecture key.
    """
    architectures: list[Architecture] = []
    values: list[tuple[float, float]] = []
    judgements: list[Judgement] = []
    for architecture in latencies.architectures:
        own = measured[architecture.key]
        if (value := value_of(metric, own)) is not None:
            architectures.append(architecture)
            values.append(value)
            judgements.append(judgement_of(metric, own))
    table = np.array(values, dtype=np.float64).reshape(-1, 2)
    return Dataset(architectures, table[:, 0], table[:, 1], judgements, table[:, 0])
