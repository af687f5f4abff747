"""Report of a study."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from esm_host.report.page import (
    DASH,
    Cell,
    Column,
    Fact,
    Figure,
    Page,
    Section,
    Table,
    duration,
    fixed,
    plural,
)
from esm_host.research.study.plots import by_training_size
from esm_host.research.study.results import Study
from esm_host.research.study.settings import METRICS
from esm_host.research.study.summary import by_size, tables


def study_page(study: Study) -> Page:
    """Return the page of a study: the predictors by training size and by device.

    Raises:
        DatasetError: the study has no results yet, or is damaged.
    """
    results, failures = study.results(), study.failures()
    labels, devices = results["label"].nunique(), results["device"].nunique()
    data = list(results["data"].unique())
    sections = [
        Section(f"data-{number}", name, "", list(_of_data(study, results, name, number)))
        for number, name in enumerate(data)
    ]
    if len(failures):
        sections.append(Section("failures", "Failures", "", [_failures(failures)]))
    return Page(
        eyebrow="Study",
        title=f"{plural(labels, 'predictor')} on {', '.join(data)}",
        lead=_lead(study, results),
        status=_status(study, failures),
        facts=[
            Fact("Predictors", str(labels)),
            Fact("Devices", str(devices)),
            Fact("Training sizes", str(results.loc[~results["fixed_size"], "size"].nunique())),
            Fact("Seeds", str(results["seed"].nunique())),
            Fact("Training", duration(results["fit_s"].sum()), "of all predictors"),
        ],
        sections=sections,
    )


def _status(study: Study, failures: pd.DataFrame) -> tuple[str, str]:
    if study.missing:
        return "open", f"{plural(study.missing, 'task')} not done yet"
    if len(failures):
        return "bad", f"{plural(len(failures), 'task')} failed"
    return "good", "complete"


def _lead(study: Study, results: pd.DataFrame) -> str:
    """Return the best predictor on each data set at its largest size, in words."""
    metric = study.metrics[0]
    sentences = []
    for name, rows in results.groupby("data", sort=False):
        found = by_size(rows, metric)
        if len(found):
            best = found.loc[found[found["size"] == found["size"].max()]["mean"].idxmax()]
            sentences.append(
                f"Best on {name} with {best['size']:,} training samples: {best['label']}, "
                f"{METRICS[metric]} {fixed(best['mean'], _digits(metric)).text}."
            )
    return " ".join(sentences) or "No predictor has results on every device yet."


def _digits(metric: str) -> int:
    return 1 if metric.endswith("_percent") else 3


def _of_data(study: Study, results: pd.DataFrame, name: str, number: int) -> Iterator[Any]:
    rows = results[results["data"] == name]
    for metric in study.metrics:
        if rows.loc[~rows["fixed_size"], "size"].nunique() < 2 or not len(by_size(rows, metric)):
            continue
        yield Figure(
            f"{metric.replace('_', '-')}-{number}",
            f"{METRICS[metric][:1].upper()}{METRICS[metric][1:]} by training samples",
            "Means over devices; bands are one standard deviation between seeds.",
            by_training_size(rows, metric),
            [
                Column("label", "predictor"),
                Column("size", "training samples", 0),
                Column("mean", METRICS[metric], _digits(metric)),
                Column("low", "from", _digits(metric)),
                Column("high", "to", _digits(metric)),
            ],
        )
    for index, table in enumerate(tables(rows, study.metrics)):
        yield Table(
            f"table-{number}-{index}",
            table.title,
            [table.headings[0], *(f"#{heading}" for heading in table.headings[1:])],
            [[Cell(row[0]), *map(_cell, row[1:])] for row in table.rows],
        )


def _cell(text: str) -> Cell:
    """Return a mean with its spread, sorted by the mean."""
    return Cell(text, float(text.split()[0])) if text else Cell(DASH)


def _failures(failures: pd.DataFrame) -> Table:
    return Table(
        "failed",
        f"{plural(len(failures), 'task')} failed",
        ["predictor", "data", "device", "#samples", "reason"],
        [
            [
                Cell(row.label),
                Cell(row.data),
                Cell(row.device),
                Cell(f"{row.size:,}", float(row.size)),
                Cell(row.failure),
            ]
            for row in failures.itertuples(index=False)
        ],
        wide=["reason"],
    )
