"""Charts of sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.report.plots import compact
from esm_host.report.theme import LIGHT, config

_CELL = 24
_TITLE = "rank correlation"


def correlations(
    names: Sequence[str], matrix: NDArray[np.float64], threshold: float
) -> alt.LayerChart:
    """Return a heat map of the devices' rank correlations, in hundredths.

    Args:
        names: Distinct names of the devices, in the order shown.
        matrix: Rank correlations, ``(devices, devices)``; NaN leaves a cell empty.
        threshold: Correlation from which cells are dark.
    """
    rows, columns = np.indices(matrix.shape).reshape(2, -1)
    order = list(names)
    values = matrix.ravel()
    frame = pd.DataFrame(
        {
            "row": [order[row] for row in rows],
            "column": [order[column] for column in columns],
            "correlation": values,
            "hundredths": [f"{100 * v:.0f}" if np.isfinite(v) else "" for v in values],
        }
    )
    look: dict[str, Any] = {"labelLimit": 260, "labelOverlap": False, "grid": False}
    scale = alt.Scale(paddingInner=0.04, paddingOuter=0)
    base = alt.Chart(compact(frame)).encode(
        alt.X(
            "column:N", title=None, sort=order, scale=scale, axis=alt.Axis(labelAngle=-90, **look)
        ),
        alt.Y("row:N", title=None, sort=order, scale=scale, axis=alt.Axis(**look)),
        tooltip=[
            alt.Tooltip("row:N", title="device"),
            alt.Tooltip("column:N", title="with"),
            alt.Tooltip("correlation:Q", title=_TITLE, format=".3f"),
        ],
    )
    colours = alt.Scale(
        domain=[0, threshold - 1e-6, threshold, 1], range="heatmap", interpolate="lab", clamp=True
    )
    legend = alt.Legend(
        title=_TITLE, values=[0, 0.5, threshold, 1], format=".2~f", gradientLength=240
    )
    cells = base.mark_rect().encode(alt.Color("correlation:Q", scale=colours, legend=legend))
    words = base.mark_text(fontSize=10).encode(
        text="hundredths:N",
        color=alt.condition(
            f"datum.correlation >= {threshold}",
            alt.value(LIGHT.background),
            alt.value(LIGHT.text),
        ),
    )
    side = _CELL * len(order)
    chart = alt.LayerChart(layer=[cells, words]).properties(width=side, height=side)
    chart.config = config(LIGHT)
    return chart
