"""Table of the metrics that a timing yields.

Every output takes its metrics from here: JSON, CSV, frames, printed tables, reports, comparisons,
and the table in docs/timing-json.md, which ``python -m esm_protos.metrics`` prints.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from esm_protos.statistics import trimmed_mean

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TRIM = 0.2


class Kind(enum.StrEnum):
    """Type of a value."""

    FLOAT = "float"
    INT = "int"


class Aggregate(enum.StrEnum):
    """How the values of several visits, or of several blocks, become one."""

    TRIMMED_MEAN = "trimmed_mean"
    """Mean without the fifth of the values at either end."""
    MEAN = "mean"
    MAX = "max"
    SUM = "sum"
    LAST = "last"
    NONE = "none"
    """They do not: the value is derived from others. The first one counts."""


class Format(enum.StrEnum):
    """How people read a value."""

    NUMBER = "number"
    """Five digits or more: ``5.8845``; a whole number where the kind is INT."""
    RATE = "rate"
    """Two digits after the point, or fewer: ``169.90``."""
    PERCENT = "percent"
    """One digit after the point: ``2.0``."""
    COUNT = "count"
    """A whole number: ``150``."""
    BYTES = "bytes"
    """In megabytes: ``41 MB``."""


class Better(enum.StrEnum):
    """Which of two values is better."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = ""
    """The metric is not compared."""


class Shown(enum.StrEnum):
    """Where a metric is shown besides JSON, CSV, frames and reports."""

    TABLE = "table"
    """In the table that ``esm-host time`` prints."""
    WIDE = "wide"
    """In that of ``esm-host time --wide``."""
    FILES = "files"
    """Nowhere else."""


@dataclass(frozen=True)
class Metric:
    """One number of a model's timing.

    Attributes:
        key: its name, such as ``"energy_mj"``: letters, digits and underscores.
        unit: such as ``"ms"``; empty for a count.
        about: what it is, as docs and help say it.
        heading: in printed tables; the key unless given.
        title: in reports; the heading in words unless given.
        field: its name in JSON, CSV and frames; the key unless given.
        default: of files that lack it; None is no value.
        since: schema version from which on every timing has it; 0 for none.

    Raises:
        ValueError: the key has other characters, or more than 64.
    """

    key: str
    unit: str
    about: str
    kind: Kind = Kind.FLOAT
    aggregate: Aggregate = Aggregate.MEAN
    format: Format = Format.NUMBER
    better: Better = Better.NEITHER
    heading: str = ""
    title: str = ""
    field: str = ""
    default: float | None = None
    since: int = 0
    shown: Shown = Shown.TABLE

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(
                f"{self.key!r} names no metric: give up to 64 letters, digits and _, a letter first"
            )
        heading = self.heading or self.key
        stem = heading[: -len(self.unit) - 1] if _names_unit(heading, self.unit) else heading
        words = stem.replace("_", " ")
        for name, value in (
            ("heading", heading),
            ("title", self.title or words),
            ("field", self.field or self.key),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return a metric that a device told of; what this version does not know is left out.

        Raises:
            KeyError, TypeError, ValueError: the key is missing, or is none.
        """
        told: dict[str, Any] = {
            name: str(data[name])
            for name in ("unit", "about", "heading", "title")
            if data.get(name) is not None
        }
        for name, kind in _CHOICES.items():
            if data.get(name) in list(kind):
                told[name] = kind(data[name])
        return cls(str(data["key"]), told.pop("unit", ""), told.pop("about", ""), **told)

    def cell(self, value: float | None) -> str:
        """Return a value as tables show it, where the heading may name the unit."""
        if value is None:
            return ""
        said = self.format is Format.RATE or _names_unit(self.heading, self.unit)
        return self._number(value) if said else self.text(value)

    def text(self, value: float) -> str:
        """Return a value with its unit, as people read it."""
        number = self._number(value)
        return number if self.format is Format.BYTES else f"{number} {self.unit}".rstrip()

    def _number(self, value: float) -> str:
        match self.format:
            case Format.RATE:
                return f"{value:.{2 if value < 100 else 1 if value < 1000 else 0}f}"
            case Format.PERCENT:
                return f"{value:.1f}"
            case Format.COUNT:
                return f"{value:.0f}"
            case Format.BYTES:
                return f"{value / 1e6:.0f} MB"
        if self.kind is Kind.INT:
            return f"{value:.0f}"
        size = abs(value)
        return f"{value:.{4 if size < 10 else 3 if size < 100 else 2}f}"

    def typed(self, value: float | None) -> float | None:
        """Return a value in the type of the metric; None where there is none."""
        return None if value is None else self.one([value])

    def one(self, values: Sequence[float]) -> float:
        """Return one value, in the type of the metric, from those of visits or blocks.

        Args:
            values: one or more.
        """
        value = self._combined(values)
        return round(value) if self.kind is Kind.INT else value

    def _combined(self, values: Sequence[float]) -> float:
        match self.aggregate:
            case Aggregate.TRIMMED_MEAN:
                return trimmed_mean(np.array(values, dtype=np.float64), _TRIM)
            case Aggregate.MEAN:
                return math.fsum(values) / len(values)
            case Aggregate.MAX:
                return max(values)
            case Aggregate.SUM:
                return math.fsum(values)
            case Aggregate.LAST:
                return values[-1]
        return values[0]

    def worse(self, value: float, limit: float) -> bool:
        """Return whether a value is beyond a limit, on the worse side."""
        return value < limit if self.better is Better.HIGHER else value > limit


_CHOICES: dict[str, type[enum.StrEnum]] = {
    "kind": Kind,
    "aggregate": Aggregate,
    "format": Format,
    "better": Better,
}


def _names_unit(heading: str, unit: str) -> bool:
    """Return whether a heading ends with a unit, as ``energy_mj`` does with ``mJ``."""
    return heading.lower().endswith(f"_{unit.lower()}")


def _ms(key: str, about: str, **more: Any) -> Metric:
    """Return a metric in milliseconds, of which lower is better."""
    return Metric(key, "ms", about, **{"better": Better.LOWER, "shown": Shown.WIDE, **more})


def _bytes(key: str, about: str, **more: Any) -> Metric:
    return Metric(key, "bytes", about, Kind.INT, Aggregate.MAX, Format.BYTES, **more)


LATENCY = _ms(
    "latency_ms",
    "trimmed mean of the runs at the device's usual pace; as measured with `--raw`, with "
    "`--protocol sequential`, and where nothing is remembered",
    aggregate=Aggregate.TRIMMED_MEAN,
    title="trimmed mean",
    field="trimmed_mean_ms",
    since=2,
    shown=Shown.TABLE,
)
PEAK_MEMORY = _bytes(
    "peak_rss_bytes",
    "most that a process with this model alone had in memory, the runtime included",
    better=Better.LOWER,
    heading="memory",
    since=2,
)
_SESSION = (
    _ms("first_run_ms", "the very first inference", heading="first_ms", title="first run", since=2),
    _ms("load_ms", "creation of the session", since=2),
    _ms("copy_in_ms", "inputs to a GPU's memory, median; not part of the latency", since=2),
    _ms("copy_out_ms", "outputs from a GPU's memory, likewise", since=2),
)
_WEIGHTS = _bytes("weight_bytes", "initializers of the model", heading="weights", shown=Shown.FILES)
METRICS = (LATENCY, PEAK_MEMORY, *_SESSION, _WEIGHTS)
"""What is measured of a model. Latency has statistics of its own, in :data:`STATISTICS`."""


def _statistic(key: str, unit: str, about: str, **more: Any) -> Metric:
    return Metric(key, unit, about, **{"aggregate": Aggregate.NONE, "shown": Shown.WIDE, **more})


def _runs(key: str, about: str, **more: Any) -> Metric:
    """Return a statistic of all counted runs as measured."""
    return _statistic(key, "ms", about, **{"better": Better.LOWER, "since": 2, **more})


_PERCENT: dict[str, Any] = {"format": Format.PERCENT, "shown": Shown.FILES}
STATISTICS = (
    _statistic(
        "ci95_percent",
        "%",
        "half the width of the 95 % interval of the latency's logarithm, for this device at any "
        "time; nearly percent of the latency",
        title="±",
        since=2,
        **_PERCENT,
    ),
    _statistic(
        "raw_ms",
        "ms",
        "trimmed mean of the runs as measured; of several blocks the geometric mean of theirs",
        title="as measured",
        since=3,
    ),
    _statistic(
        "block_ci95_percent",
        "%",
        "half the width of the interval within the block: runs and sessions",
        title="± within the block",
        since=3,
        **_PERCENT,
    ),
    _statistic(
        "shift_percent",
        "%",
        "how much slower than usual the device was for this model; null where it remembers nothing",
        title="slower than usual",
        since=3,
        **_PERCENT,
    ),
    _runs("median_ms", "median of all counted runs"),
    _runs("min_ms", "fastest run"),
    _runs("max_ms", "slowest run"),
    _runs("p90_ms", "90 of 100 runs were faster"),
    _runs("p95_ms", "95 of 100 runs were faster", shown=Shown.TABLE),
    _runs("p99_ms", "99 of 100 runs were faster"),
    _statistic("runs", "", "counted runs", kind=Kind.INT, format=Format.COUNT, since=2),
    _statistic(
        "throughput_per_s",
        "1/s",
        "`items_per_inference` over the latency",
        format=Format.RATE,
        better=Better.HIGHER,
        heading="per_s",
        title="per second",
        since=2,
        shown=Shown.TABLE,
    ),
)
"""What is derived from a model's runs."""

NUMBERS = (LATENCY, *STATISTICS, *_SESSION, PEAK_MEMORY, _WEIGHTS)
"""All metrics of this version, in the order in which outputs have them."""
KNOWN: Mapping[str, Metric] = {metric.key: metric for metric in NUMBERS}


def known_and_told(told: Iterable[Metric], keys: Iterable[str] = ()) -> tuple[Metric, ...]:
    """Return this version's metrics and others that devices told of.

    Devices that give one metric different units leave it without a unit.

    Args:
        told: by devices.
        keys: of values, which nobody may have described.
    """
    found = dict(KNOWN)
    for metric in told:
        before = found.setdefault(metric.key, metric)
        if metric.key not in KNOWN and before.unit != metric.unit:
            found[metric.key] = replace(before, unit="")
    for key in keys:
        found.setdefault(key, Metric(key, "", ""))
    return tuple(found.values())


def markdown_table() -> str:
    """Return the table of all metrics for the documentation."""
    lines = ["| key | in tables | unit | better | what |", "| --- | --- | --- | --- | --- |"]
    for metric in NUMBERS:
        option = " (`--wide`)" if metric.shown is Shown.WIDE else ""
        heading = "" if metric.shown is Shown.FILES else f"`{metric.heading}`{option}"
        cells = (f"`{metric.field}`", heading, metric.unit, metric.better.value, metric.about)
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown_table(), end="")
