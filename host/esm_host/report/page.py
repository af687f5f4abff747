"""HTML page in a single file: text, tables, charts and the scripts that draw them.

The page loads no file and uses no network. A content security policy allows its two scripts, by
their hashes, and no request. Names and messages from outside are text: the template escapes them,
and the data hold them as JSON strings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from esm_host.errors import UsageError
from esm_host.report.theme import DARK, LIGHT, Theme, config
from esm_protos.text import counted

DASH = "\N{EN DASH}"

VEGA_LITE = "6.4"
"""Version whose schema Altair writes."""


@dataclass(frozen=True)
class Cell:
    """Text of a table cell, and the value it is sorted by if that is not the text."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Fact:
    """Name and value; ``note`` is in small print."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """List of names and values."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[Fact]


@dataclass(frozen=True)
class Table:
    """Table that can be sorted by every column.

    Attributes:
        id: Identifier within the page.
        caption: Caption above the table.
        columns: Titles; a leading ``#`` marks a column of numbers, which is aligned right.
        rows: Cells; the first one of each row names the row.
        wide: Columns of long text that may wrap.
    """

    kind: ClassVar[str] = "table"
    id: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    wide: Sequence[str] = ()


@dataclass(frozen=True)
class Column:
    """Column of a chart's data; ``digits`` is the number of decimals, None for text."""

    field: str
    title: str
    digits: int | None = None


@dataclass(frozen=True)
class Figure:
    """Chart with its title, a text on what it shows, and its data as a table.

    Attributes:
        id: Identifier within the page.
        title: Title above the chart.
        summary: Text on what the chart shows.
        chart: Altair chart.
        columns: Columns of the table, which are among the chart's data.
        half: Whether the figure takes half the width.
    """

    kind: ClassVar[str] = "figure"
    id: str
    title: str
    summary: str
    chart: Any
    columns: Sequence[Column]
    half: bool = False


@dataclass(frozen=True)
class Text:
    """Paragraph of text."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Step:
    """Instruction; ``command`` is what to type."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Steps:
    """Numbered list of instructions."""

    kind: ClassVar[str] = "steps"
    steps: Sequence[Step]


@dataclass(frozen=True)
class Group:
    """Parts under a heading within a section."""

    kind: ClassVar[str] = "group"
    id: str
    title: str
    parts: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """Section of a page, listed in its navigation."""

    id: str
    title: str
    lead: str
    parts: Sequence[Any]


@dataclass(frozen=True)
class Page:
    """Report.

    Attributes:
        eyebrow: Kind of the report, above the title.
        title: Title of the report.
        lead: First paragraph.
        status: Kind and text of the status, ``("good" | "bad" | "open", text)``.
        facts: Key numbers.
        sections: Sections in order.
    """

    eyebrow: str
    title: str
    lead: str
    status: tuple[str, str]
    facts: Sequence[Fact]
    sections: Sequence[Section] = field(default=())


SOURCE = "esm-source"
"""Name of the metadata that identifies the source of a page."""


def check_source(path: Path) -> None:
    """Check that a path to report on exists.

    Raises:
        UsageError: it does not.
    """
    if not path.exists():
        raise UsageError(
            f"there is no {path}: give the folder of a campaign (esm-host profile --run), of a "
            "search (esm-host search) or of a study (esm-host study --results), or a file of "
            "esm-host time --json or compare --json"
        )


def mark_of(source: Path) -> str:
    """Return the mark of a source, a hash that hides its path."""
    return hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]


def marked(page: Path) -> str | None:
    """Return the mark of an existing page; None if it has none."""
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            head = file.read(4096)
    except OSError:
        return None
    found = re.search(rf'<meta name="{SOURCE}" content="(\w+)">', head)
    return found[1] if found else None


def render(page: Page, version: str, source: Path | None = None) -> str:
    """Return the page as HTML.

    Args:
        page: Page to render.
        version: Version of the program.
        source: File or folder of the report; None if there is none.
    """
    import jinja2

    figures = [f for section in page.sections for f in _figures(section.parts)]
    data = {
        "themes": {"light": _looks(LIGHT), "dark": _looks(DARK)},
        "figures": {figure.id: _figure_data(figure) for figure in figures},
    }
    text = _inside_script(data)
    scripts = {"library": _library(), "script": _resource("report.js")}
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_resource),
    )
    return environment.get_template("report.html").render(
        page=page,
        style=_resource("report.css"),
        colours={"light": LIGHT, "dark": DARK},
        data=text,
        hashes=" ".join(f"'sha256-{_hash(script)}'" for script in scripts.values()),
        made_at=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        version=version,
        mark=None if source is None else mark_of(source),
        **scripts,
    )


def chart_page(spec: Mapping[str, Any]) -> str:
    """Return a single chart as HTML that needs no network."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Chart</title>\n'
        f'<div id="chart"></div>\n<script>{_library()}</script>\n'
        f"<script>vegaEmbed('#chart', {_inside_script(spec)}, "
        "{renderer: 'svg', actions: false});</script>\n</html>\n"
    )


def number(value: float | None, digits: int = 4, unit: str = "") -> Cell:
    """Return a number with significant digits and its unit; a dash for no value."""
    if value is None or not math.isfinite(value):
        return Cell(DASH, None)
    return Cell(f"{significant(value, digits)}{unit and ' '}{unit}", float(value))


def fixed(value: float | None, digits: int = 1, sign: bool = False) -> Cell:
    """Return a number with fixed decimals; a dash for no value."""
    if value is None or not math.isfinite(value):
        return Cell(DASH, None)
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return Cell(text.replace("-", "\N{MINUS SIGN}"), float(value))


def significant(value: float, digits: int = 4) -> str:
    """Return a number with significant digits, without an exponent."""
    if not value or not math.isfinite(value):
        return f"{value:g}"
    after = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{after}f}"


def bytes_text(value: float | None) -> str:
    """Return a size in bytes, KB, MB or GB."""
    if value is None or not math.isfinite(value):
        return DASH
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= size:
            return f"{significant(value / size, 3)} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return counted(count, noun, ",")


def _figures(parts: Sequence[Any]) -> list[Figure]:
    found = []
    for part in parts:
        if isinstance(part, Figure):
            found.append(part)
        elif isinstance(part, Group):
            found += _figures(part.parts)
    return found


def _figure_data(figure: Figure) -> dict[str, Any]:
    """Return the chart without theme and width, which the page sets, and its table."""
    spec = figure.chart.to_dict()
    spec.pop("config", None)
    spec["width"] = "container"
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec["description"] = f"Chart: {figure.title}"  # the text above it says what it shows
    names = [column.field for column in figure.columns]
    rows = next(
        (
            name
            for name, values in spec["datasets"].items()
            if values and all(field in values[0] for field in names)
        ),
        None,
    )
    return {
        "spec": spec,
        "caption": figure.title,
        "rows": rows,
        "columns": [[c.field, c.title, c.digits] for c in figure.columns],
    }


def _looks(theme: Theme) -> dict[str, Any]:
    """Return the configuration of a theme, with legends for narrow pages.

    Legend entries stand below each other and are as long as the chart is wide. Vega has an option
    for that, which Vega-Lite's schema lacks.
    """
    looks = config(theme)
    below = {"direction": "vertical", "anchor": "start", "margin": 6}
    room = {"expr": "max(120, width - 24)"}
    legend = {**looks["legend"], "labelLimit": room, "layout": {"top": below}}
    return {**looks, "legend": legend}


def _inside_script(data: Any) -> str:
    """Return data as JSON that is safe within a script element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


@cache
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    return bundle


def _resource(name: str) -> str:
    return resources.files("esm_host.report").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
