"""Charts of timed models, from the frames of :class:`esm_host.timing.frames.TimingFile`."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from esm_host.report.plots import ABOVE, LINE, compact, layered, legend_of, level, styled
from esm_host.report.theme import SHAPES

MOST_SAMPLES = 1200
"""Largest number of samples drawn per result (see :func:`thinned`)."""

_OPERATORS = 12


def latencies(results: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the trimmed means with their intervals, one line per result.

    Args:
        results: :meth:`TimingFile.results`; failed ones are left out.
    """
    columns = ["label", "device", "trimmed_mean_ms", "low_ms", "high_ms", "verdict"]
    frame = compact(results.dropna(subset="trimmed_mean_ms")[columns])
    wide = len(frame) and frame["trimmed_mean_ms"].max() > 20 * frame["trimmed_mean_ms"].min()
    log = alt.Scale(type="log", nice=False, padding=24)
    scale = log if wide else alt.Scale(zero=True)
    axis = alt.Axis(tickCount=5)
    y = alt.Y("label:N", title=None, sort=None, axis=ABOVE)
    tooltip = [
        alt.Tooltip("label:N", title="result"),
        alt.Tooltip("trimmed_mean_ms:Q", title="trimmed mean (ms)", format=".4~g"),
        alt.Tooltip("low_ms:Q", title="95 % interval from", format=".4~g"),
        alt.Tooltip("high_ms:Q", title="to", format=".4~g"),
        alt.Tooltip("verdict:N"),
    ]
    base = alt.Chart(frame).encode(y, tooltip=tooltip)
    rules = base.mark_rule(strokeWidth=2.5).encode(
        alt.X("low_ms:Q", title="latency (ms)", scale=scale, axis=axis), x2="high_ms:Q"
    )
    points = base.mark_point(size=70, opacity=1).encode(alt.X("trimmed_mean_ms:Q", scale=scale))
    if frame["device"].nunique() > 1:
        domain = frame["device"].unique().tolist()
        legend = legend_of(domain)
        colour = alt.Color("device:N", scale=alt.Scale(domain=domain), legend=legend)
        shape = alt.Shape("device:N", scale=alt.Scale(domain=domain, range=SHAPES), legend=legend)
        rules = rules.encode(colour)
        points = points.encode(colour, shape)
    return layered(rules, points, height=LINE * len(frame))


def samples_over_time(samples: pd.DataFrame, result: pd.Series) -> alt.LayerChart:
    """Return a chart of the counted runs of a result, with the trimmed mean and its interval.

    Outliers are triangles at the upper edge.

    Args:
        samples: :meth:`TimingFile.samples` of the result.
        result: Row of :meth:`TimingFile.results`.
    """
    low, top = _range(samples["latency_ms"].to_numpy(dtype=float))
    scale = alt.Scale(domain=[low, top], nice=False, zero=False)
    frame = compact(thinned(samples)[["start_s", "latency_ms"]])
    beyond = frame["latency_ms"] > top
    base = alt.Chart(frame.assign(shown_ms=frame["latency_ms"].clip(upper=top), beyond=beyond))
    base = base.encode(
        alt.X("start_s:Q", title="time (s)", scale=alt.Scale(nice=False)),
        alt.Y("shown_ms:Q", title="latency (ms)", scale=scale),
        tooltip=[
            alt.Tooltip("latency_ms:Q", title="latency (ms)", format=".4~g"),
            alt.Tooltip("start_s:Q", title="at (s)", format=".3~f"),
        ],
    )
    inside = base.transform_filter("!datum.beyond").mark_point(style="sample")
    outliers = base.transform_filter("datum.beyond").mark_point(style="outlier", yOffset=5)
    band, mean = _estimate(result)
    layers = (
        band.encode(alt.Y("low_ms:Q", scale=scale), y2="high_ms:Q"),
        inside,
        outliers,
        mean.encode(alt.Y("trimmed_mean_ms:Q", scale=scale)),
    )
    return layered(*layers, height=200)


def distribution(samples: pd.DataFrame, result: pd.Series) -> alt.LayerChart:
    """Return a histogram of the latencies, with the trimmed mean and its interval.

    Args:
        samples: Samples of the result.
        result: Row of :meth:`TimingFile.results`.
    """
    bars = (
        alt.Chart(compact(histogram(samples["latency_ms"].to_numpy(dtype=float))))
        .mark_bar(style="histogram", binSpacing=1)
        .encode(
            alt.X(
                "from_ms:Q",
                bin=alt.BinParams(binned=True),
                title="latency (ms)",
                scale=alt.Scale(zero=False, nice=False, padding=8),
            ),
            alt.X2("to_ms:Q"),
            alt.Y("runs:Q", title="runs"),
            tooltip=[
                alt.Tooltip("from_ms:Q", title="from (ms)", format=".4~g"),
                alt.Tooltip("to_ms:Q", title="to (ms)", format=".4~g"),
                alt.Tooltip("runs:Q"),
            ],
        )
    )
    band, mean = _estimate(result)
    layers = (
        bars,
        band.encode(alt.X("low_ms:Q"), x2="high_ms:Q"),
        mean.encode(alt.X("trimmed_mean_ms:Q")),
    )
    return layered(*layers, height=200)


def operators(operators: pd.DataFrame) -> alt.Chart:
    """Return a chart of the time per operator type, slowest first.

    Args:
        operators: :meth:`TimingFile.operators` of one result.
    """
    frame = operators.sort_values("ms", ascending=False).head(_OPERATORS)
    columns = ["op_type", "provider", "calls", "ms", "share_percent"]
    chart: alt.Chart = (
        alt.Chart(compact(frame[columns]))
        .mark_bar(height={"band": 0.7})
        .encode(
            alt.X("ms:Q", title="time per inference (ms)"),
            alt.Y("op_type:N", sort=None, title=None, axis=alt.Axis(grid=False)),
            tooltip=[
                alt.Tooltip("op_type:N", title="operator"),
                alt.Tooltip("provider:N"),
                alt.Tooltip("calls:Q", title="calls per inference"),
                alt.Tooltip("ms:Q", format=".4~g"),
                alt.Tooltip("share_percent:Q", title="share (%)", format=".1f"),
            ],
        )
    )
    return styled(chart, height=max(90, 24 * len(frame)))


def telemetry(states: pd.DataFrame, column: str, title: str) -> alt.Chart:
    """Return a chart of one quantity of the devices' state over time, a line per block.

    Args:
        states: :meth:`TimingFile.states`.
        column: Name of the quantity, such as ``clock_mhz``.
        title: Title of the quantity.
    """
    frame = states.dropna(subset=column)[["device", "part", "at_s", column]]
    frame = compact(frame.astype({column: float}).rename(columns={column: "value"}))
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=30, opacity=1))
        .encode(
            alt.X("at_s:Q", title="time since the block's first run (s)"),
            alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            alt.Detail("part:N"),
            tooltip=[
                alt.Tooltip("device:N"),
                alt.Tooltip("at_s:Q", title="at (s)", format=".1f"),
                alt.Tooltip("value:Q", title=title, format=".5~g"),
            ],
        )
    )
    if frame["device"].nunique() > 1:
        legend = legend_of(frame["device"].unique())
        chart = chart.encode(
            alt.Color("device:N", legend=legend), alt.StrokeDash("device:N", legend=legend)
        )
    return styled(chart, height=190)


def paces(paces: pd.DataFrame) -> alt.LayerChart:
    """Return a chart of the pace of a device's reference models, visit by visit.

    Args:
        paces: :meth:`TimingFile.paces` of one device.
    """
    frame = compact(paces[["block", "reference", "at_s", "slower_percent"]])
    title = "slower than usual (%)" if paces["usual"].all() else "slower than its median (%)"
    domain = frame["reference"].unique().tolist()
    chart = (
        alt.Chart(frame)
        .mark_line(point=alt.OverlayMarkDef(size=30, opacity=1))
        .encode(
            alt.X("at_s:Q", title="time since the first run (s)"),
            alt.Y("slower_percent:Q", title=title),
            alt.Detail("block:N"),
            alt.Color("reference:N", title="reference model", scale=alt.Scale(domain=domain)),
            alt.StrokeDash("reference:N", scale=alt.Scale(domain=domain)),
            tooltip=[
                alt.Tooltip("reference:N", title="reference model"),
                alt.Tooltip("slower_percent:Q", title=title, format=".1f"),
                alt.Tooltip("at_s:Q", title="at (s)", format=".1f"),
            ],
        )
    )
    return layered(level(0.0), chart, height=190)


def thinned(samples: pd.DataFrame, most: int = MOST_SAMPLES) -> pd.DataFrame:
    """Return about ``most`` samples at most, with the outliers and the level unchanged.

    Of each stretch the fastest, the median and the slowest are kept.
    """
    if len(samples) <= most:
        return samples
    latency = samples["latency_ms"].to_numpy(dtype=float)
    kept: set[int] = set()
    for part in np.array_split(np.arange(len(samples)), most // 3):
        order = part[np.argsort(latency[part], kind="stable")]
        kept |= {int(order[0]), int(order[len(order) // 2]), int(order[-1])}
    return samples.iloc[sorted(kept)]


def histogram(latency_ms: np.ndarray) -> pd.DataFrame:
    """Return a histogram with the columns ``from_ms``, ``to_ms`` and ``runs``.

    It has up to 40 bars. Outliers among the slowest hundredth are left out (:func:`shown_up_to`).
    """
    inside = latency_ms[latency_ms <= shown_up_to(latency_ms)]
    bars = int(np.clip(np.sqrt(len(inside)), 1, 40))
    counts, edges = np.histogram(inside, bars)
    return pd.DataFrame({"from_ms": edges[:-1], "to_ms": edges[1:], "runs": counts})


def shown_up_to(latency_ms: np.ndarray) -> float:
    """Return the end of the histogram, ms: the slowest run, or less if that is an outlier."""
    low, high, top = np.percentile(latency_ms, [1, 99, 100])
    return float(top if top - high <= high - low else high)


def _range(latency_ms: np.ndarray) -> tuple[float, float]:
    """Return the ends of an axis, ms; runs beyond :func:`shown_up_to` are drawn at its end."""
    low, high = float(latency_ms.min()), shown_up_to(latency_ms)
    room = 0.08 * (high - low) or 0.05 * high
    return low - room, high + room


def _estimate(result: pd.Series) -> tuple[alt.Chart, alt.Chart]:
    numbers = ["trimmed_mean_ms", "low_ms", "high_ms"]
    frame = compact(pd.DataFrame([result[numbers].astype(float)]))
    band: alt.Chart = alt.Chart(frame.dropna()).mark_rect(style="interval")
    mean: alt.Chart = alt.Chart(frame).mark_rule(style="mean")
    return band, mean
