"""Report of a comparison of timings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from esm_host.report.page import (
    DASH,
    Cell,
    Column,
    Fact,
    Facts,
    Figure,
    Page,
    Section,
    Table,
    Text,
    fixed,
    number,
    plural,
)
from esm_host.report.plots import ABOVE, LINE, compact, layered
from esm_host.timing.compare import Comparison, Outcome
from esm_protos.metrics import STATISTICS, Metric


def comparison_page(comparison: Comparison) -> Page:
    """Return the report of a comparison: the changes of each model, and the settings."""
    changes, slower = comparison.changes, comparison.regressions
    timings = [plural(count, "timing") for count in comparison.timings]
    return Page(
        eyebrow="Comparison of timings",
        title=f"{plural(len(changes), 'result')}, before and after",
        lead=_lead(comparison),
        status=(
            ("bad", f"{len(slower)} slower or failing")
            if slower
            else ("open", f"{len(comparison.undecided)} undecided")
            if comparison.undecided
            else ("open", "nothing slower found, see the warnings")
            if comparison.warnings and not comparison.degrees_of_freedom
            else ("good", "nothing became slower")
        ),
        facts=[
            Fact("Slower or failing", str(len(slower)), f"of {plural(len(changes), 'result')}"),
            Fact("Faster", str(sum(change.outcome is Outcome.FASTER for change in changes))),
            Fact("Undecided", str(len(comparison.undecided))),
            Fact("Timings", " and ".join(map(str, comparison.timings)), "before and after"),
        ],
        sections=[
            Section(
                "changes",
                "Changes",
                "",
                [*map(_warning, comparison.warnings), *_changes(comparison)],
            ),
            Section(
                "how",
                "How they were compared",
                "",
                [
                    Facts(
                        [
                            Fact("--confidence", f"{100 * comparison.confidence:g} %"),
                            Fact("--tolerance", f"{comparison.tolerance_percent:g} %"),
                            Fact("Before", timings[0]),
                            Fact("After", timings[1]),
                        ]
                    ),
                    *map(_warning, comparison.allowed),
                ],
            ),
        ],
    )


def _lead(comparison: Comparison) -> str:
    known = [change for change in comparison.changes if change.change_percent is not None]
    if not known:
        return "No model ran in all timings."
    shown = [change for change in known if change.outcome is not Outcome.SAME]
    if not shown:
        return "No change is outside the noise."
    most = max(shown, key=lambda change: abs(change.change_percent or 0))
    percent = most.change_percent or 0.0
    way = "slower" if percent > 0 else "faster"
    sure = ", undecided" if most.outcome is Outcome.UNDECIDED else ""
    name = comparison.name(most)
    return f"The largest change outside the noise: {name} is {abs(percent):.1f} % {way}{sure}."


def _warning(text: str) -> Text:
    return Text(f"Warning: {text}.")


def _changes(comparison: Comparison) -> Iterator[Any]:
    rows = [
        {
            "name": comparison.name(change),
            "change_percent": change.change_percent,
            "low_percent": low,
            "high_percent": high,
            "verdict": comparison.verdict(change),
        }
        for change in comparison.changes
        if change.change_percent is not None
        for low, high in [change.interval_percent or (None, None)]
    ]
    percent = f"{100 * comparison.confidence:g} %"
    if rows:
        yield Figure(
            "change",
            "Change of each latency",
            f"With its {percent} interval; right of 0 is slower. A change is a regression "
            f"if its whole interval is beyond {comparison.tolerance_percent:g} % (red line).",
            _chart(pd.DataFrame(rows), comparison.tolerance_percent),
            [
                Column("name", "result"),
                Column("change_percent", "change (%)", 2),
                Column("low_percent", "from (%)", 2),
                Column("high_percent", "to (%)", 2),
                Column("verdict", "verdict"),
            ],
        )
    yield Table(
        "results",
        "All results",
        ["result", "#before (ms)", "#after (ms)", "#change (%)", "interval (%)", "verdict"],
        [
            [
                Cell(comparison.name(change)),
                number(change.base_ms),
                number(change.new_ms),
                fixed(change.change_percent, sign=True),
                Cell(
                    "{} to {}".format(
                        *(fixed(end, sign=True).text for end in change.interval_percent)
                    )
                    if change.interval_percent
                    else DASH
                ),
                Cell(comparison.verdict(change)),
            ]
            for change in comparison.changes
        ],
    )
    yield from _metrics(comparison)


def _metrics(comparison: Comparison) -> Iterator[Table]:
    """Yield the changes of other metrics; statistics of the latency only if they have a limit."""
    statistics = {metric.key for metric in STATISTICS}
    rows = [
        [
            Cell(comparison.name(change)),
            Cell(each.metric.heading),
            *(_value(each.metric, value) for value in (each.base, each.new)),
            fixed(each.change_percent, sign=True),
            *([_value(each.metric, each.limit)] if limited else []),
        ]
        for limited in [any(e.limit is not None for c in comparison.changes for e in c.metrics)]
        for change in comparison.changes
        for each in change.metrics
        if each.metric.key not in statistics or each.limit is not None
    ]
    if rows:
        columns = ["result", "metric", "#before", "#after", "#change (%)", "#limit"]
        yield Table("metrics", "Other metrics", columns[: len(rows[0])], rows)


def _value(metric: Metric, value: float | None) -> Cell:
    return Cell(DASH) if value is None else Cell(metric.text(value), value)


def _chart(frame: pd.DataFrame, tolerance_percent: float) -> alt.LayerChart:
    """Return a chart of the changes with their intervals, a row per result."""
    floats = ["change_percent", "low_percent", "high_percent"]
    frame = compact(frame.astype(dict.fromkeys(floats, float)))
    base = alt.Chart(frame).encode(
        alt.Y("name:N", title=None, sort=None, axis=ABOVE),
        tooltip=[
            alt.Tooltip("name:N", title="result"),
            alt.Tooltip("change_percent:Q", title="change (%)", format="+.2f"),
            alt.Tooltip("low_percent:Q", title="from (%)", format="+.2f"),
            alt.Tooltip("high_percent:Q", title="to (%)", format="+.2f"),
            alt.Tooltip("verdict:N"),
        ],
    )
    x = alt.X("change_percent:Q", title="change (%)", axis=alt.Axis(tickCount=5))
    whiskers = base.mark_rule(style="whisker", strokeWidth=2.5).encode(
        alt.X("low_percent:Q", title="change (%)"), x2="high_percent:Q"
    )
    points = base.mark_point(size=70, opacity=1).encode(x)
    lines = [
        alt.Chart(pd.DataFrame({"at": [at]})).mark_rule(style=style).encode(x=alt.X("at:Q"))
        for at, style in ((0.0, "baseline"), (tolerance_percent, "target"))
    ]
    return layered(*lines, whiskers, points, height=LINE * len(frame))
