"""Report of a search for architectures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from esm_host.report import search_plots as plots
from esm_host.report.page import (
    DASH,
    Cell,
    Column,
    Fact,
    Facts,
    Figure,
    Page,
    Section,
    Step,
    Steps,
    Table,
    Text,
    bytes_text,
    fixed,
    number,
    plural,
    significant,
)
from esm_host.report.search_numbers import accuracy, deviations, progress, reduction
from esm_host.report.settings import setting_facts
from esm_host.search.latency import AT_MOST, LATENCY, bounded_by, bounds_of, quantity
from esm_host.search.problem import Limit, quantities_of
from esm_host.search.record import INTERVAL, VERDICT, SearchRecord

_MOST = 100  # rows of a table
_CLOSEST = 5


def search_page(record: SearchRecord) -> Page:
    """Return the page of a search: its front, and how well it was predicted.

    Raises:
        DatasetError: a campaign's folder is damaged.
    """
    front = record.front()
    devices = " and ".join(dict.fromkeys(run.settings.device for run in record.runs))
    return Page(
        eyebrow="Search for architectures",
        title=f"The best of {record.space.name} on {devices}",
        lead=_lead(record, front),
        status=_status(record, front),
        facts=list(_key_numbers(record, front)),
        sections=[
            *_next(record, front),
            _front(record, front),
            *_verification(record),
            Section("how", "Settings", "", _settings(record)),
        ],
    )


# The summary


def _status(record: SearchRecord, front: pd.DataFrame) -> tuple[str, str]:
    if record.result is None:
        return "open", "not finished"
    if front.empty:
        return "bad", "nothing is within the limits" if record.limits else "nothing was found"
    if not record.verifies:
        return "open", "predicted, nothing was measured"
    return ("good", "measured, and stable") if record.stable else ("open", "measured, not stable")


def _lead(record: SearchRecord, front: pd.DataFrame) -> str:
    limits = _limits(record)
    if front.empty:
        what = "measured" if record.verifies else "predicted"
        return f"No {what} architecture has {limits or 'all the quantities of the search'}."
    name = record.objectives[0].name
    ends = [_value(name, value) for value in (front[name].min(), front[name].max())]
    within = f" within the limits ({limits})" if limits else ""
    count = plural(len(front), "architecture")
    span = " to ".join(dict.fromkeys(ends))
    if not record.verifies:
        return (
            f"The predicted front{within} has {count}: {span}. Nothing was measured to verify it."
        )
    so_far = " so far" if record.result is None else ""
    return f"The measured front{within}{so_far} has {count}: {span}. {_stability(record)}"


def _stability(record: SearchRecord) -> str:
    if record.result is None:
        return "The search has not ended."
    if record.stable and "proxy" in record.result:
        return "Everything that the proxy proposed was measured."
    if record.stable:
        return "No other architecture is likely to be on it."
    return "The budget ended before every likely candidate was measured."


def _key_numbers(record: SearchRecord, front: pd.DataFrame) -> Iterator[Fact]:
    settings = record.settings
    if not record.verifies:
        yield Fact("Front", f"{len(front):,}", "predicted")
        yield Fact("Measured", "0", "by the search")
    else:
        own = int(front["key"].isin(record.chosen()["key"]).sum())
        yield Fact("Front", f"{len(front):,}", f"{own} of them chosen by the search")
        measured = record.measured()
        done = int((measured["round"] > 0).sum())
        yield Fact("Measured", f"{done:,}", f"of {settings.measure:,} at most")
        yield Fact("Stable", "yes" if record.stable else "no", _rounds(record))
        if proxy := (record.result or {}).get("proxy"):
            how = "unchanged" if proxy["decision"] == "reuse" else "after adaptation"
            correlation = f"rank correlation {proxy['correlation']:.2f}"
            yield Fact("Proxy", proxy["name"], f"{correlation}; predictor used {how}")
        off = accuracy(deviations(record).assign(all=0), "all")
        if len(off):
            row = off.iloc[0]
            yield Fact(
                "Median error",
                f"{row['median_percent']:.1f} %",
                f"90 % quantile {row['most_percent']:.1f} %",
            )
        steps = progress(record)
        gained = 100 - steps["hypervolume_percent"].iloc[0]
        if math.isfinite(gained):
            yield Fact("Hypervolume gained", f"{gained:.0f} %", "of the front's final hypervolume")
    yield Fact("Confidence", f"{100 * settings.probability:g} %", _confident_of(record))


def _confident_of(record: SearchRecord) -> str:
    """Return what holds with the confidence of the search."""
    bounded = (bounded_by(limit.name) for limit in _promised(record))
    limited = dict.fromkeys(plots.title(name.rpartition(".")[2], unit=False) for name in bounded)
    match list(limited):
        case []:
            return "of the upper bounds"
        case [one]:
            return f"that the {one} is within its limit"
    return f"that {' and '.join(limited)} are within their limits"


def _promised(record: SearchRecord) -> list[Limit]:
    """Return the limits that hold with the confidence of the search: those of upper bounds."""
    return [limit for limit in record.limits if bounded_by(limit.name) != limit.name]


def _rounds(record: SearchRecord) -> str:
    count = len(record.rounds)
    return f"after {plural(count, 'round')}"


def _next(record: SearchRecord, front: pd.DataFrame) -> Iterator[Section]:
    settings = record.settings
    steps = []
    if record.result is None:
        steps.append(
            Step(
                "The search is not finished. Continue it; nothing is measured twice:",
                _resumed(record),
            )
        )
    elif front.empty:
        steps.append(
            Step(
                "Loosen the limits, or measure more in a campaign whose predictions are too "
                "uncertain. The same search, to edit its limits:",
                _again(record),
            )
        )
    elif not record.verifies:
        steps.append(Step("Measure the predicted front:", f"{_resumed(record)} --measure 50"))
    elif not record.stable:
        steps.append(
            Step(
                "The front is not stable. Continue with more measurements:",
                f"{_resumed(record)} --measure {2 * settings.measure}",
            )
        )
    if record.result is not None and len(front):
        steps.append(Step("Read the front in a program, as JSON:", str(record.path / "front.json")))
        run, file = shlex.quote(str(record.runs[0].path)), shlex.quote(f"{record.path}/front.json")
        steps.append(
            Step(
                "Export networks of these architectures, for training and for other tools:",
                f"esm-host export {run} --architectures {file} --output chosen",
            )
        )
    if steps:
        yield Section("next", "What to do next", "", [Steps(steps)])


def _resumed(record: SearchRecord) -> str:
    runs = [str(run.path) for run in record.runs]
    return shlex.join(["esm-host", "search", *runs, "-o", str(record.path), "--resume"])


def _again(record: SearchRecord) -> str:
    """Return the command of the same search in a new folder."""
    settings, plain = record.settings, type(record.settings)(record.settings.runs)
    words = ["esm-host", "search", *(str(run.path) for run in record.runs)]
    words += [word for text in settings.objectives for word in ("--objective", text)]
    words += [word for ms in settings.max_latency_ms for word in ("--max-latency", repr(ms))]
    words += [word for text in settings.limits for word in ("--limit", text)]
    placed = [f"{name}={value}" for name, value in settings.contexts.items()]
    words += [word for text in placed for word in ("--context", text)]
    if settings.probability != plain.probability:
        words += ["--confidence", f"{100 * settings.probability:g}"]
    for name in ("measure", "method", "batch", "seed"):
        if (value := getattr(settings, name)) != getattr(plain, name):
            words += [f"--{name}", str(value)]
    words += ["-o", f"{record.path}-2"]
    return shlex.join(words)


# The front


def _front(record: SearchRecord, front: pd.DataFrame) -> Section:
    parts: list[Any] = [*_pictures(record, front)]
    if front.empty:
        return Section("front", "Front", _nothing(record), [*parts, *_closest(record)])
    parts.append(_front_table(record, front))
    if record.verifies:
        lead = (
            "Each round predicts a Pareto front and measures part of it. Measured latencies "
            "replace predictions from then on."
        )
        return Section("front", "Front", lead, parts)
    lead = "Nothing was measured for this search: the latencies are predictions."
    return Section("front", "Predicted front", lead, parts)


def _nothing(record: SearchRecord) -> str:
    if not record.verifies:
        return (
            "No architecture is predicted to be within the limits, and nothing was measured for "
            "this search. The folder does not list the architectures closest to the limits."
        )
    return (
        "No measured architecture is within the limits. The search's folder holds what each round "
        "predicted and chose. The campaigns' folders hold the measurements."
    )


def _pictures(record: SearchRecord, front: pd.DataFrame) -> Iterator[Figure]:
    measured, chosen = record.measured(), record.chosen()
    for index, axes in enumerate(_pairs(record)):
        points = plots.measured_points(measured, chosen, axes)
        if record.verifies:
            yield _verified_front(record, points, axes, index)
        elif len(front):
            yield _predicted_front(record, front, points, axes, index)


def _verified_front(
    record: SearchRecord, points: pd.DataFrame, axes: tuple[str, str], index: int
) -> Figure:
    stairs, predicted = len(record.objectives) == 2, record.predicted()
    dominated = points["what"].eq(plots.DOMINATED).sum()
    summary = (
        f"The front predicted by the first round{' (dotted line)' if stairs else ''} has "
        f"{plural(len(predicted), 'architecture')}. Thin lines lead from predicted to measured "
        f"latencies. The verified front{' (solid line)' if stairs else ''} has "
        f"{len(record.front())}. Of what the search measured, {dominated} are dominated or outside "
        "a limit."
    )
    return Figure(
        f"front-{index}",
        f"Predicted and verified front, {_against(axes)}",
        _summary(record, summary, axes, index),
        plots.verified_front(points, predicted, axes, record.limits, stairs),
        _columns(axes, Column("predicted_x", "predicted before", _digits(axes[0]))),
        half=index > 0,
    )


def _predicted_front(
    record: SearchRecord,
    front: pd.DataFrame,
    points: pd.DataFrame,
    axes: tuple[str, str],
    index: int,
) -> Figure:
    at_most = bounds_of(axes[0])
    predicted = pd.DataFrame(
        {
            "architecture": front["architecture"],
            "x": front[axes[0]],
            "x_at_most": front[at_most],
            "y": front[axes[1]],
        }
    )
    summary = (
        "Diamonds are predictions. Lines lead to their upper bounds at "
        f"{100 * record.settings.probability:g} % probability. Squares are the campaign's "
        "measurements."
    )
    return Figure(
        f"front-{index}",
        f"Predicted front, {_against(axes)}",
        _summary(record, summary, axes, index),
        plots.predicted_front(predicted, points.assign(what=plots.OWN), axes, record.limits),
        _columns(axes, Column("x_at_most", "at most", _digits(axes[0]))),
        half=index > 0,
    )


def _against(axes: tuple[str, str]) -> str:
    x, y = (plots.title(name, unit=False) for name in axes)
    return f"{y} against {x}"


def _columns(axes: tuple[str, str], between: Column) -> list[Column]:
    x, y = (
        Column(name, plots.title(axis), _digits(axis))
        for name, axis in zip("xy", axes, strict=True)
    )
    return [Column("architecture", "architecture"), Column("what", "is"), x, between, y]


def _pairs(record: SearchRecord) -> list[tuple[str, str]]:
    """Return every device's latency, energy and memory with every other objective."""
    latencies = [quantity(LATENCY, device) for device in record.devices]
    others = [o.name for o in record.objectives if o.name not in latencies]
    if not others:
        others, latencies = (latencies[1:] or ["flops"]), latencies[:1]
    measured = [name for name in others if bounds_of(name) != name]
    pairs = [(latency, other) for other in others for latency in latencies]
    return [*pairs, *((x, y) for y in others if y not in measured for x in measured)]


def _summary(record: SearchRecord, text: str, axes: tuple[str, str], index: int) -> str:
    """Return the text on a figure: that of the first one, and its limits where some are drawn."""
    drawn = [limit for limit in record.limits if bounded_by(limit.name) in axes]
    parts = [text] if index == 0 else []
    if drawn:
        share = 100 * record.settings.probability
        promised = any(bounded_by(limit.name) != limit.name for limit in drawn)
        kept = f", kept with {share:g} % probability" if promised else ""
        parts.append(f"The dashed line is the limit{kept}.")
    return " ".join(parts)


def _front_table(record: SearchRecord, front: pd.DataFrame) -> Table:
    chosen = record.chosen().set_index("key")
    measured = record.measured().set_index("key")
    rows = np.linspace(0, len(front) - 1, min(len(front), _MOST)).round().astype(int)
    shown = front.iloc[rows]
    keys = shown["key"]
    several = len(record.devices) > 1
    columns: dict[str, list[Cell]] = {
        "architecture": [Cell(text) for text in shown["architecture"]]
    }
    for device in record.devices:
        on = f" on {device}" if several else ""
        latency, at_most = quantity(LATENCY, device), quantity(AT_MOST, device)
        if record.verifies:
            columns[f"#measured{on} (ms)"] = [number(v) for v in shown[latency]]
            interval = keys.map(measured[quantity(INTERVAL, device)])
            columns[f"#±{on} (%)"] = [fixed(v) for v in interval]
            columns[f"#predicted{on} (ms)"] = [number(v) for v in keys.map(chosen[latency])]
            columns[f"#at most{on} (ms)"] = [number(v) for v in keys.map(chosen[at_most])]
            off = 100 * (shown[latency] / keys.map(chosen[latency]) - 1)
            columns[f"#error{on} (%)"] = [fixed(v, sign=True) for v in off]
        else:
            columns[f"#predicted{on} (ms)"] = [number(v) for v in shown[latency]]
            columns[f"#at most{on} (ms)"] = [number(v) for v in shown[at_most]]
    bounds = {limit.name for limit in _promised(record)}
    for name in _others(record, shown):
        for each in (name, *({bounds_of(name)} & bounds)):
            columns[f"#{_heading(each)}"] = [_counted(each, value) for value in shown[each]]
    if record.verifies:
        columns["#round"] = [fixed(v, 0) for v in keys.map(chosen["round"])]
        known = [measured[quantity(VERDICT, device)] for device in record.devices]
        columns["verdict"] = [_verdicts([each.get(key) for each in known]) for key in keys]
    cells = [list(row) for row in zip(*columns.values(), strict=True)]
    caption = _caption(record, front)
    return Table("front-table", caption, list(columns), cells, wide=["architecture"])


def _verdicts(verdicts: list[Any]) -> Cell:
    return Cell(", ".join(dict.fromkeys(v for v in verdicts if isinstance(v, str))) or DASH)


def _caption(record: SearchRecord, front: pd.DataFrame) -> str:
    first = f"{_MOST} of {len(front):,} at even steps; front.json has all. "
    first *= len(front) > _MOST
    architectures = "Architectures list the option of every block, units separated by |; n*option "
    architectures += "stands for n blocks in a row."
    if not record.verifies:
        return (
            f"{first}Predicted latency and its upper bound at "
            f"{100 * record.settings.probability:g} % probability; nothing was measured. "
            f"{architectures}"
        )
    return (
        f"{first}Predictions and upper bounds of latencies are those of the round before the "
        f"measurement. Rows without them were measured by the campaign. {architectures}"
    )


def _closest(record: SearchRecord) -> Iterator[Table]:
    measured = record.measured()
    near = measured[np.isfinite(measured["excess"])].nsmallest(_CLOSEST, "excess")
    if near.empty:
        return
    names = quantities_of(record.objectives, record.limits)
    yield Table(
        "closest",
        "Measured architectures closest to the limits",
        ["architecture", *(f"#{_heading(name)}" for name in names), "#over by (%)"],
        [
            [
                Cell(row["architecture"]),
                *(_counted(name, row[name]) for name in names),
                fixed(100 * row["excess"]),
            ]
            for row in near.to_dict("records")
        ],
        wide=["architecture"],
    )


# Verification


def _verification(record: SearchRecord) -> Iterator[Section]:
    if not record.verifies:
        return
    off, steps = deviations(record), progress(record)
    parts: list[Any] = [_searches(record, steps)]
    if math.isfinite(steps["hypervolume_percent"].iloc[-1]) and len(steps) > 1:
        parts.append(_hypervolume(record, steps))
    if off["off_percent"].notna().any():
        parts += [_off(record, off), *_accuracy(record, off)]
    if (lost := _lost(record)) is not None:
        parts.append(lost)
    yield Section(
        "verification",
        "Verification",
        "Predictions of each round against measurements.",
        parts,
    )


def _searches(record: SearchRecord, steps: pd.DataFrame) -> Table:
    measured = record.measured()
    volume = steps.set_index("round")["hypervolume_percent"]
    done = measured.groupby("round").size()
    kept = measured[measured["on_front"]].groupby("round").size()
    columns = ["#round", "#scored", "#predicted front", "#of these new", "#chosen", "#measured"]
    columns += ["#on the verified front", "#hypervolume after (%)"]
    rows = [
        [
            *(_count(value) for value in (row.round, row.scored, row.front, row.fresh, row.chosen)),
            _count(done.get(row.round, 0)),
            _count(kept.get(row.round, 0)),
            fixed(volume.get(row.round)),
        ]
        for row in record.searches().itertuples(index=False)
    ]
    if reduction(record) is not None:
        name = record.objectives[1].name
        columns.append(f"#{plots.title(name, unit=False)} lost (MRA)")
        for number, row in enumerate(rows, start=1):
            lost = reduction(record, number)
            row.append(Cell(DASH) if lost is None else _counted(name, lost.of_chosen))
    return Table(
        "searches",
        "Predicted front of each round, what was measured of it, and what is on the final front",
        columns,
        rows,
    )


def _accuracy(record: SearchRecord, off: pd.DataFrame) -> Iterator[Table]:
    columns = [
        "#probability (%)",
        "#within the bound (%)",
        "#median error (%)",
        "#90 % quantile (%)",
    ]
    asked = record.searches().set_index("round")["probability"]
    rows = [
        [_count(row.Index), fixed(100 * asked[row.Index], 0), *_errors(row)]
        for row in accuracy(off, "round").itertuples()
    ]
    yield Table("accuracy", _ACCURACY_CAPTION, ["#round", *columns], rows)
    if len(record.devices) > 1:
        rows = [[Cell(row.Index), *_errors(row)] for row in accuracy(off, "device").itertuples()]
        yield Table(
            "accuracy-by-device",
            "The same by device, over all rounds",
            ["device", *columns[1:]],
            rows,
        )


def _errors(row: Any) -> list[Cell]:
    return [fixed(row.within_percent, 0), fixed(row.median_percent), fixed(row.most_percent)]


_ACCURACY_CAPTION = (
    "Errors of the predictions. Probability: probability of the upper bounds, which is the "
    "confidence of the search in the first round, then 50 % and at last 10 %. Within the bound: "
    "share of the latencies that are at most their bound. Errors: absolute deviation of the "
    "measured from the predicted latency, in percent of the prediction"
)


def _count(value: int | float) -> Cell:
    return Cell(f"{value:,}", float(value))


def _hypervolume(record: SearchRecord, steps: pd.DataFrame) -> Figure:
    first = steps.iloc[0]
    summary = (
        f"Before the search the front had {first['hypervolume_percent']:.0f} % of its final "
        "hypervolume. The reference point is the worst value of each objective among the "
        "measurements within the limits."
    )
    columns = [
        Column("measured", "measured by the search", 0),
        Column("front", "on the front", 0),
        Column("hypervolume_percent", "hypervolume (%)", 1),
    ]
    return Figure(
        "hypervolume",
        "Hypervolume of the verified front",
        summary,
        plots.progress(steps),
        columns,
        half=True,
    )


def _off(record: SearchRecord, off: pd.DataFrame) -> Figure:
    measured = off.dropna(subset="off_percent")
    late = int((~measured["within"]).sum())
    summary = (
        f"{late} of {plural(len(measured), 'measurement')} {'is' if late == 1 else 'are'} slower "
        "than the upper bound (triangles). The dashed line marks perfect predictions."
    )
    columns = [
        Column("round", "round", 0),
        Column("architecture", "architecture"),
        *([Column("device", "device")] if len(record.devices) > 1 else []),
        Column("predicted_ms", "predicted (ms)", 4),
        Column("at_most_ms", "at most (ms)", 4),
        Column("measured_ms", "measured (ms)", 4),
        Column("off_percent", "slower by (%)", 1),
    ]
    return Figure(
        "off", "Error of the predictions, by round", summary, plots.off(off), columns, half=True
    )


def _lost(record: SearchRecord) -> Text | None:
    found = reduction(record)
    if found is None:
        return None
    name = record.objectives[1].name
    what = plots.title(name, unit=False)
    chosen, verified = (_value(name, value) for value in (found.of_chosen, found.of_verified))
    return Text(
        f"Mean reduction of {what} (MRA), against the best of at most the same latency: {chosen} "
        f"for the {found.chosen} chosen architectures within the limits, {verified} for the "
        f"{found.verified} of these that no other dominates. The best is that of the measurements, "
        "as the true front is unknown. The figures are lower bounds."
    )


# Settings


def _settings(record: SearchRecord) -> list[Any]:
    settings = record.settings.to_json()
    objectives = ", ".join(
        f"{'maximise' if o.maximise else 'minimise'} {plots.title(o.name, unit=False)}"
        for o in record.objectives
    )
    settings |= {
        "objectives": objectives,
        "limits": _limits(record) or "none",
        "method": settings["method"] or "chosen by the size of the space",
    }
    del settings["max_latency_ms"], settings["runs"]
    parts: list[Any] = [setting_facts(settings), Text("Campaigns:")]
    parts.append(
        Facts(
            [
                Fact(
                    str(run.path),
                    f"{run.space.name} on {run.settings.device}",
                    f"{len(run.measurements()):,} measured",
                )
                for run in record.runs
            ]
        )
    )
    return parts


# Formatting


def _limits(record: SearchRecord) -> str:
    return " and ".join(_limit(limit) for limit in record.limits)


def _limit(limit: Limit) -> str:
    name = bounded_by(limit.name)
    how = "at least" if limit.at_least else "at most"
    counted = plots.is_counted(name)
    value = _value(name, limit.value) if counted else f"{limit.value:g} {plots.unit(name)}".strip()
    return f"{plots.title(name, unit=False)} {how} {value}"


def _value(name: str, value: float) -> str:
    text = _counted(name, value).text
    return text if plots.is_counted(name) else f"{text} {plots.unit(name)}".strip()


def _counted(name: str, value: float | None) -> Cell:
    """Return a number, with a unit prefix if it is a count."""
    if value is None or not math.isfinite(value) or not plots.is_counted(name):
        return number(value)
    if plots.unit(name) == "bytes":
        return Cell(bytes_text(value), float(value))
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return Cell(f"{significant(value / size)} {unit}", float(value))
    return number(value)


def _heading(name: str) -> str:
    """Return the heading of a column whose cells are :func:`_counted`."""
    return plots.title(name, unit=not plots.is_counted(name))


def _digits(name: str) -> int:
    """Return the number of decimals in the table of a chart."""
    return 0 if plots.is_counted(name) else 4


def _others(record: SearchRecord, frame: pd.DataFrame) -> list[str]:
    """Return the quantities besides the latencies, those of the search first."""
    asked = quantities_of(record.objectives, record.limits)
    present = [name for name in frame if name not in ("key", "architecture", "depth")]
    names = dict.fromkeys([*(bounded_by(name) for name in asked), *present])
    return [
        name
        for name in names
        if name in frame and name.rpartition(".")[2] != LATENCY and bounded_by(name) == name
    ]
