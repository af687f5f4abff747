"""Tables of timings on stdout, and CSV."""

from __future__ import annotations

import csv
import io
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from esm_host.arguments import on_command_line
from esm_host.cli.table import Verdict, print_table
from esm_host.evaluation.difference import Ratio
from esm_host.timing import Result, Timing
from esm_host.timing.metrics import energy_columns, metrics_of, value_of
from esm_host.timing.result import DeviceTiming
from esm_protos.metrics import LATENCY, Metric, Shown, known_and_told
from esm_protos.terminal import width_of
from esm_protos.text import printable

_TOP = 10
_PAGE = 100
_CUT_SHORT = "cut short by an interrupt: results of the runs measured until then"
_LOPSIDED = 0.3
"""Half-width of a ratio's logarithm from which on both ends of its interval are shown, as they are
at unequal distances."""

Column = tuple[str, Callable[[Result], str]]


def print_tables(timing: Timing, wide: bool) -> None:
    """Print a table per device, then the comparison of devices."""
    ratios = {c.of: c.ratio for c in timing.comparisons if c.scope == "device"}
    fastest = {c.to for c in timing.comparisons if c.scope == "device"}
    several = len(timing.devices) > 1
    first = 0
    for device in timing.devices:
        if several:
            print(f"{device.name}:" if device.results else f"{device.name}: nothing measured")
        notes = [
            "fastest" if number in fastest else _ratio(ratios.get(number))
            for number in range(first, first + len(device.results))
        ]
        _print_table(device, notes, wide)
        if device.interrupted and device.results:
            print(_CUT_SHORT)
        as_measured = timing.as_measured(device)
        if any(r.estimate for r in device.results) and as_measured:
            some = len(as_measured) < len(device.usual)
            where = f" on {', '.join(as_measured)}" if some else ""
            print(f"  latency{where} as measured, not at the device's usual pace")
        elif wide and device.results:
            print("  latency_ms is at the device's usual pace, all other times are as measured")
        first += len(device.results)
        if several:
            print()
    _print_devices(timing)


def print_profiles(timing: Timing) -> None:
    """Print the runtime's profiles of operators and nodes."""
    for result in timing.results:
        profile = result.measurement.profile
        if profile is None:
            continue
        where = f" on {result.device}" if len(timing.devices) > 1 else ""
        print(f"\n{printable(result.name)}{where}: {profile.runs} profiled runs")
        print(f"  {printable(result.conditions)}")
        total_ns = sum(operator.ns for operator in profile.operators) or 1.0
        _print_rows(
            ("operator", "calls", "ms", "share"),
            [
                (
                    o.op_type,
                    str(o.calls),
                    LATENCY.cell(o.ns / 1e6),
                    f"{100 * o.ns / total_ns:.0f} %",
                )
                for o in profile.operators[:_TOP]
            ],
        )
        _print_rows(
            ("node", "operator", "ms", "share"),
            [
                (n.name, n.op_type, LATENCY.cell(n.ns / 1e6), f"{100 * n.ns / total_ns:.0f} %")
                for n in profile.nodes[:_TOP]
            ],
        )


def as_csv(timing: Timing) -> str:
    """Return the results as CSV; missing values are empty.

    Options, and the nodes by provider, are words of a shell, such as ``device_type=CPU``.
    """
    text = io.StringIO()
    data = timing.to_json()
    metrics = metrics_of(data)
    cut_short = {
        device.name: "true" if device.interrupted else "false" for device in timing.devices
    }
    session = _options(timing.spec.session.changes())
    rows = [
        {
            **_flat(row, metrics),
            **energy_columns(row, data["context"]["devices"][row["device"]]),
            "interrupted": cut_short[row["device"]],
            "provider_options": _options(row["provider_options"]),
            "session_options": session,
            "compiled": row["compiled"],
            "ran_on": _options(row["ran_on"]),
            "fallback": shlex.join(row["fallback"]),
        }
        for row in data["results"]
    ]
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue().removesuffix("\n")


def _flat(row: dict[str, Any], metrics: Sequence[Metric]) -> dict[str, Any]:
    low, high = row["ci95_ms"] or (None, None)
    shapes = " ".join(f"{fed['name']}:{'x'.join(map(str, fed['dims']))}" for fed in row["inputs"])
    failure = row["failure"] or {"kind": None}
    return {
        "model": row["model"],
        "device": row["device"],
        "batch": row["case"]["batch"],
        "dims": " ".join(f"{symbol}={size}" for symbol, size in row["case"]["dims"].items()),
        "threads": row["case"]["threads"],
        "inputs": shapes,
        "input_types": " ".join(f"{fed['name']}:{fed['type']}" for fed in row["inputs"]),
        "assumed": " ".join(_assumed(each) for each in row["assumed"]),
        "status": row["status"],
        "failure": failure["kind"],
        LATENCY.field: row[LATENCY.field],
        "ci95_low_ms": low,
        "ci95_high_ms": high,
        **{metric.field: value_of(row, metric) for metric in metrics},
        "provider": row["provider"],
        "verdict": row["verdict"],
        "model_sha256": row["model_sha256"],
    }


def _options(given: Mapping[str, object]) -> str:
    return shlex.join(f"{name}={value}" for name, value in given.items())


def _assumed(each: dict[str, Any]) -> str:
    """Return ``input:axis``, or the name alone for an input of unknown rank."""
    return each["input"] if each["axis"] is None else f"{each['input']}:{each['axis']}"


_CASES: tuple[Column, ...] = (
    ("batch", lambda r: str(r.entry.batch or "")),
    ("dims", lambda r: " ".join(f"{symbol}={size}" for symbol, size in r.entry.dims)),
    ("threads", lambda r: str(r.entry.model.case.threads or "")),
    ("provider", lambda r: r.entry.provider or ""),
)
_VERDICT: Column = (
    "verdict",
    lambda r: Verdict(r.judgement.verdict.value) if r.judgement else "",
)
_FALLBACK: Column = ("fallback", lambda r: str(len(r.measurement.fallback) or ""))


def _columns(told: Sequence[Metric], wide: bool) -> Iterator[Column]:
    """Yield the columns of a device's table.

    Args:
        told: Metrics that the device reports.
        wide: Whether to include the columns of ``--wide``.
    """
    yield from _CASES
    for metric in known_and_told(told):
        if metric is LATENCY:
            yield metric.heading, _latency
        elif metric.shown is Shown.TABLE or (wide and metric.shown is Shown.WIDE):
            yield metric.heading, partial(_cell, metric)
    if wide:
        yield _FALLBACK
    yield _VERDICT


def _print_table(device: DeviceTiming, notes: Sequence[str], wide: bool) -> None:
    results = device.results
    if not results:
        return
    measured = [r for r in results if r.failure is None]
    columns = list(_columns(device.info.metrics if device.info else (), wide))
    columns = [column for column in columns if any(column[1](r) for r in measured)]
    headings = [heading for heading, _ in columns] + (["against"] if any(notes) else [])
    cells = [
        [*(text(result) for _, text in columns), *([note] if any(notes) else [])]
        for result, note in zip(results, notes, strict=True)
        if result.failure is None
    ]
    taken = sum(max(map(len, column)) + 2 for column in zip(headings, *cells, strict=True))
    width = width_of(sys.stdout) or (None if wide else _PAGE)
    names = _names(results, None if width is None else width - taken)
    rows: list[Sequence[str]] = []
    told = iter(cells)
    for name, result in zip(names, results, strict=True):
        if result.failure is None:
            rows.append((name, *next(told)))
        else:
            case = result.name.removeprefix(result.entry.path).removeprefix(", ")
            outcome = "  ".join(filter(None, (case, result.failure.kind.value)))
            rows.append((name, Verdict(outcome, "failed")))
    under = {n: _under(r) for n, r in enumerate(results) if r.failure is None or r.fed}
    _print_rows(("model", *(headings or ["outcome"])), rows, under)


def _under(result: Result) -> tuple[str, ...]:
    """Return the lines under a result."""
    energy = result.energy and printable(on_command_line(result.energy))
    return tuple(filter(None, (result.conditions, result.unusual, energy)))


def _names(results: Sequence[Result], width: int | None) -> list[str]:
    """Return the models' paths, without their folders if they are too long."""
    paths = [printable(result.entry.path) for result in results]
    if width is None or max(map(len, paths)) <= width:
        return paths
    short = {path: PurePath(path).name for path in paths}
    return [short[path] for path in paths] if len(set(short.values())) == len(short) else paths


def _print_devices(timing: Timing) -> None:
    between = [c for c in timing.comparisons if c.scope == "devices"]
    rows = []
    for to in dict.fromkeys(c.to for c in between):
        fastest = timing.results[to]
        rows.append((fastest.name, fastest.device, "fastest"))
        rows += [("", c.device, _ratio(c.ratio)) for c in between if c.to == to]
    if rows:
        _print_rows(("model", "device", "against"), rows)


def _print_rows(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Mapping[int, tuple[str, ...]] | None = None,
) -> None:
    print_table(headings, rows, range(1, len(headings)), notes)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    if ratio.half_width is None:
        return f"{ratio.value:.2f}x"
    if not ratio.different:
        return "same within noise"
    if ratio.log_half_width > _LOPSIDED:
        low, high = ratio.interval or (0.0, 0.0)
        return f"{ratio.value:.2f}x ({low:.2f} to {high:.2f})"
    digits = 2 if ratio.half_width >= 0.01 or ratio.value >= 1.1 else 3
    return f"{ratio.value:.{digits}f}x ± {max(ratio.half_width, 10**-digits):.{digits}f}"


def _latency(result: Result) -> str:
    percent = result.numbers["ci95_percent"]
    return f"{_cell(LATENCY, result)} {'' if percent is None else f'±{percent:.1f}%'}"


def _cell(metric: Metric, result: Result) -> str:
    return metric.cell(result.value(metric))
