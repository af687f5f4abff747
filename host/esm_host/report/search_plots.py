"""Charts of searches.

The data are frames of :class:`esm_host.search.record.SearchRecord` and
:mod:`esm_host.report.search_numbers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from esm_host.dataset.campaign_metric import ENERGY, PEAK_MEMORY
from esm_host.report.plots import compact, layered, level
from esm_host.search.latency import AT_MOST, ENERGY_DELAY, LATENCY, bounded_by
from esm_host.search.problem import Limit

FRONT, DOMINATED, OWN = (
    "on the verified front",
    "measured, not on the front",
    "measured by the campaign",
)
PREDICTED = "predicted"
"""Kinds of architectures in a chart."""

MEMORY = "memory_bytes"
_TITLES = {
    LATENCY: "latency",
    AT_MOST: "latency at most",
    "flops": "FLOPs",
    MEMORY: "memory",
    ENERGY.key: "energy",
    ENERGY_DELAY: "energy-delay product",
    ENERGY.at_most: "energy at most",
    PEAK_MEMORY.key: "peak memory",
    PEAK_MEMORY.at_most: "peak memory at most",
}
_UNITS = {
    LATENCY: "ms",
    AT_MOST: "ms",
    MEMORY: "bytes",
    ENERGY.key: ENERGY.unit,
    ENERGY_DELAY: "µJ s",
    ENERGY.at_most: ENERGY.unit,
    PEAK_MEMORY.key: PEAK_MEMORY.unit,
    PEAK_MEMORY.at_most: PEAK_MEMORY.unit,
}
_COUNTED = ("flops", "parameters", MEMORY, PEAK_MEMORY.key, PEAK_MEMORY.at_most)


def title(name: str, unit: bool = True) -> str:
    """Return the title of a quantity."""
    device, _, plain = name.rpartition(".")
    text = _TITLES.get(plain, plain) + (f" on {device}" if device else "")
    return f"{text} ({_UNITS[plain]})" if unit and plain in _UNITS else text


def unit(name: str) -> str:
    """Return the unit of a quantity, ``""`` if it has none."""
    return _UNITS.get(name.rpartition(".")[2], "")


def is_counted(name: str) -> bool:
    """Return whether a quantity is a count, shown in millions."""
    return name.rpartition(".")[2] in _COUNTED


def verified_front(
    points: pd.DataFrame,
    predicted: pd.DataFrame,
    axes: tuple[str, str],
    limits: Sequence[Limit] = (),
    stairs: bool = True,
) -> alt.LayerChart:
    """Return a chart of the front that the first round predicted, and of the measurements.

    Args:
        points: Result of :func:`measured_points`.
        predicted: Predicted front, with both quantities.
        axes: Quantities of the axes, a latency first.
        limits: Limits of any quantities; those of the axes are drawn.
        stairs: Whether the fronts are drawn as lines, which needs two objectives.
    """
    frame = compact(points)
    x, y = _axes(frame, predicted, axes)
    tooltip = _tooltip(axes, alt.Tooltip("predicted_x:Q", title="predicted", format=".4~g"))
    base = alt.Chart(frame).encode(x, y, tooltip=tooltip)
    expected = predicted.rename(columns=dict(zip(axes, "xy", strict=True)))
    lines = [(expected, PREDICTED, [2, 3]), (frame[frame["what"] == FRONT], FRONT, [1, 0])]
    marks = [(what, size) for what, size in _SIZES.items() if what in set(frame["what"])]
    return layered(
        *_rules(axes, limits, x, y),
        *(_stairs(*line).encode(x, y, _colour()) for line in lines if stairs and len(line[0])),
        *(_moved(base, x, y) if frame["predicted_x"].notna().any() else ()),
        *(
            base.transform_filter(f"datum.what == '{what}'")
            .mark_point(size=size, opacity=_FAINT if what == OWN else 1)
            .encode(_colour(), _shape())
            for what, size in marks
        ),
        height=420,
    )


def measured_points(
    measured: pd.DataFrame, chosen: pd.DataFrame, axes: tuple[str, str]
) -> pd.DataFrame:
    """Return all measurements with their quantities.

    Columns:
        ``architecture``: Architecture as text.
        ``x``, ``y``: Its quantities.
        ``predicted_x``, ``predicted_y``: Predictions before the search measured it.
        ``what``: Kind of the architecture.

    Args:
        measured: :meth:`SearchRecord.measured`.
        chosen: :meth:`SearchRecord.chosen`.
        axes: Two quantities.
    """
    frame = measured.dropna(subset=list(axes))
    predicted = chosen.set_index("key")
    what = np.where(frame["round"] > 0, DOMINATED, OWN)
    columns = {"architecture": frame["architecture"]}
    for name, axis in zip("xy", axes, strict=True):
        columns[name] = frame[axis]
        columns[f"predicted_{name}"] = frame["key"].map(predicted[axis])
    result = pd.DataFrame({**columns, "what": np.where(frame["on_front"], FRONT, what)})
    return result.sort_values("x", ignore_index=True)


def _axes(frame: pd.DataFrame, more: pd.DataFrame, axes: tuple[str, str]) -> tuple[alt.X, alt.Y]:
    made: list[Any] = []
    for name, axis, channel in zip("xy", axes, (alt.X, alt.Y), strict=True):
        known = [frame[n] for n in (name, f"predicted_{name}", f"{name}_at_most") if n in frame]
        values = np.concatenate([*known, more[axis]])
        scale = _scale(values[np.isfinite(values)])
        ticks = alt.Axis(format="~s") if is_counted(axis) else alt.Axis()
        made.append(channel(f"{name}:Q", title=title(axis), scale=scale, axis=ticks))
    return made[0], made[1]


def _scale(values: Any) -> alt.Scale:
    """Return a scale, logarithmic if the values span more than a decade."""
    wide = len(values) and values.min() > 0 and values.max() > 10 * values.min()
    if wide:
        return alt.Scale(type="log", nice=False, padding=12)
    return alt.Scale(zero=False, nice=False, padding=12)


def predicted_front(
    points: pd.DataFrame, own: pd.DataFrame, axes: tuple[str, str], limits: Sequence[Limit] = ()
) -> alt.LayerChart:
    """Return a chart of a predicted front with the upper bounds of its latencies.

    Args:
        points: ``architecture``, its quantities ``x`` and ``y``, and the bound ``x_at_most``.
        own: Measurements of the campaigns, from :func:`measured_points`.
        axes: Quantities of the axes, a latency first.
        limits: Limits of any quantities; those of the axes are drawn.
    """
    frame = compact(points.assign(what=PREDICTED))
    more = own.rename(columns=dict(zip("xy", axes, strict=True)))
    x, y = _axes(frame, more, axes)
    tooltip = _tooltip(axes, alt.Tooltip("x_at_most:Q", title="at most", format=".4~g"))
    kinds = _colour(PREDICTED, OWN), _shape(PREDICTED, OWN)
    base = alt.Chart(frame).encode(x, y, kinds[0], tooltip=tooltip)
    others = alt.Chart(compact(own)).encode(x, y, *kinds, tooltip=_tooltip(axes))
    return layered(
        *_rules(axes, limits, x, y),
        others.mark_point(size=_SIZES[OWN], opacity=_FAINT),
        base.mark_rule(strokeWidth=1.25, opacity=0.7).encode(x2="x_at_most:Q"),
        base.mark_point(size=40, opacity=1).encode(kinds[1]),
        height=420,
    )


def progress(steps: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the hypervolume against the number of measurements of the search.

    Args:
        steps: :func:`esm_host.report.search_numbers.progress`.
    """
    line = (
        alt.Chart(compact(steps))
        .mark_line(interpolate="step-after", point=alt.OverlayMarkDef(size=50, opacity=1))
        .encode(
            alt.X(
                "measured:Q",
                title="measured by the search",
                scale=alt.Scale(nice=False),
                axis=alt.Axis(values=steps["measured"].tolist(), format="d"),
            ),
            alt.Y(
                "hypervolume_percent:Q",
                title="hypervolume (% of the last)",
                scale=alt.Scale(zero=False, nice=True),
            ),
            tooltip=[
                alt.Tooltip("measured:Q"),
                alt.Tooltip("front:Q", title="on the front"),
                alt.Tooltip("hypervolume_percent:Q", title="hypervolume (%)", format=".1f"),
            ],
        )
    )
    return layered(line, height=240)


def off(deviations: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the errors of the predictions by round.

    Triangles are slower than their upper bound.

    Args:
        deviations: :func:`esm_host.report.search_numbers.deviations`; rows without a measurement
            are left out.
    """
    columns = ["round", "architecture", "device", "predicted_ms", "at_most_ms", "measured_ms"]
    frame = compact(deviations.dropna(subset="off_percent")[[*columns, "off_percent", "within"]])
    base = alt.Chart(frame).encode(
        alt.X("round:O", title="round", axis=alt.Axis(labelAngle=0)),
        alt.Y("off_percent:Q", title="slower than predicted (%)"),
        tooltip=[
            alt.Tooltip("architecture:N"),
            alt.Tooltip("predicted_ms:Q", title="predicted (ms)", format=".4~g"),
            alt.Tooltip("at_most_ms:Q", title="at most (ms)", format=".4~g"),
            alt.Tooltip("measured_ms:Q", title="measured (ms)", format=".4~g"),
            alt.Tooltip("off_percent:Q", title="slower by (%)", format="+.1f"),
        ],
    )
    marks = {"datum.within": (True, "median"), "!datum.within": (False, "outlier")}
    points = (
        base.transform_filter(which).mark_point(style=style)
        for which, (within, style) in marks.items()
        if within in set(frame["within"])
    )
    return layered(level(0.0), *points, height=240)


_SHAPES = {FRONT: "circle", DOMINATED: "triangle-up", OWN: "square", PREDICTED: "diamond"}


def _tooltip(axes: tuple[str, str], *more: alt.Tooltip) -> list[alt.Tooltip]:
    x, y = (".4~s" if is_counted(name) else ".4~g" for name in axes)
    return [
        alt.Tooltip("architecture:N"),
        alt.Tooltip("what:N", title="is"),
        alt.Tooltip("x:Q", title=title(axes[0]), format=x),
        *more,
        alt.Tooltip("y:Q", title=title(axes[1]), format=y),
    ]


_SIZES = {OWN: 16, DOMINATED: 45, FRONT: 55}
_FAINT = 0.5


def _moved(base: alt.Chart, x: alt.X, y: alt.Y) -> tuple[alt.Chart, alt.Chart]:
    """Return lines from the predicted to the measured points, and the predicted points."""
    before = base.transform_filter("isValid(datum.predicted_x)").encode(
        alt.X("predicted_x:Q", scale=x["scale"]), alt.Y("predicted_y:Q", scale=y["scale"])
    )
    before = before.transform_calculate(what=f"'{PREDICTED}'").encode(_colour())
    return (
        before.mark_rule(strokeWidth=1.25, opacity=0.7).encode(x2="x:Q", y2="y:Q"),
        before.mark_point(size=26, opacity=1).encode(_shape()),
    )


def _colour(*shown: str) -> alt.Color:
    """Return a colour per kind, the same in every chart; the legend has those shown."""
    return alt.Color("what:N", scale=alt.Scale(domain=list(_SHAPES)), legend=_legend(shown))


def _shape(*shown: str) -> alt.Shape:
    scale = alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values()))
    return alt.Shape("what:N", scale=scale, legend=_legend(shown))


def _legend(shown: Sequence[str]) -> alt.Legend:
    columns = alt.ExprRef(expr="width < 420 ? 1 : 2")
    return alt.Legend(columns=columns, symbolOpacity=1, values=list(shown or _SHAPES))


def _stairs(frame: pd.DataFrame, what: str, dash: list[int]) -> alt.Chart:
    frame = compact(frame[["x", "y"]].sort_values("x").assign(what=what))
    chart: alt.Chart = alt.Chart(frame).mark_line(interpolate="step-after", strokeDash=dash)
    return chart


def _rules(axes: tuple[str, str], limits: Sequence[Limit], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    rules = []
    for limit in limits:
        shown = bounded_by(limit.name)
        if shown in axes:
            frame = pd.DataFrame({"xy"[axes.index(shown)]: [limit.value]})
            encoded = x if shown == axes[0] else y
            rules.append(alt.Chart(frame).mark_rule(style="target").encode(encoded))
    return rules
