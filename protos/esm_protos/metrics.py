"""Table of the metrics reported for a timed model.

All outputs use it: JSON, CSV, frames, printed tables, reports, comparisons,
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
    """Method that combines the values of several visits or blocks into one."""

    TRIMMED_MEAN = "trimmed_mean"
    """Mean without a fifth of the values at each end."""
    MEAN = "mean"
    MAX = "max"
    SUM = "sum"
    LAST = "last"
    NONE = "none"
    """No combination, because the value is derived from other values; the first one is kept."""


class Format(enum.StrEnum):
    """Format of a value in tables and reports."""

    NUMBER = "number"
    """Five digits or more: ``5.8845``; a whole number for the kind INT."""
    RATE = "rate"
    """Two digits after the point, or fewer: ``169.90``."""
    PERCENT = "percent"
    """One digit after the point: ``2.0``."""
    COUNT = "count"
    """A whole number: ``150``."""
    BYTES = "bytes"
    """In megabytes: ``41 MB``."""


class Better(enum.StrEnum):
    """Direction in which values are better."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = ""
    """The metric is not compared."""


class Shown(enum.StrEnum):
    """Tables that show a metric, besides JSON, CSV, frames and reports."""

    TABLE = "table"
    """Table of ``esm-host time``."""
    WIDE = "wide"
    """Table of ``esm-host time --wide``."""
    FILES = "files"
    """No table."""


@dataclass(frozen=True)
class Metric:
    """Metric of a model's timing.

    Attributes:
        key: Key such as ``"energy_mj"``: letters, digits and underscores.
        unit: Unit such as ``"ms"``; empty for a count.
        about: Description in docs and help.
        kind: Type of the values.
        aggregate: Method that combines values.
        format: Format in tables and reports.
        better: Direction in which values are better.
        heading: Heading in printed tables; by default the key.
        title: Title in reports; by default the heading in words.
        field: Name in JSON, CSV and frames; by default the key.
        default: Value for files that lack the metric; None for no value.
        since: Schema version from which on every timing has the metric; 0 for none.
        shown: Tables that show the metric.

    Raises:
        ValueError: a field has a value that it cannot have; the message names the metric.
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
        self._check_names()
        for name, kind in _CHOICES.items():
            object.__setattr__(self, name, self._choice(name, kind))
        if not isinstance(self.default, int | float | None):
            raise self._error("default", "a number or None")
        if not isinstance(self.since, int):
            raise self._error("since", "a whole number")
        heading = self.heading or self.key
        stem = heading[: -len(self.unit) - 1] if _names_unit(heading, self.unit) else heading
        words = stem.replace("_", " ")
        for name, value in (
            ("heading", heading),
            ("title", self.title or words),
            ("field", self.field or self.key),
        ):
            object.__setattr__(self, name, value)

    def _check_names(self) -> None:
        keys = [self.key] if self.field in ("", self.key) else [self.key, self.field]
        for key in keys:
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise ValueError(
                    f"{key!r} is not a metric's key: give up to 64 letters, digits and _, "
                    "a letter first"
                )
        for name in ("unit", "about", "heading", "title"):
            if not isinstance(getattr(self, name), str):
                raise self._error(name, "text")

    def _choice(self, name: str, kind: type[enum.StrEnum]) -> enum.StrEnum:
        """Return a field as a member of its enumeration."""
        try:
            return kind(getattr(self, name))
        except ValueError:
            raise self._error(name, " or ".join(repr(each.value) for each in kind)) from None

    def _error(self, name: str, wanted: str) -> ValueError:
        given = getattr(self, name)
        given = given.value if isinstance(given, enum.Enum) else given
        return ValueError(f"Metric '{self.key}' has {name}={given!r}: give {wanted}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build from a device's description of a metric, without fields unknown to this version.

        Raises:
            KeyError, TypeError, ValueError: the key is missing or invalid.
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
        """Return a value as text for tables, without the unit if the heading has it."""
        if value is None:
            return ""
        said = self.format is Format.RATE or _names_unit(self.heading, self.unit)
        return self._number(value) if said else self.text(value)

    def text(self, value: float) -> str:
        """Return a value as text with its unit."""
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
        """Return a value in the type of the metric; None for None."""
        return None if value is None else self.one([value])

    def one(self, values: Sequence[float]) -> float:
        """Combine the values of visits or blocks into one of the metric's type.

        Args:
            values: One value or more.
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
        """Return whether a value is worse than a limit; only for metrics with a direction."""
        return value < limit if self.better is Better.HIGHER else value > limit


_CHOICES: dict[str, type[enum.StrEnum]] = {
    "kind": Kind,
    "aggregate": Aggregate,
    "format": Format,
    "better": Better,
    "shown": Shown,
}


def _names_unit(heading: str, unit: str) -> bool:
    """Return whether a heading ends with a unit, as ``energy_mj`` does with ``mJ``."""
    return heading.lower().endswith(f"_{unit.lower()}")


def _ms(key: str, about: str, **more: Any) -> Metric:
    """Return a metric in milliseconds for which lower is better."""
    return Metric(key, "ms", about, **{"better": Better.LOWER, "shown": Shown.WIDE, **more})


def _bytes(key: str, about: str, **more: Any) -> Metric:
    return Metric(key, "bytes", about, Kind.INT, Aggregate.MAX, Format.BYTES, **more)


LATENCY = _ms(
    "latency_ms",
    "trimmed mean of the runs, corrected to the device's usual pace; uncorrected if raw or "
    "sequential, and without history",
    aggregate=Aggregate.TRIMMED_MEAN,
    title="trimmed mean",
    field="trimmed_mean_ms",
    since=2,
    shown=Shown.TABLE,
)
PEAK_MEMORY = _bytes(
    "peak_rss_bytes",
    "peak memory of a process with this model alone, including the runtime",
    better=Better.LOWER,
    heading="memory",
    since=2,
)
_SESSION = (
    _ms("first_run_ms", "first inference", heading="first_ms", title="first run", since=2),
    _ms("load_ms", "creation of the session", since=2),
    _ms("copy_in_ms", "inputs to a GPU's memory, median; not part of the latency", since=2),
    _ms("copy_out_ms", "outputs from a GPU's memory, median; not part of the latency", since=2),
)
_WEIGHTS = _bytes("weight_bytes", "initializers of the model", heading="weights", shown=Shown.FILES)
THREADS_USED = Metric(
    "threads_used",
    "",
    "processor seconds of the measuring process per second of the model's runs; threads that spin "
    "while they wait count",
    format=Format.RATE,
    title="threads used",
    shown=Shown.WIDE,
)
METRICS = (LATENCY, PEAK_MEMORY, *_SESSION, THREADS_USED, _WEIGHTS)
"""Measured metrics of a model. :data:`STATISTICS` has further statistics of the latency."""


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
        "half-width of the 95 % interval of the latency's logarithm, for this device at any time; "
        "nearly percent of the latency",
        title="±",
        since=2,
        **_PERCENT,
    ),
    _statistic(
        "raw_ms",
        "ms",
        "trimmed mean of the runs as measured; geometric mean over several blocks",
        title="as measured",
        since=3,
    ),
    _statistic(
        "block_ci95_percent",
        "%",
        "half-width of the interval within the block, from runs and sessions",
        title="± within the block",
        since=3,
        **_PERCENT,
    ),
    _statistic(
        "shift_percent",
        "%",
        "how much slower than usual the device was for this model; null without history",
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
        "`items_per_inference` divided by the latency",
        format=Format.RATE,
        better=Better.HIGHER,
        heading="per_s",
        title="per second",
        since=2,
        shown=Shown.TABLE,
    ),
)
"""Metrics derived from a model's runs."""

ENERGY = (
    Metric(
        "energy_mj",
        "mJ",
        "energy of an inference, without that of the idle device",
        better=Better.LOWER,
    ),
    Metric(
        "energy_gross_mj",
        "mJ",
        "energy of an inference, with that of the idle device",
        better=Better.LOWER,
        title="gross energy",
        shown=Shown.WIDE,
    ),
    Metric(
        "energy_ci95_percent",
        "%",
        "half-width of the 95 % interval of `energy_mj`",
        format=Format.PERCENT,
        title="± of the energy",
        shown=Shown.FILES,
    ),
    Metric(
        "inferences_per_j",
        "1/J",
        "inferences per joule, without the energy of the idle device",
        format=Format.RATE,
        better=Better.HIGHER,
        heading="per_j",
        title="inferences per joule",
    ),
    Metric(
        "power_w",
        "W",
        "mean power while inferences run back to back, with that of the idle device",
        format=Format.RATE,
        heading="watts",
        title="power",
    ),
)
"""Metrics of energy, which agents with a sensor report."""
INTERVALS: Mapping[str, str] = {ENERGY[0].key: ENERGY[2].key}
"""Metrics with the half-width of a 95 % interval, percent, by the metric that it is of."""

NUMBERS = (LATENCY, *STATISTICS, *_SESSION, THREADS_USED, PEAK_MEMORY, _WEIGHTS)
"""All metrics of this version, in the order of the outputs."""
KNOWN: Mapping[str, Metric] = {metric.key: metric for metric in NUMBERS}


def known_and_told(told: Iterable[Metric], keys: Iterable[str] = ()) -> tuple[Metric, ...]:
    """Return this version's metrics and further ones that devices report.

    A metric to which devices give different units has no unit.

    Args:
        told: Metrics that devices report.
        keys: Keys of values, possibly without a description.
    """
    found = dict(KNOWN)
    for metric in told:
        before = found.setdefault(metric.key, metric)
        if metric.key not in KNOWN and before.unit != metric.unit:
            found[metric.key] = replace(before, unit="")
    for key in keys:
        found.setdefault(key, Metric(key, "", ""))
    return tuple(found.values())


def markdown_table(metrics: Sequence[Metric] = NUMBERS) -> str:
    """Return a table of metrics for the documentation."""
    lines = ["| key | in tables | unit | better | what |", "| --- | --- | --- | --- | --- |"]
    for metric in metrics:
        option = " (`--wide`)" if metric.shown is Shown.WIDE else ""
        heading = "" if metric.shown is Shown.FILES else f"`{metric.heading}`{option}"
        cells = (f"`{metric.field}`", heading, metric.unit, metric.better.value, metric.about)
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown_table(), markdown_table(ENERGY), sep="\n", end="")
