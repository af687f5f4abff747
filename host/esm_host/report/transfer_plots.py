"""Charts of transfer from other devices."""

from __future__ import annotations

import altair as alt
import pandas as pd

from esm_host.report.plots import compact, diagonal, latency_scale, layered, measured_text


def held_out_predictions(models: pd.DataFrame, unit: str = "ms") -> alt.LayerChart:
    """Return a chart of held-out predictions with their 90 % intervals against measurements.

    A triangle is a model whose interval does not hold its latency.

    Args:
        models: :func:`esm_host.report.transfer.held_out`, one row or more.
        unit: Unit of the values.
    """
    columns = ["architecture", "depth", "latency_ms", "interval_percent", "predicted_ms", "low_ms"]
    frame = models[[*columns, "high_ms", "error_percent", "verdict"]]
    frame = compact(frame.assign(within=models["covered"].map({True: "yes", False: "no"})))
    ends, scale = latency_scale(*(frame[name] for name in ("latency_ms", "low_ms", "high_ms")))
    ticks = alt.Axis(tickCount=6)
    base = (
        alt.Chart(frame)
        .transform_calculate(
            latency=measured_text(unit),
            error="format(datum.error_percent, '+.1f') + ' %'",
            interval="format(datum.low_ms, '.4~g') + ' to ' + format(datum.high_ms, '.4~g')"
            f" + ' {unit}'",
        )
        .encode(
            alt.X("latency_ms:Q", title=f"measured ({unit})", scale=scale, axis=ticks),
            tooltip=[
                alt.Tooltip("architecture:N"),
                alt.Tooltip("depth:Q", title="blocks"),
                alt.Tooltip("latency:N", title="measured"),
                alt.Tooltip("predicted_ms:Q", title=f"predicted ({unit})", format=".4~g"),
                alt.Tooltip("interval:N", title="90 % interval"),
                alt.Tooltip("error:N"),
                alt.Tooltip("verdict:N"),
            ],
        )
    )
    y = alt.Y("low_ms:Q", title=f"predicted, held-out ({unit})", scale=scale)
    point = alt.Y("predicted_ms:Q", scale=scale)
    inside, outside = (base.transform_filter(f"datum.within == '{w}'") for w in ("yes", "no"))
    return layered(
        diagonal(ends),
        base.mark_rule(style="whisker").encode(y, y2="high_ms:Q"),
        inside.mark_point(style="median").encode(point),
        outside.mark_point(style="outlier", size=110).encode(point),
    )
