"""Looks of charts, as one Vega configuration each for light and dark.

Charts name styles (``"target"``, ``"band"``, ...) and scale ranges, never colours. So the same
chart is drawn in either theme. Every colour has a contrast of 3:1 to its background, text 4.5:1
(WCAG 2.2). Categories are the colours of Okabe and Ito, adapted to that. Ramps are monotone in
lightness for colour-blind readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]


@dataclass(frozen=True)
class Theme:
    """Colours of one scheme.

    Attributes:
        background: Background of the page.
        text: Text.
        muted: Labels of axes and other secondary text.
        grid: Grid lines.
        accent: Marks without a category.
        alarm: Targets and failures.
        categories: Values without an order.
        ramp: Values in order, from first to last.
        heat: Ramp from zero to a threshold, and from there to the maximum.
    """

    background: str
    text: str
    muted: str
    grid: str
    accent: str
    alarm: str
    categories: tuple[str, ...]
    ramp: tuple[str, ...]
    heat: tuple[str, str, str, str]


LIGHT = Theme(
    background="#ffffff",
    text="#1b2026",
    muted="#565f6b",
    grid="#e7eaee",
    accent="#0b62a8",
    alarm="#b3361e",
    categories=("#0b62a8", "#c4500b", "#00795a", "#9a3f7d", "#55606c", "#7a5c00"),
    ramp=("#1d2f6f", "#7a3b9a", "#bb3f6c", "#cf6a12"),
    heat=("#ffffff", "#8ab8de", "#0b62a8", "#083a66"),
)
DARK = Theme(
    background="#14181d",
    text="#e8ebef",
    muted="#a4adb8",
    grid="#2b323b",
    accent="#6cb8f5",
    alarm="#ff8f73",
    categories=("#6cb8f5", "#f2a154", "#4fcaa2", "#e79bcb", "#b4bcc6", "#e3c657"),
    ramp=("#8796f0", "#c08ae8", "#f28bab", "#ffc273"),
    heat=("#14181d", "#2d5577", "#6cb8f5", "#c9e4fb"),
)


def config(theme: Theme) -> dict[str, Any]:
    """Return the Vega-Lite configuration of a theme."""
    axis = {
        "domain": False,
        "ticks": False,
        "gridColor": theme.grid,
        "labelColor": theme.muted,
        "titleColor": theme.muted,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "titlePadding": 10,
        "labelLimit": 150,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    }
    return {
        "background": theme.background,
        "font": FONT,
        "view": {"stroke": None},
        # Screen readers use the chart's text and table instead of hundreds of points.
        "mark": {"aria": False, "color": theme.accent},
        "axis": axis,
        "axisX": {"labelFlush": 16},
        "legend": {
            "orient": "top",
            "title": None,
            "labelColor": theme.text,
            "labelFontSize": 12,
            "labelLimit": 220,
            "symbolSize": 70,
            "symbolStrokeWidth": 1.5,
            "columnPadding": 14,
            "rowPadding": 4,
            "offset": 12,
        },
        "title": {"color": theme.text, "fontSize": 14, "fontWeight": 600, "anchor": "start"},
        "range": {
            "category": list(theme.categories),
            "ordinal": {"scheme": list(theme.ramp)},
            "heatmap": list(theme.heat),
        },
        "point": {"filled": True, "size": 34, "opacity": 0.75},
        "line": {"strokeWidth": 2},
        "bar": {"color": theme.accent},
        # `color`, as a mark's default colour takes precedence over stroke and fill.
        "style": {
            "target": {"color": theme.alarm, "strokeWidth": 1.5, "strokeDash": [6, 4]},
            "failed": {"color": theme.alarm, "strokeWidth": 1.5, "opacity": 0.7},
            "overall": {"color": theme.text, "strokeWidth": 1.5, "strokeDash": [2, 3]},
            "baseline": {"color": theme.muted, "strokeWidth": 1, "strokeDash": [3, 3]},
            "whisker": {"color": theme.accent, "strokeWidth": 1.25},
            "box": {"color": theme.accent, "strokeWidth": 7, "opacity": 0.35},
            "median": {"color": theme.accent, "opacity": 1, "size": 55},
            "sample": {"color": theme.accent, "opacity": 0.55, "size": 20},
            "outlier": {
                "color": theme.alarm,
                "opacity": 1,
                "size": 45,
                "shape": "triangle-up",
            },
            "histogram": {"color": theme.accent, "opacity": 0.75},
            "mean": {"color": theme.alarm, "strokeWidth": 1.75},
            "interval": {"color": theme.alarm, "opacity": 0.18},
            "band": {"color": theme.categories[2], "opacity": 0.13},
        },
    }
