"""Charts of a campaign, from the frames of :class:`esm_host.campaign.run.Run`."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import altair as alt
import numpy as np
import pandas as pd

from esm_host.atomic import write_bytes
from esm_host.dataset.campaign_metric import CampaignMetric
from esm_host.report.page import chart_page
from esm_host.report.theme import LIGHT, SHAPES, config

WIDTH, HEIGHT = 560, 320

C = TypeVar("C", alt.Chart, alt.LayerChart)

_COLUMNS = alt.ExprRef(expr="max(1, floor(width / 105))")
"""Number of short legend entries that fit side by side."""

LINE = 52
"""Height of a line under a name of :data:`ABOVE`, pixels."""

_FITS = "floor(width / 6.6)"  # letters per line
_SPACE = f"lastindexof(substring(datum.label, 0, {_FITS}), ' ')"
_BREAK = f"({_SPACE} > 0 ? {_SPACE} : {_FITS})"

ABOVE = alt.Axis(
    grid=True,
    labelAlign="left",
    labelBaseline="bottom",
    # Always two lines, so that the distance to the axis is the same for all names.
    labelExpr=f"length(datum.label) <= {_FITS} ? ['', datum.label] : "
    f"[substring(datum.label, 0, {_BREAK}), substring(datum.label, {_BREAK})]",
    labelLimit=0,
    labelOffset=-18,
    labelPadding=0,
    minExtent=0,
)
"""Axis of names that stand above their lines, which leaves room on a phone."""


def of_metric(measurements: pd.DataFrame, metric: CampaignMetric) -> pd.DataFrame:
    """Return measurements with a metric in the place of the latency, in its shown unit.

    Args:
        measurements: :meth:`Run.measurements`; rows without a value are left out.
        metric: Metric that the campaign learns.
    """
    frame = measurements.dropna(subset=metric.key)
    names = ("interval_percent", "verdict", "reasons", "error_percent")
    return frame.assign(
        latency_ms=metric.shown_factor * frame[metric.key],
        predicted_ms=metric.shown_factor * frame[metric.predicted],
        **{name: frame[metric.column(name)] for name in names},
    )


def measured_text(unit: str) -> str:
    """Return the Vega expression of a measured value with its interval."""
    return (
        f"format(datum.latency_ms, '.4~g') + ' {unit}' + (isValid(datum.interval_percent)"
        " ? ' ± ' + format(datum.interval_percent, '.1f') + ' %' : '')"
    )


def predicted_against_measured(measurements: pd.DataFrame, unit: str = "ms") -> alt.LayerChart:
    """Return a chart of held-out predictions against measurements, by depth bin.

    Args:
        measurements: :meth:`Run.measurements`, or those :func:`of_metric`; rows without a
            prediction are left out.
        unit: Unit of the values.
    """
    columns = ["architecture", "depth", "bin", "latency_ms", "interval_percent", "predicted_ms"]
    frame = compact(
        measurements.dropna(subset="predicted_ms")[[*columns, "error_percent", "verdict"]]
    )
    ends, scale = latency_scale(frame["latency_ms"], frame["predicted_ms"])
    ticks = alt.Axis(tickCount=6)
    points = (
        alt.Chart(frame)
        .transform_calculate(
            latency=measured_text(unit),
            error="format(datum.error_percent, '+.1f') + ' %'",
        )
        .mark_point()
        .encode(
            alt.X("latency_ms:Q", title=f"measured ({unit})", scale=scale, axis=ticks),
            alt.Y("predicted_ms:Q", title=f"predicted, held-out ({unit})", scale=scale),
            *_by_depth(frame, symbolOpacity=1),
            tooltip=[
                alt.Tooltip("architecture:N"),
                alt.Tooltip("depth:Q", title="blocks"),
                alt.Tooltip("latency:N", title="measured"),
                alt.Tooltip("predicted_ms:Q", title=f"predicted ({unit})", format=".4~g"),
                alt.Tooltip("error:N"),
                alt.Tooltip("verdict:N"),
            ],
        )
    )
    return layered(diagonal(ends), points, height=420)


def accuracy_by_round(accuracy: pd.DataFrame, target_percent: float | None) -> alt.LayerChart:
    """Return a chart of the accuracy of each depth bin against the number of measured models.

    Args:
        accuracy: :meth:`Run.accuracy`.
        target_percent: Target accuracy, in percent; None for none.
    """
    frame = compact(accuracy.dropna(subset="accuracy_percent"))
    x = alt.X(
        "measured_models:Q",
        title="measured models",
        scale=alt.Scale(zero=False, nice=False, padding=16),
        axis=alt.Axis(values=_some(frame["measured_models"].unique().tolist()), format="d"),
    )
    y = alt.Y("accuracy_percent:Q", title="accuracy (%)", scale=alt.Scale(zero=False))
    tooltip = [
        alt.Tooltip("bin:N", title="blocks"),
        alt.Tooltip("measured_models:Q", title="measured models"),
        alt.Tooltip("accuracy_percent:Q", title="accuracy (%)", format=".1f"),
        alt.Tooltip("samples:Q", title="models of these depths"),
    ]
    bins = frame[frame["bin"] != "all"]
    base = alt.Chart(bins).encode(x=x, y=y, tooltip=tooltip)
    colour, shape = _by_depth(bins)
    lines = base.mark_line().encode(colour)
    points = base.mark_point(size=60, opacity=1).encode(colour, shape)
    targets = {} if target_percent is None else {f"target {target_percent:g} %": target_percent}
    dash = alt.StrokeDash(
        "line:N",
        scale=alt.Scale(domain=["all depths", *targets], range=[[2, 3], [6, 4]]),
        legend=alt.Legend(symbolType="stroke", symbolSize=200),
    )
    overall = (
        alt.Chart(frame[frame["bin"] == "all"].assign(line="all depths"))
        .mark_line(style="overall")
        .encode(x=x, y=y, strokeDash=dash, tooltip=tooltip)
    )
    rules = [
        alt.Chart(pd.DataFrame({"accuracy_percent": [percent], "line": [line]}))
        .mark_rule(style="overall")  # the legend is shared
        .encode(y=y, strokeDash=dash)
        for line, percent in targets.items()
    ]
    return layered(*rules, overall, lines, points)


def pace(blocks: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the pace of each device, block by block.

    Args:
        blocks: :meth:`Run.blocks`.
    """
    frame = compact(blocks[["block", "device", "pace", "round"]])
    frame = frame.assign(slower_percent=(100 * (frame["pace"] - 1)).round(3)).drop(columns="pace")
    lines = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=30, opacity=1))
        .encode(
            _block_axis(frame),
            alt.Y("slower_percent:Q", title="slower than usual (%)"),
            tooltip=[
                "block:Q",
                "round:Q",
                "device:N",
                alt.Tooltip("slower_percent:Q", title="slower by (%)", format="+.1f"),
            ],
        )
    )
    if frame["device"].nunique() > 1:
        legend = legend_of(frame["device"].unique())
        lines = lines.encode(
            alt.Color("device:N", legend=legend), alt.StrokeDash("device:N", legend=legend)
        )
    return layered(level(0.0), lines, height=220)


def paces(paces: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the pace of each of the agent's reference models over time.

    Args:
        paces: :meth:`Run.paces`.
    """
    columns = ["block", "device", "at_s", "reference", "weight_mb", "slower_percent"]
    frame = compact(paces.dropna(subset="slower_percent")[columns])
    frame = frame.assign(minutes=(frame["at_s"] / 60).round(2)).drop(columns="at_s")
    frame = frame.assign(
        name=[
            f"{name} ({weight_mb:.2g} MB)"
            for name, weight_mb in zip(frame["reference"], frame["weight_mb"], strict=True)
        ]
    ).drop(columns=["reference", "weight_mb"])
    names = frame["name"].drop_duplicates().tolist()
    legend = legend_of(names)
    several = frame["device"].nunique() > 1
    devices = legend_of(frame["device"].unique())
    dash = [alt.StrokeDash("device:N", legend=devices)] if several else []
    base = alt.Chart(frame).encode(
        alt.X("minutes:Q", title="minutes since the first block", axis=alt.Axis(tickCount=8)),
        alt.Y("slower_percent:Q", title="slower than usual (%)"),
        alt.Color("name:N", scale=alt.Scale(domain=names), legend=legend),
        alt.Detail("device:N"),
        tooltip=[
            "block:Q",
            "device:N",
            alt.Tooltip("name:N", title="reference model (weights)"),
            alt.Tooltip("minutes:Q", format=".1f"),
            alt.Tooltip("slower_percent:Q", title="slower by (%)", format="+.1f"),
        ],
    )
    shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=SHAPES), legend=legend)
    lines = base.mark_line().encode(*dash)
    points = base.mark_point(size=40, opacity=1).encode(shape)
    return layered(level(0.0), lines, points, height=240)


def deviations(
    references: pd.DataFrame, blocks: pd.DataFrame, tolerance_percent: float
) -> alt.LayerChart:
    """Return a chart of the reference models' deviations after correction for the pace.

    Args:
        references: :meth:`Run.references`.
        blocks: :meth:`Run.blocks`; failed ones are marked.
        tolerance_percent: Tolerated deviation, in percent.
    """
    columns = ["block", "device", "reference", "deviation_percent", "limit_percent"]
    frame = compact(references.dropna(subset="deviation_percent")[columns])
    frame = frame.assign(name="reference " + frame["reference"].astype(str))
    legend = alt.Legend(columns=_COLUMNS)
    x = _block_axis(blocks)
    points = (
        alt.Chart(frame)
        .mark_point()
        .encode(
            x,
            alt.Y("deviation_percent:Q", title="deviation (%)"),
            alt.Color("name:N", legend=legend),
            alt.Shape("name:N", scale=alt.Scale(range=SHAPES), legend=legend),
            tooltip=[
                "block:Q",
                "device:N",
                "reference:Q",
                alt.Tooltip("deviation_percent:Q", title="deviation (%)", format=".2f"),
                alt.Tooltip("limit_percent:Q", title="limit (%)", format=".2f"),
            ],
        )
    )
    band = (
        alt.Chart(pd.DataFrame({"low": [0.0], "high": [tolerance_percent]}))
        .mark_rect(style="band")
        .encode(alt.Y("low:Q", title="deviation (%)"), y2="high:Q")
    )
    failed = (
        alt.Chart(blocks.loc[blocks["passed"].eq(False), ["block"]])
        .mark_rule(style="failed")
        .encode(x=x)
    )
    return layered(band, failed, points, height=240)


def reference_stability(
    blocks: pd.DataFrame, references: pd.DataFrame, tolerance_percent: float
) -> alt.VConcatChart:
    """Return :func:`pace` above :func:`deviations`."""
    charts = (
        pace(blocks).properties(title="pace of the device, by block"),
        deviations(references, blocks, tolerance_percent).properties(
            title="deviation of each reference after correction (vertical lines: failed blocks)"
        ),
    )
    for chart in charts:
        chart.config = alt.Undefined  # only the concatenation may have one
    both: alt.VConcatChart = alt.vconcat(*charts)
    both.resolve = alt.Resolve(scale=alt.ScaleResolveMap(color="independent", shape="independent"))
    both.config = config(LIGHT)
    return both


def residuals(groups: pd.DataFrame, title: str) -> alt.LayerChart:
    """Return a chart of the errors of the predictions by group.

    Args:
        groups: :func:`residual_groups`.
        title: Title of the grouping.
    """
    base = alt.Chart(compact(groups)).encode(
        alt.X("value:Q", title=title, scale=alt.Scale(zero=False, padding=14)),
        tooltip=[
            alt.Tooltip("range:N", title=title),
            alt.Tooltip("models:Q"),
            alt.Tooltip("median_percent:Q", title="median error (%)", format="+.2f"),
            alt.Tooltip("accuracy_percent:Q", title="accuracy (%)", format=".1f"),
        ],
    )
    y = alt.Y("low_percent:Q", title="error of the prediction (%)")
    layers = (
        level(0.0),
        base.mark_rule(style="whisker").encode(y, y2="high_percent:Q"),
        base.mark_rule(style="box").encode(alt.Y("lower_percent:Q"), y2="upper_percent:Q"),
        base.mark_point(style="median").encode(alt.Y("median_percent:Q")),
    )
    return layered(*layers, height=220)


def residual_groups(measurements: pd.DataFrame, column: str, count: int = 12) -> pd.DataFrame:
    """Return the errors of the predictions by equal ranges of a column.

    Columns:
        ``value``: Middle of the values in the range.
        ``range``: The range as text.
        ``models``: Number of models.
        ``low_percent``, ``lower_percent``, ``median_percent``, ``upper_percent``, ``high_percent``:
            Quantiles of the error at 5, 25, 50, 75 and 95 %.
        ``accuracy_percent``: 100 minus the mean absolute error.
    """
    frame = measurements.dropna(subset="error_percent")
    values = frame[column].to_numpy(dtype=float)
    distinct = np.unique(values)
    if len(distinct) <= count:
        index = np.searchsorted(distinct, values)
    else:
        edges = np.linspace(distinct[0], distinct[-1], count + 1)
        index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, count - 1)
    rows = []
    for number in np.unique(index):
        here = values[index == number]
        error = frame["error_percent"].to_numpy()[index == number]
        low, lower, median, upper, high = np.percentile(error, [5, 25, 50, 75, 95])
        ends = [f"{end:.3g}" for end in (here.min(), here.max())]
        rows.append(
            {
                "value": float(here.min() + here.max()) / 2,
                "range": ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}",
                "models": len(here),
                "low_percent": low,
                "lower_percent": lower,
                "median_percent": median,
                "upper_percent": upper,
                "high_percent": high,
                "accuracy_percent": 100 - np.abs(error).mean(),
            }
        )
    names = ["value", "range", "models", "low_percent", "lower_percent", "median_percent"]
    return pd.DataFrame(rows, columns=[*names, "upper_percent", "high_percent", "accuracy_percent"])


def save(chart: Any, path: Path) -> None:
    """Write a chart as PNG, SVG or HTML, by the file's ending."""
    import vl_convert

    spec = chart.to_dict()
    if path.suffix == ".html":
        data = chart_page(spec).encode()
    elif path.suffix == ".svg":
        data = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]).encode()
    else:
        data = vl_convert.vegalite_to_png(spec, scale=2, allowed_base_urls=[])
    write_bytes(path, data)


def legend_of(names: Iterable[object], **looks: Any) -> alt.Legend:
    """Return a legend with as many names side by side as fit."""
    longest = max((len(str(name)) for name in names), default=1)
    columns = alt.ExprRef(expr=f"max(1, floor(width / {40 + 7 * longest}))")
    return alt.Legend(columns=columns, **looks)


def layered(*layers: Any, height: int = HEIGHT) -> alt.LayerChart:
    """Return charts on top of each other, in the size and style of the reports."""
    return styled(alt.LayerChart(layer=list(layers)), height)


def styled(chart: C, height: int = HEIGHT) -> C:
    """Return a chart in the size and style of the reports."""
    sized = chart.properties(width=WIDTH, height=height)
    sized.config = copy.deepcopy(config(LIGHT))
    return sized


def compact(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with six significant digits, and null for infinities, which JSON lacks."""
    floats = frame.select_dtypes("float").columns
    changed = {
        name: frame[name].where(np.isfinite(frame[name])).map(lambda v: float(f"{v:.6g}"))
        for name in floats
    }
    return frame.assign(**changed).reset_index(drop=True)


def ordered_bins(frame: pd.DataFrame) -> list[str]:
    """Return the bins from the shallowest to the deepest."""
    return sorted(frame["bin"].unique(), key=lambda name: int(name.partition("-")[0]))


def _by_depth(frame: pd.DataFrame, **legend: Any) -> tuple[alt.Color, alt.Shape]:
    """Return colours and shapes of depth bins, in one legend."""
    domain = ordered_bins(frame)
    shared = alt.Legend(columns=_COLUMNS, labelExpr="datum.label + ' blocks'", **legend)
    return (
        alt.Color("bin:N", scale=alt.Scale(domain=domain, range="ordinal"), legend=shared),
        alt.Shape("bin:N", scale=alt.Scale(domain=domain, range=SHAPES), legend=shared),
    )


def _block_axis(blocks: pd.DataFrame) -> alt.X:
    last = int(blocks["block"].max()) if len(blocks) else 1
    return alt.X(
        "block:Q",
        title="block",
        scale=alt.Scale(domain=[0.5, last + 0.5], nice=False, zero=False),
        axis=alt.Axis(values=_some(list(range(1, last + 1))), format="d"),
    )


def latency_scale(*latency_ms: pd.Series) -> tuple[list[float], alt.Scale]:
    """Return the ends and the scale of latencies, for both axes."""
    every = np.concatenate(latency_ms)
    if not len(every):
        every = np.array([1.0, 2.0])
    ends = [max(float(every.min()), 1e-6) * 0.95, float(every.max()) * 1.05]
    kind: Literal["log", "linear"] = "log" if ends[1] > 20 * ends[0] else "linear"
    return ends, alt.Scale(domain=ends, nice=False, zero=False, type=kind)


def diagonal(ends: list[float]) -> alt.Chart:
    """Return the line of perfect predictions."""
    chart: alt.Chart = alt.Chart(pd.DataFrame({"measured": ends, "predicted": ends})).mark_line(
        style="baseline", clip=True
    )
    chart.encoding = alt.FacetedEncoding(x=alt.X("measured:Q"), y=alt.Y("predicted:Q"))
    return chart


def level(value: float) -> alt.Chart:
    """Return a horizontal line."""
    chart: alt.Chart = alt.Chart(pd.DataFrame({"level": [value]})).mark_rule(style="baseline")
    chart.encoding = alt.FacetedEncoding(y=alt.Y("level:Q"))
    return chart


def _some(values: list[int], most: int = 10) -> list[int]:
    step = max(-(-len(values) // most), 1)
    return values[::step]
