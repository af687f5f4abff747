"""Means of a study's results over devices and seeds, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from esm_host.research.study.settings import METRICS

DIGITS = {"tau": 3, "spearman": 3, "accuracy_percent": 1}


@dataclass(frozen=True)
class MarkdownTable:
    """Table of text, whose first column has names.

    Attributes:
        title: Title above the table.
        headings: Headings of the columns.
        rows: Rows of the same width.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.headings, ("---", *["---:"] * (len(self.headings) - 1)), *self.rows]
        cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
        return "\n".join([f"### {self.title}", "", *(f"| {line} |" for line in cells), ""])


def by_size(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return means over the devices of a data set, with their spread between seeds.

    A predictor that failed on a device has no row, as its mean would not be comparable.

    Args:
        results: Rows of one data set (:meth:`esm_host.research.study.results.Study.results`).
        metric: Name in :data:`METRICS`.

    Returns:
        Rows in the order of the study. Columns: ``label``, ``fixed_size``, ``size``, ``mean``,
            ``sd`` (of the mean over devices, between seeds; NaN for one seed), ``seeds``.
    """
    devices = results["device"].nunique()
    keys = ["label", "fixed_size", "size"]
    # Devices are averaged even if their numbers of neighbours differ.
    largest = results.groupby("label", sort=False)["size"].transform("max")
    frame = results.assign(size=np.where(results["fixed_size"], largest, results["size"]))
    per_seed = frame.groupby([*keys, "seed"], sort=False)[metric].agg(["mean", "count"])
    per_seed = per_seed[per_seed["count"] == devices].reset_index()
    if per_seed.empty:
        return pd.DataFrame(columns=[*keys, "mean", "sd", "seeds"])
    grouped = per_seed.groupby(keys, sort=False)["mean"]
    return grouped.agg(mean="mean", sd="std", seeds="count").reset_index()


def by_device(results: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return means over seeds at the largest size of every device, in the order of the study.

    Columns: ``device``, ``label``, ``encoding``, ``size``, ``mean``, ``sd``, ``seeds``.
    """
    sized = results["size"].where(~results["fixed_size"])
    largest = sized.groupby(results["device"]).transform("max")
    chosen = results[results["fixed_size"] | (results["size"] == largest)]
    chosen = chosen[chosen["failure"] == ""]
    keys = ["device", "label", "encoding", "size"]
    grouped = chosen.groupby(keys, sort=False)[metric]
    return grouped.agg(mean="mean", sd="std", seeds="count").reset_index()


def tables(results: pd.DataFrame, metrics: Sequence[str]) -> list[MarkdownTable]:
    """Return tables of every data set and metric.

    They show predictors by training size, averaged over devices, and by device at the largest size,
    as Table 1 of the predictor study.
    """
    made = []
    for data, rows in results.groupby("data", sort=False):
        devices = list(rows["device"].unique())
        for metric in metrics:
            digits, what = DIGITS[metric], f"{data}: {METRICS[metric]}"
            on = f"mean over {len(devices)} devices" if len(devices) > 1 else devices[0]
            made.append(_sizes(rows, metric, digits, f"{what}, {on}, by training samples"))
            if len(devices) > 1:
                made.append(_devices(rows, metric, digits, f"{what} by device"))
    return made


def _sizes(rows: pd.DataFrame, metric: str, digits: int, title: str) -> MarkdownTable:
    found = by_size(rows, metric)
    sizes = sorted(rows.loc[~rows["fixed_size"], "size"].unique().tolist())
    cells = {
        (row.label, None if row.fixed_size else row.size): _cell(row.mean, row.sd, digits)
        for row in found.itertuples(index=False)
    }
    fixed = dict(zip(rows["label"], rows["fixed_size"], strict=True))
    lines = [
        (label, *(cells.get((label, None if fixed[label] else size), "") for size in sizes))
        for label in rows["label"].unique()
    ]
    if not sizes:  # all predictors have a training set of their own
        lines = [(label, cells.get((label, None), "")) for label in rows["label"].unique()]
    return MarkdownTable(title, ("predictor", *map(str, sizes or ["its own"])), tuple(lines))


def _devices(rows: pd.DataFrame, metric: str, digits: int, title: str) -> MarkdownTable:
    found = by_device(rows, metric)
    cells = {
        (row.label, row.device): _cell(row.mean, row.sd, digits)
        for row in found.itertuples(index=False)
    }
    devices = rows["device"].unique().tolist()
    sizes = sorted(rows.loc[~rows["fixed_size"], "size"].unique().tolist())
    lines = [
        (label, *(cells.get((label, device), "") for device in devices))
        for label in rows["label"].unique()
    ]
    at = f", {sizes[-1]} training samples" if sizes else ""
    return MarkdownTable(title + at, ("predictor", *devices), tuple(lines))


def _cell(mean: float, sd: float, digits: int) -> str:
    spread = f" ±{sd:.{digits}f}" if np.isfinite(sd) else ""
    return f"{mean:.{digits}f}{spread}"
