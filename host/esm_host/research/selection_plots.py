"""Charts of selections by predicted latency, from frames of :mod:`esm_host.research.selection`.

They are Figures 3 and 4 of Laube et al. 2022 (What to expect of hardware metric predictors in NAS).
"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from esm_host.report.plots import compact, layered
from esm_host.report.theme import SHAPES

MOST_POINTS = 2000
"""Largest number of unselected architectures drawn."""

_KINDS = {"mra_all_percent": "all selected", "mra_verified_percent": "verified"}


def reduction(averages: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the accuracy lost, against the rank correlation.

    It has all selected and the verified architectures. Lines are simulated predictors, points are
    real ones.

    Args:
        averages: Means of :func:`run_selection` over pairs, with the whole table as candidates.
    """
    tall = averages.melt(
        [*("source", "train_samples", "kendall_tau", "deviation_std")],
        list(_KINDS),
        "kind",
        "mra_percent",
    )
    tall["kind"] = tall["kind"].map(_KINDS)
    domain = list(_KINDS.values())
    legend = alt.Legend(symbolType="stroke", symbolSize=200)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=domain), legend=legend)
    dash = alt.StrokeDash(
        "kind:N", scale=alt.Scale(domain=domain, range=[[1, 0], [6, 4]]), legend=legend
    )
    base = _against_tau(tall, "mra_percent", _LOST)
    real = base.transform_filter("datum.train_samples > 0")
    return layered(
        base.transform_filter("datum.train_samples == 0").mark_line().encode(colour, dash),
        real.mark_point(size=60, opacity=1).encode(
            colour, alt.Shape("source:N", scale=alt.Scale(range=SHAPES))
        ),
    )


def reduction_by_pair(simulated: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the accuracy lost by the verified, per pair, with its standard deviation.

    Args:
        simulated: Simulated rows of :func:`run_selection`, with the whole table as candidates.
    """
    mean, sd = simulated["mra_verified_percent"], simulated["mra_verified_percent_sd"]
    pair = simulated["device"] + ", " + simulated["task"]
    frame = simulated.assign(pair=pair, low=(mean - sd).clip(lower=0), high=mean + sd)
    columns = ["pair", "kendall_tau", "deviation_std", "mra_verified_percent", "low", "high"]
    domain = frame["pair"].unique().tolist()
    legend = alt.Legend(columns=2, symbolOpacity=1, labelLimit=260)
    colour = alt.Color("pair:N", scale=alt.Scale(domain=domain), legend=legend)
    shape = alt.Shape("pair:N", scale=alt.Scale(domain=domain, range=SHAPES), legend=legend)
    base = _against_tau(frame[columns], "mra_verified_percent", _LOST).encode(colour)
    band = base.mark_area(opacity=0.08).encode(alt.Y("low:Q", title=_LOST), alt.Y2("high:Q"))
    return layered(band, base.mark_line(), base.mark_point(size=40, opacity=1).encode(shape))


def hypervolume(averages: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the hypervolume by rank correlation and number of candidates.

    The rule is the hypervolume of the whole table's front.

    Args:
        averages: Means over pairs of the simulated rows of :func:`run_selection`.
    """
    sizes = [str(size) for size in sorted(averages["candidates"].unique())]
    frame = averages.assign(size=averages["candidates"].astype(str))
    columns = ["size", "kendall_tau", "deviation_std", "hypervolume"]
    base = _against_tau(frame[columns], "hypervolume", "hypervolume", zero=False)
    legend = alt.Legend(labelExpr="datum.label + ' candidates'", columns=3)
    colour = alt.Color("size:N", scale=alt.Scale(domain=sizes, range="ordinal"), legend=legend)
    best = pd.DataFrame({"best": [float(averages["best_hypervolume"].mean())]})
    rule = alt.Chart(compact(best)).mark_rule(style="target").encode(alt.Y("best:Q"))
    lines = base.mark_line(point=alt.OverlayMarkDef(size=30, opacity=1)).encode(colour)
    return layered(rule, lines)


def selection(example: pd.DataFrame, by: str = "latency_ms") -> alt.LayerChart:
    """Return a chart of one selection with the true front and the selected one.

    Args:
        example: :func:`esm_host.research.selection.example`.
        by: ``"predicted_ms"`` places architectures at their predicted latency, except the true
            front. ``"latency_ms"`` places them at their true latency.
    """
    kept = "selected" if by == "predicted_ms" else "verified"
    others = example[~example["selected"]]
    others = others.sample(min(MOST_POINTS, len(others)), random_state=0)
    top = max(float(example.loc[example["selected"] | example["optimal"], "latency_ms"].max()), 0)
    low, high = float(example[[by, "latency_ms"]].min().min()), 1.15 * top
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    title = "predicted latency (ms)" if by == "predicted_ms" else "latency (ms)"

    def chart(frame: pd.DataFrame, column: str, what: str) -> alt.Chart:
        frame = frame[[column, "accuracy_percent"]].rename(columns={column: "at_ms"})
        made: alt.Chart = alt.Chart(compact(frame.assign(what=what))).encode(
            alt.X("at_ms:Q", title=title, scale=scale),
            alt.Y("accuracy_percent:Q", title="accuracy (%)", scale=alt.Scale(zero=False)),
            tooltip=[
                alt.Tooltip("what:N", title="is"),
                alt.Tooltip("at_ms:Q", title=title, format=".4~g"),
                alt.Tooltip("accuracy_percent:Q", title="accuracy (%)", format=".2f"),
            ],
        )
        return made

    lines = alt.Color(
        "what:N", scale=alt.Scale(domain=["true front", f"{kept} front"]), legend=alt.Legend()
    )
    step: Any = {"interpolate": "step-after", "clip": True}
    chosen = example[example["selected"]]
    return layered(
        chart(others, by, "not selected").mark_point(style="sample", clip=True, opacity=0.2),
        chart(example[example["optimal"]], "latency_ms", "true front")
        .mark_line(**step)
        .encode(lines),
        chart(example[example[kept]], by, f"{kept} front").mark_line(**step).encode(lines),
        chart(chosen, by, "selected").mark_point(style="outlier", clip=True),
        height=300,
    )


_LOST = "accuracy lost (points)"


def _against_tau(frame: pd.DataFrame, column: str, title: str, zero: bool = True) -> alt.Chart:
    chart: alt.Chart = alt.Chart(compact(frame)).encode(
        alt.X(
            "kendall_tau:Q",
            title="Kendall's tau of predicted and true latencies",
            scale=alt.Scale(zero=False, nice=False, padding=12),
        ),
        alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=zero)),
        tooltip=[
            alt.Tooltip("kendall_tau:Q", title="Kendall's tau", format=".3f"),
            alt.Tooltip("deviation_std:Q", title="sd of the deviations", format=".2~f"),
            alt.Tooltip(f"{column}:Q", title=title, format=".3~f"),
        ],
    )
    return chart
