"""Section of a campaign's report on transfer from other devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from esm_host.campaign.run import Run
from esm_host.dataset.campaign_metric import CampaignMetric
from esm_host.encoding.sources import GROUP
from esm_host.report.page import (
    Cell,
    Column,
    Figure,
    Section,
    Table,
    Text,
    fixed,
    plural,
)
from esm_host.report.plots import of_metric
from esm_host.report.transfer_plots import held_out_predictions
from esm_host.transfer import DEFAULT
from esm_host.transfer.held_out import learnt_by, use_of_sources
from esm_host.transfer.monotonicity import LEAST_SHARED, rank_correlation
from esm_protos.text import counted


def transfer_section(run: Run, measurements: pd.DataFrame) -> Iterator[Section]:
    """Return the benefit of the sources, the held-out models, and each source.

    It is empty for a campaign without sources and for one that has not ended.

    Args:
        run: Campaign.
        measurements: :meth:`Run.measurements`.

    Raises:
        DatasetError: the sources' models are missing or damaged.
    """
    figures = (run.result or {}).get("transfer")
    if figures is None:
        return
    metric = run.settings.lead
    parts = [*_held_out(figures, of_metric(measurements, metric), metric), *_sources(run)]
    yield Section("transfer", "Transfer", _benefit(figures), parts)


def held_out(figures: dict[str, Any], measurements: pd.DataFrame) -> pd.DataFrame:
    """Return a row per held-out model.

    Columns are those of ``measurements``; ``predicted_ms`` and ``error_percent`` are by a predictor
    fitted without these models. Further columns are the ends of the 90 % interval, ``low_ms`` and
    ``high_ms``, and ``covered``, whether the latency is between them.

    Args:
        figures: ``transfer`` of ``result.json``.
        measurements: :meth:`Run.measurements`.
    """
    names = ["architecture_key", "predicted_ms", "low_ms", "high_ms"]
    predicted = pd.DataFrame(figures.get("held_out_models", ()), columns=names)
    own = measurements.drop(columns=["predicted_ms", "error_percent"])
    frame = own.merge(predicted, on="architecture_key")
    return frame.assign(
        error_percent=100 * (frame["predicted_ms"] / frame["latency_ms"] - 1),
        covered=frame["latency_ms"].between(frame["low_ms"], frame["high_ms"]),
    )


def source_correlations(run: Run) -> pd.DataFrame:
    """Return Spearman's rank correlation of each source with the measurements, best first.

    Columns are ``source``, ``correlation`` and the ends of its 95 % confidence interval, ``low``
    and ``high``. There are no rows if fewer than four architectures were measured.

    Raises:
        DatasetError: the sources' models are missing or damaged.
    """
    columns = ["source", "correlation", "low", "high"]
    dataset = run.dataset().only(run.settings.trusted_verdicts)
    if len(dataset) < LEAST_SHARED:
        return pd.DataFrame(columns=columns)
    encoder = run.sources_encoder
    first, end = encoder.layout.groups[GROUP]
    expected = encoder.encode(dataset.architectures)[:, first:end].astype(np.float64)
    names = [name.removeprefix("source.") for name in encoder.columns[first:end]]
    found = [rank_correlation(column, dataset.latency_ms) for column in expected.T]
    rows = [(name, c.value, c.low, c.high) for name, c in zip(names, found, strict=True)]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "correlation", ascending=False, kind="stable", ignore_index=True
    )


def _benefit(figures: dict[str, Any]) -> str:
    samples, sources = figures["samples"], len(figures["sources"])
    learnt = (
        f"Fitted to {plural(samples, 'model')} measured here and {plural(sources, 'source')}"
        f"{learnt_by(figures)}"
    )
    if "left_out_error_percent" not in figures:
        return f"{learnt}: too few models to say whether the sources helped."
    error, without = figures["left_out_error_percent"], figures["without_sources_percent"]
    if figures.get("method", DEFAULT) != DEFAULT:
        return (
            f"{learnt}. Mean error of held-out predictions: {error:.1f} %, by auto without sources "
            f"{without:.1f} %."
        )
    return (
        f"{learnt}. The sources {use_of_sources(figures)}. Mean error of held-out predictions: "
        f"{error:.1f} % with sources, {without:.1f} % without."
    )


def _held_out(
    figures: dict[str, Any], measurements: pd.DataFrame, metric: CampaignMetric
) -> Iterator[Figure | Text]:
    if "spearman" not in figures:
        yield Text("No models were held out to judge the predictions.")
        return
    count = figures["held_out"]
    summary = (
        f"{plural(count, 'model')} drawn at random and held out: rank correlation "
        f"{figures['spearman']:.3f} (95 % confidence interval {figures['spearman_low']:.2f} to "
        f"{figures['spearman_high']:.2f}), accuracy {figures['accuracy_percent']:.1f} %. "
        f"{figures['covered']} of {count} are within their 90 % prediction intervals (vertical "
        "lines)."
    )
    frame = held_out(figures, measurements)
    if frame.empty:
        yield Text(summary)
        return
    unit = metric.shown_unit
    if not frame["covered"].all():
        summary += " The others are triangles."
    yield Figure(
        "held-out",
        f"Held-out models, predicted against measured {metric.title}",
        f"{summary} The dashed line marks perfect predictions. The final predictor is fitted to "
        f"all {counted(figures['samples'] + count, 'model')}.",
        held_out_predictions(frame, unit),
        [
            Column("architecture", "architecture"),
            Column("latency_ms", f"measured ({unit})", 4),
            Column("interval_percent", "± (%)", 1),
            Column("predicted_ms", f"predicted ({unit})", 4),
            Column("low_ms", f"90 % interval from ({unit})", 4),
            Column("high_ms", f"to ({unit})", 4),
            Column("error_percent", "error (%)", 1),
            Column("within", "within the interval"),
        ],
    )


def _sources(run: Run) -> Iterator[Table]:
    correlations = source_correlations(run)
    if correlations.empty:
        return
    yield Table(
        "sources",
        "Rank correlation of each source's predictions with the values measured here, and its "
        "95 % confidence interval: 1 is the same order, 0 is none",
        ["source", "#rank correlation", "#interval from", "#to"],
        [
            [
                Cell(row.source),
                fixed(row.correlation, 3),
                fixed(row.low, 3),
                fixed(row.high, 3),
            ]
            for row in correlations.itertuples(index=False)
        ],
    )
