"""Report of a timing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from esm_host.arguments import on_command_line
from esm_host.dataset.energy_cure import problem_text
from esm_host.report import timing_plots as plots
from esm_host.report.campaign import device_facts
from esm_host.report.page import (
    DASH,
    Cell,
    Column,
    Fact,
    Figure,
    Group,
    Page,
    Section,
    Table,
    Text,
    bytes_text,
    fixed,
    number,
    plural,
    significant,
)
from esm_host.report.settings import setting_facts
from esm_host.timing.frames import TimingFile
from esm_protos.metrics import Format, Metric, Shown

_NODES = 25


def timing_page(timing: TimingFile) -> Page:
    """Return the report of a timing: results, intervals, comparisons, runs, profiles, devices."""
    results = timing.results()
    if results.empty:
        return Page("Timing", "no models", "Nothing was timed.", ("bad", "no results"), [])
    done = results[results["status"] == "success"]
    sections = [
        Section(
            "results", "Results", _results_lead(timing, results), _results(timing, results, done)
        ),
        *_comparisons(timing),
        *_runs(timing, done),
        *_profiles(timing, done),
        Section("devices", "Devices", "", list(_devices(timing))),
        Section(
            "how",
            "How it was measured",
            "Numbers taken with different settings are not comparable.",
            [setting_facts(_settings(timing))],
        ),
    ]
    models, devices = results["model"].nunique(), results["device"].nunique()
    return Page(
        eyebrow="Timing",
        title=f"{plural(models, 'model')} on {_names(results)}",
        lead=_lead(results, done),
        status=_status(timing, results, done),
        facts=list(_key_numbers(timing, results, done, devices)),
        sections=sections,
    )


def _settings(timing: TimingFile) -> dict[str, Any]:
    """Return the settings by name; older files have fewer."""
    context = timing.context
    more = {name: context[name] for name in ("raw", "spread_s") if name in context}
    without_option = ("references", "runs_per_visit")
    spec = {name: v for name, v in context["spec"].items() if name not in without_option}
    providers = {r["provider"]: r.get("provider_options", {}) for r in timing.data["results"]}
    if len(providers) > 1:
        spec["provider"] = ", ".join(providers)
        spec["provider_options"] = {
            f"{name}:{key}": value for name, own in providers.items() for key, value in own.items()
        }
    return {**spec, **more}


# The summary


def _names(results: pd.DataFrame) -> str:
    names = [str(name) for name in results["device"].unique()]
    return names[0] if len(names) == 1 else plural(len(names), "device")


def _status(timing: TimingFile, results: pd.DataFrame, done: pd.DataFrame) -> tuple[str, str]:
    if timing.interrupted:
        return "bad", "cut short"
    failed = len(results) - len(done)
    unstable = int((done["verdict"] != "stable").sum())
    if failed:
        return "bad", f"{failed} of {plural(len(results), 'result')} failed"
    if unstable:
        return "bad", f"{unstable} of {plural(len(results), 'result')} not stable"
    return "good", "all stable"


def _lead(results: pd.DataFrame, done: pd.DataFrame) -> str:
    if done.empty:
        return "No model could be timed."
    fastest = done.loc[done["trimmed_mean_ms"].idxmin()]
    text = f"{fastest['label']} takes {significant(fastest['trimmed_mean_ms'])} ms"
    if len(done) == 1:
        return f"{text}."
    slowest = done.loc[done["trimmed_mean_ms"].idxmax()]
    return (
        f"Fastest of {len(done)}: {text}. Slowest: {slowest['label']}, "
        f"{significant(slowest['trimmed_mean_ms'])} ms."
    )


def _key_numbers(
    timing: TimingFile, results: pd.DataFrame, done: pd.DataFrame, devices: int
) -> Iterator[Fact]:
    if len(done):
        low, high = done["trimmed_mean_ms"].min(), done["trimmed_mean_ms"].max()
        yield Fact("Fastest", f"{significant(low)}\N{NO-BREAK SPACE}ms")
        if len(done) > 1:
            yield Fact(
                "Slowest",
                f"{significant(high)}\N{NO-BREAK SPACE}ms",
                f"{high / low:.1f} times the fastest",
            )
        width = done["ci95_percent"].median()
        if np.isfinite(width):
            yield Fact("Median interval", f"±{width:.1f} %", "95 % confidence")
    stable = int((done["verdict"] == "stable").sum())
    yield Fact("Stable", f"{stable} of {len(results)}")
    yield Fact("Counted runs", f"{results['runs'].sum():,.0f}")
    busy = sum(entry["busy_s"] or 0.0 for entry in timing.devices.values())
    yield Fact("Device busy", f"{busy:.1f} s", plural(devices, "device"))


# Results


def _results_lead(timing: TimingFile, results: pd.DataFrame) -> str:
    text = "Trimmed means of the counted runs with their 95 % intervals."
    if timing.context.get("raw"):
        text += " Latencies are as measured."
    elif results["shift_percent"].notna().any():
        text += " Latencies are at the device's usual pace."
    if timing.interrupted:
        text += " The timing was cut short by an interrupt."
    if failed := int((results["status"] != "success").sum()):
        text += f" {plural(failed, 'result')} failed."
    if assumed := int((results["assumed"] > 0).sum()):
        text += (
            f" {plural(assumed, 'result')} {'has' if assumed == 1 else 'have'} sizes taken as 1."
        )
    return text


def _results(timing: TimingFile, results: pd.DataFrame, done: pd.DataFrame) -> list[Any]:
    parts: list[Any] = []
    if len(done):
        fastest = done.loc[done["trimmed_mean_ms"].idxmin()]
        widest = done["ci95_percent"].max()
        summary = f"{plural(len(done), 'result')}; the fastest is {fastest['label']}. " + (
            f"No interval is wider than ±{widest:.1f} %." if np.isfinite(widest) else ""
        )
        columns = [
            Column("label", "result"),
            Column("device", "device"),
            Column("trimmed_mean_ms", "trimmed mean (ms)", 4),
            Column("low_ms", "from (ms)", 4),
            Column("high_ms", "to (ms)", 4),
            Column("verdict", "verdict"),
        ]
        chart = plots.latencies(results)
        parts.append(Figure("latencies", "Latency of every result", summary, chart, columns))
    parts += [*_results_tables(results, timing.metrics), *_energy_table(timing, results)]
    parts.append(_fed_table(results))
    trouble = [
        [Cell(name), Cell(entry["error"])]
        for name, entry in timing.devices.items()
        if entry["error"]
    ]
    # A disturbance of the device affects all models of a block.
    said: dict[tuple[str, str], list[str]] = {}
    for row in results.itertuples(index=False):
        for text in (*([row.failure] if row.failure else []), *row.warnings):
            said.setdefault((row.device, text), []).append(row.label)
    for (_, text), labels in said.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        trouble.append([Cell(labels[0] + more), Cell(text)])
    if trouble:
        parts.append(
            Table(
                "trouble",
                "Failures and warnings",
                ["result or device", "why"],
                trouble,
                wide=["why"],
            )
        )
    return parts


def _results_tables(results: pd.DataFrame, metrics: Sequence[Metric]) -> Iterator[Table]:
    """Yield a table of the main metrics with the verdict, and one of the others."""
    names = {
        "result": [Cell(name) for name in results["name"]],
        "device": [Cell(device) for device in results["device"]],
    }
    first: dict[str, list[Cell]] = {}
    others: dict[str, list[Cell]] = {}
    for metric in metrics:
        columns = first if metric.shown is Shown.TABLE or metric.key in _FIRST else others
        unit = "" if _names_unit(metric) else f" ({metric.unit})"
        columns[f"#{metric.title}{unit}"] = [_cell(metric, v) for v in results[metric.field]]
    first["verdict"] = [Cell(row.verdict or row.status) for row in results.itertuples(index=False)]
    if results["device"].nunique() == 1:
        del names["device"]
    for name, caption, columns in (
        ("all-results", "All results", first),
        ("more", "More of each result", others),
    ):
        told = {
            title: cells
            for title, cells in (names | columns).items()
            if not title.startswith("#") or any(cell.value is not None for cell in cells)
        }
        yield Table(name, caption, list(told), list(zip(*told.values(), strict=True)))


_FIRST = ("ci95_percent", "median_ms")


def _names_unit(metric: Metric) -> bool:
    """Return whether the values of a metric or its title contain the unit, or it has none."""
    return not metric.unit or metric.format is Format.BYTES or metric.unit.startswith("1/")


def _cell(metric: Metric, value: float) -> Cell:
    match metric.format:
        case Format.BYTES:
            return Cell(bytes_text(value), float(value) if np.isfinite(value) else None)
        case Format.PERCENT:
            return fixed(value)
        case Format.COUNT:
            return fixed(value, 0)
    return number(value)


def _energy_table(timing: TimingFile, results: pd.DataFrame) -> Iterator[Table]:
    """Yield a table of the sensors and the verdicts of energies, if any was asked for."""

    def why(row: Any) -> str:
        needs_s = (timing.data["results"][row.result].get("energy") or {}).get("needs_s", 0.0)
        return on_command_line(problem_text(row.energy_problem, needs_s))

    rows = [
        [
            Cell(row.label),
            Cell(row.energy_source or DASH),
            Cell(row.energy_covers or DASH),
            Cell("unresolved" if row.energy_problem else "stable"),
            Cell(why(row)),
        ]
        for row in results.itertuples(index=False)
        if row.energy_problem is not None
    ]
    if rows:
        columns = ["result", "sensor", "covers", "verdict", "why"]
        yield Table("energy", "Energy of each result", columns, rows, wide=["why"])


def _fed_table(results: pd.DataFrame) -> Table:
    rows = [
        [
            Cell(row.label),
            Cell(row.fed or ("nothing" if row.status == "success" else DASH)),
            Cell("as the provider chooses") if row.own_threads else fixed(row.threads, 0),
            Cell(row.provider),
        ]
        for row in results.itertuples(index=False)
    ]
    columns = ["result", "fed", "#threads", "provider"]
    return Table("fed", "Conditions of each result", columns, rows, wide=["fed"])


def _comparisons(timing: TimingFile) -> Iterator[Section]:
    comparisons = timing.comparisons()
    if comparisons.empty:
        return
    labels = timing.labels
    rows = [
        [
            Cell(labels[row.of]),
            Cell(labels[row.to]),
            Cell("on the same device" if row.scope == "device" else "of all devices"),
            fixed(row.ratio, 2),
            Cell(
                f"{row.low:.2f}\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}{row.high:.2f}"
                if np.isfinite(row.low)
                else DASH
            ),
            Cell("yes" if row.different else "not shown"),
            Cell("pairs" if row.paired else "separate runs"),
        ]
        for row in comparisons.itertuples(index=False)
    ]
    different = int(comparisons["different"].sum())
    yield Section(
        "comparisons",
        "Comparisons",
        f"Each against the fastest. {different} of {plural(len(rows), 'difference')} "
        f"{'is' if different == 1 else 'are'} statistically significant.",
        [
            Table(
                "ratios",
                "How many times as long, with the 95 % interval",
                [
                    *("result", "against", "fastest", "#times as long", "interval"),
                    *("different", "compared by"),
                ],
                rows,
            )
        ],
    )


# Runs


def _runs(timing: TimingFile, done: pd.DataFrame) -> Iterator[Section]:
    by_result = dict(tuple(timing.samples().groupby("result")))
    groups = [
        Group(
            f"result-{number_}",
            row["label"],
            _samples(f"result-{number_}", by_result[number_], row),
        )
        for number_, row in ((int(r["result"]), r) for _, r in done.iterrows())
        if number_ in by_result
    ]
    if groups:
        yield Section(
            "runs",
            "Runs",
            "Every counted run, as measured. The line is the latency of the results, the band "
            "around it its 95 % interval.",
            groups,
        )


def _samples(prefix: str, samples: pd.DataFrame, row: pd.Series) -> list[Figure]:
    latency = samples["latency_ms"].to_numpy(dtype=float)
    drawn = len(plots.thinned(samples))
    third = max(1, len(latency) // 3)
    drift = 100 * (np.median(latency[-third:]) / np.median(latency[:third]) - 1)
    thinned = (
        f" {drawn:,} are drawn: of each stretch the fastest, the median and the slowest."
        if drawn < len(latency)
        else ""
    )
    beyond = int((latency > plots.shown_up_to(latency)).sum())
    edge = f" {plural(beyond, 'far slower run')} at the upper edge (triangles)." if beyond else ""
    over_time = (
        f"{plural(len(latency), 'run')} from {significant(latency.min())} to "
        f"{significant(latency.max())} ms. The median of the last third is "
        f"{abs(drift):.1f} % {'above' if drift > 0 else 'below'} that of the first.{edge}{thinned}"
    )
    spread = (
        f"Half of the runs take {significant(np.percentile(latency, 25))} to "
        f"{significant(np.percentile(latency, 75))} ms; trimmed mean "
        f"{significant(row['trimmed_mean_ms'])} ms"
        + (f" ± {row['ci95_percent']:.1f} %." if np.isfinite(row["ci95_percent"]) else ".")
        + (f" {plural(beyond, 'far slower run')} beyond the right edge." if beyond else "")
    )
    return [
        Figure(
            f"{prefix}-time",
            "Over time",
            over_time,
            plots.samples_over_time(samples, row),
            [Column("start_s", "at (s)", 3), Column("latency_ms", "latency (ms)", 4)],
            half=True,
        ),
        Figure(
            f"{prefix}-distribution",
            "Distribution",
            spread,
            plots.distribution(samples, row),
            [
                Column("from_ms", "from (ms)", 4),
                Column("to_ms", "to (ms)", 4),
                Column("runs", "runs", 0),
            ],
            half=True,
        ),
    ]


# Profiles


def _profiles(timing: TimingFile, done: pd.DataFrame) -> Iterator[Section]:
    operators, nodes = timing.operators(), timing.nodes()
    groups = []
    for _, row in done.iterrows():
        result = int(row["result"])
        own = operators[operators["result"] == result]
        if own.empty:
            continue
        top = own.loc[own["ms"].idxmax()]
        summary = (
            f"{top['op_type']} takes {top['share_percent']:.0f} % of the time of an inference; "
            f"{plural(len(own), 'kind')} of operators in all."
        )
        columns = [
            Column("op_type", "operator"),
            Column("provider", "provider"),
            Column("calls", "calls", 0),
            Column("ms", "time (ms)", 4),
            Column("share_percent", "share (%)", 1),
        ]
        parts: list[Any] = [
            Figure(f"operators-{result}", "By operator", summary, plots.operators(own), columns)
        ]
        slowest = nodes[nodes["result"] == result].nlargest(_NODES, "ms")
        if len(slowest):
            total = own["ms"].sum()
            parts.append(
                Table(
                    f"nodes-{result}",
                    f"The {plural(len(slowest), 'slowest node')}",
                    ["node", "operator", "provider", "#time (ms)", "#share (%)"],
                    [
                        [
                            Cell(node.name),
                            Cell(node.op_type),
                            Cell(node.provider),
                            number(node.ms),
                            fixed(100 * node.ms / total),
                        ]
                        for node in slowest.itertuples(index=False)
                    ],
                )
            )
        groups.append(Group(f"profile-{result}", row["label"], parts))
    if groups:
        yield Section(
            "profile",
            "Where the time goes",
            "From the runtime's profiler, in separate runs that are not among the timed ones.",
            groups,
        )


# Devices


def _devices(timing: TimingFile) -> Iterator[Any]:
    for index, (name, entry) in enumerate(timing.devices.items()):
        parts: list[Any] = []
        if entry["error"]:
            what = "A later block failed" if entry.get("block_starts_s") else "Nothing was measured"
            parts.append(Text(f"{what} on it: {entry['error']}"))
        if entry["info"]:
            parts.append(device_facts(entry["info"]))
        yield Group(f"device-{index}", name, parts)
    yield from _paces(timing)
    states = timing.states()
    for column, title in (
        ("clock_mhz", "Clock of the fastest core (MHz)"),
        ("temperature_c", "Temperature (°C)"),
        ("gpu_clock_mhz", "Clock of the GPU (MHz)"),
        ("gpu_temperature_c", "Temperature of the GPU (°C)"),
        ("gpu_power_w", "Power of the GPU (W)"),
    ):
        told = states.dropna(subset=column)
        if len(told) < 2:
            continue
        yield Figure(
            f"states-{column.replace('_', '-')}",
            title,
            f"Before, during and after the runs: {_ranges(told, column)}.",
            plots.telemetry(states, column, title),
            [
                Column("device", "device"),
                Column("at_s", "at (s)", 1),
                Column("value", title, 1),
            ],
            half=True,
        )


def _paces(timing: TimingFile) -> Iterator[Figure]:
    """Yield a figure per device that timed reference models."""
    paces = timing.paces()
    for index, (device, own) in enumerate(paces.groupby("device", sort=False)):
        middle = own.groupby("reference", sort=False)["slower_percent"].median()
        if own["usual"].all():
            told = ", ".join(
                f"{name} {abs(value):.1f} % {'slower' if value > 0 else 'faster'}"
                for name, value in middle.items()
            )
            summary = f"Medians, compared with the usual pace: {told}."
        else:
            summary = (
                "The device has no history yet: zero is the median of each model in this timing."
            )
        several = paces["device"].nunique() > 1
        yield Figure(
            f"paces-{index}",
            "Reference models over time" + (f", {device}" if several else ""),
            summary,
            plots.paces(own),
            [
                Column("reference", "reference model"),
                Column("at_s", "at (s)", 2),
                Column("slower_percent", "slower than usual (%)", 1),
            ],
            half=True,
        )


def _ranges(states: pd.DataFrame, column: str) -> str:
    """Return the lowest and the highest reading of each device, in words."""
    said = []
    for device, values in states.astype({column: float}).groupby("device")[column]:
        low, high = values.min(), values.max()
        ends = f"{low:,.0f} throughout" if low == high else f"{low:,.0f} to {high:,.0f}"
        said.append(f"{device} {ends}")
    return "; ".join(said)
