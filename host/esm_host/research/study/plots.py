"""Charts of a study, from its data frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from esm_host.report.plots import HEIGHT, compact, legend_of, save
from esm_host.report.theme import LIGHT, SHAPES, config
from esm_host.research.study.results import Study
from esm_host.research.study.settings import METRICS
from esm_host.research.study.summary import by_device, by_size
from esm_protos.text import counted

_DASHES = ([1, 0], [6, 3], [2, 2], [8, 2, 2, 2], [4, 4], [1, 3])
_COLOURS = len(LIGHT.categories)
_MOST_POINTS = 1500
_MOST_PANELS = 12
_SIDE = 240


def write_plots(study: Study, folder: Path) -> list[Path]:
    """Write all charts that a study has results for, as PNG, and return their paths."""
    results = study.results()
    written = []

    def write(chart: Any, *words: str) -> None:
        name = "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)
        save(chart, folder / f"{name}.png")
        written.append(folder / f"{name}.png")

    for data, rows in results.groupby("data", sort=False):
        for metric in study.metrics:
            if rows.loc[~rows["fixed_size"], "size"].nunique() > 1 and len(by_size(rows, metric)):
                write(curves(rows, metric), data, metric, "by_size")
            if rows["label"].nunique() > 1 and len(by_device(rows, metric)):
                write(bars(rows, metric), data, metric, "by_device")
    for (data, device), rows in study.predictions().groupby(["data", "device"], sort=False):
        write(scatter(rows), data, device, "predicted")
    return written


def curves(results: pd.DataFrame, metric: str) -> alt.HConcatChart:
    """Return a chart of a metric by training size, and one relative to the mean predictor.

    Values are means over devices. Bands are one standard deviation between seeds (predictor study,
    Figure 1).

    Args:
        results: Rows of one data set. Predictors with a fixed training set are horizontal lines,
            and not part of the mean.
        metric: Name in :data:`METRICS`.
    """
    found, sizes = by_size(results, metric), _sizes(results)
    labels = found["label"].unique().tolist()
    varying = found[~found["fixed_size"]]
    average = varying.groupby("size")["mean"].transform("mean")
    name = METRICS[metric]
    charts = [
        by_training_size(results, metric),
        _lines(
            varying.assign(mean=varying["mean"] - average),
            labels,
            sizes,
            f"{name} minus that of the average predictor",
        ),
    ]
    both: alt.HConcatChart = alt.hconcat(
        *(chart.properties(width=460, height=420) for chart in charts)
    )
    both.config = config(LIGHT)
    return both


def by_training_size(results: pd.DataFrame, metric: str) -> alt.LayerChart:
    """Return a chart of a metric by training size, averaged over devices.

    Args:
        results: Rows of one data set, as of :func:`curves`.
        metric: Name in :data:`METRICS`.
    """
    found, sizes = by_size(results, metric), _sizes(results)
    level = (
        found[found["fixed_size"]]
        .drop(columns="size")
        .merge(pd.DataFrame({"size": sizes}), "cross")
    )
    frame = pd.concat([found[~found["fixed_size"]], level])
    return _lines(frame, found["label"].unique().tolist(), sizes, METRICS[metric])


def _sizes(results: pd.DataFrame) -> list[int]:
    return sorted(results.loc[~results["fixed_size"], "size"].unique().tolist())


def _lines(
    frame: pd.DataFrame, labels: Sequence[str], sizes: Sequence[int], title: str
) -> alt.LayerChart:
    sd = frame["sd"].fillna(0)
    frame = compact(frame.assign(low=frame["mean"] - sd, high=frame["mean"] + sd))
    colour, shape, dash = _by_label(labels)
    base = alt.Chart(frame).encode(
        alt.X(
            "size:Q",
            title="training samples",
            scale=alt.Scale(type="log", nice=False, padding=10),
            axis=alt.Axis(values=list(sizes), format="d"),
        )
    )
    y = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False))
    bands = base.mark_area(opacity=0.1).encode(
        alt.Y("low:Q", title=title), y2="high:Q", color=colour
    )
    lines = base.mark_line().encode(y, colour, dash)
    points = base.mark_point(size=45, opacity=1).encode(y, colour, shape)
    return alt.LayerChart(layer=[bands, lines, points])


def bars(results: pd.DataFrame, metric: str) -> alt.LayerChart:
    """Return a chart of a metric by device and label, at the largest training size.

    Whiskers are one standard deviation between seeds (ESM, Figures 9 and 10).

    Args:
        results: Rows of one data set.
        metric: Name in :data:`METRICS`.
    """
    found = by_device(results, metric)
    sd = found["sd"].fillna(0)
    frame = compact(found.assign(low=found["mean"] - sd, high=found["mean"] + sd))
    labels = list(found["label"].unique())
    devices = list(found["device"].unique())
    colour, _, _ = _by_label(labels)
    base = alt.Chart(frame).encode(
        alt.X(
            "device:N", title=None, sort=devices, axis=alt.Axis(labelAngle=0, labelOverlap=False)
        ),
        xOffset=alt.XOffset("label:N", sort=labels),
    )
    y = alt.Y("mean:Q", title=METRICS[metric])
    drawn = base.mark_bar().encode(y, colour)
    # Bars have names, as there may be more predictors than colours.
    names = base.mark_text(
        angle=270, align="left", baseline="middle", dx=6, color=LIGHT.background, fontSize=11
    ).encode(text="label:N", y=alt.value(HEIGHT))
    whiskers = base.mark_rule().encode(alt.Y("low:Q"), y2="high:Q")
    per_device = max(22 * len(labels), 8 * max(map(len, devices)))
    width = max(240, per_device * len(devices))
    chart = alt.LayerChart(layer=[drawn, names, whiskers]).properties(width=width, height=HEIGHT)
    chart.config = config(LIGHT)
    return chart


def scatter(predictions: pd.DataFrame) -> alt.ConcatChart:
    """Return predictions against measurements, a panel per predictor and training size.

    The diagonal marks perfect predictions (ESM, Figure 8). If there are too many panels, only the
    largest size is shown.

    Args:
        predictions: Rows of one device (:meth:`esm_host.research.study.results.Study.predictions`).
    """
    if predictions.groupby(["label", "size"]).ngroups > _MOST_PANELS:
        largest = predictions.groupby("label")["size"].transform("max")
        predictions = predictions[predictions["size"] == largest]
    both = predictions[["measured_ms", "predicted_ms"]].to_numpy(float)
    # Limit the axes, so that an outlier does not squeeze all others into a corner.
    low, high = predictions["measured_ms"].min(), predictions["measured_ms"].max()
    ends = [max(both.min(), low - 0.2 * (high - low)), min(both.max(), high + 0.2 * (high - low))]
    scale = alt.Scale(
        domain=[float(f"{end:.4g}") for end in ends], nice=False, zero=False, clamp=True
    )
    diagonal = (
        alt.Chart(pd.DataFrame({"measured_ms": ends, "predicted_ms": ends}))
        .mark_line(style="baseline", clip=True)
        .encode(alt.X("measured_ms:Q"), alt.Y("predicted_ms:Q"))
    )
    panels = []
    for (label, size), rows in predictions.groupby(["label", "size"], sort=False):
        shown = rows if len(rows) <= _MOST_POINTS else rows.sample(_MOST_POINTS, random_state=0)
        points = (
            alt.Chart(compact(shown[["measured_ms", "predicted_ms"]]))
            .mark_point(size=10, opacity=0.45)
            .encode(
                alt.X("measured_ms:Q", title="measured (ms)", scale=scale),
                alt.Y("predicted_ms:Q", title="predicted (ms)", scale=scale),
            )
        )
        panel = alt.LayerChart(layer=[diagonal, points]).properties(width=_SIDE, height=_SIDE)
        panels.append(panel.properties(title=f"{label}, {counted(size, 'sample')}"))
    chart: alt.ConcatChart = alt.concat(*panels, columns=3)
    chart.config = config(LIGHT)
    return chart


def _by_label(labels: Sequence[str]) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """Return colours and, if these run out, shapes and dashes."""
    families = [number // _COLOURS for number in range(len(labels))]
    domain = list(labels)
    legend = legend_of(labels, symbolLimit=0, symbolOpacity=1)

    def scale(among: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=domain, range=[among[f % len(among)] for f in families])

    return (
        alt.Color("label:N", scale=alt.Scale(domain=domain, range="category"), legend=legend),
        alt.Shape("label:N", scale=scale(SHAPES), legend=legend),
        alt.StrokeDash("label:N", scale=scale(_DASHES), legend=legend),
    )
