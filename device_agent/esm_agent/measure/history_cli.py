"""Command ``esm-agent history``, which shows the history of the reference models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esm_agent.one_line import fail, one_line_errors
from esm_protos.text import counted

if TYPE_CHECKING:
    from esm_agent.measure.history import Conditions, HistoryRecord

SCHEMA_VERSION = 1

History = Annotated[
    Path | None,
    typer.Option(
        "--history",
        help="File with the latencies of the agent's reference models.",
        show_default="~/.local/state/esm-agent/history.jsonl",
    ),
]


@one_line_errors
def show_history(
    history: History = None,
    forget: Annotated[bool, typer.Option("--forget", help="Delete the file.")] = False,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write JSON to this file; - is stdout.")
    ] = None,
) -> None:
    """Show the usual latencies of this device's reference models, or delete them.

    Latencies are medians over moments of five minutes, with the standard deviation between
    moments. A running agent needs no restart.

    Example: esm-agent history --json -
    """
    from esm_agent.measure.history import HistoryFile, history_file, open_regular

    if forget and output is not None:
        fail(2, "--forget deletes the file without output: leave --json out")
    path = history or history_file()
    usage = 2 if history else 1
    if not path.exists():
        fail(usage, f"{path} does not exist: there is no history yet")
    file = HistoryFile(path)
    if forget:
        try:
            file.forget()
        except OSError as error:
            fail(1, f"cannot delete {path}: {error.strerror}")
        typer.echo(f"{path} deleted", err=True)
        return
    try:
        open_regular(path).close()
    except OSError as error:
        fail(usage, f"cannot read {path}: {error.strerror}")
    records = file.records()
    if output is None:
        print("\n".join(_lines(path, records)))
        return
    text = json.dumps(_to_json(records), indent=2)
    if str(output) == "-":
        print(text)
        return
    try:
        output.write_text(text + "\n")
    except OSError as error:
        fail(1, f"cannot write {output}: {error.strerror}")
    typer.echo(f"written to {output}", err=True)


def _lines(path: Path, records: Sequence[HistoryRecord]) -> list[str]:
    lines = [str(path) if records else f"{path}: the history is empty"]
    for each in records:
        since = datetime.fromtimestamp(each.since_unix_s, UTC)
        moments = 0 if each.usual is None else each.usual.moments
        lines += [
            "",
            _title(each.conditions),
            f"  {counted(moments, 'moment')} since {since:%F %R} UTC",
        ]
        if each.usual is None:
            continue
        width = max(map(len, each.usual.references))
        for i, name in enumerate(each.usual.references):
            latency_ms, spread = each.usual.latency_ns[i] / 1e6, each.usual.spread[i, i]
            deviation = f"{spread:.1%}" if moments > 1 else "unknown"
            lines.append(f"  {name:<{width}}  {latency_ms:10.4f} ms  SD {deviation}")
    return lines


def _title(conditions: Conditions) -> str:
    """Return the conditions that have a value, on one line."""
    own = {str(name): str(value) for name, value in conditions.items()}
    words = [
        *(own.pop(name, "") for name in ("runtime", "provider", "cpu")),
        *(f"{name} {value}" if value else "" for name, value in own.items()),
    ]
    # The file may have been edited.
    text = ", ".join(word for word in words if word)
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _to_json(records: Sequence[HistoryRecord]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "remembered": [
            {
                "conditions": dict(each.conditions),
                "since_unix_s": each.since_unix_s,
                "usual": None if each.usual is None else each.usual.to_json(),
            }
            for each in records
        ],
    }
