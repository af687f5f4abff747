"""Changes and limits of metrics other than latency; an energy has an interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.timing.metrics import Json, metrics_of, value_of
from esm_protos.metrics import INTERVALS, KNOWN, LATENCY, Better, Metric
from esm_protos.nearest import unknown
from esm_protos.statistics import t_quantile


@dataclass(frozen=True)
class MetricChange:
    """Change of a metric of a model.

    Attributes:
        metric: The metric.
        base: Mean over the base timings; None if no timing has a value.
        new: Mean over the new timings; None if no timing has a value.
        limit: Limit on the new value; None if none is given.
        interval_percent: Confidence interval of the change, percent; None for a metric without
            intervals, and where a value has none.
        regressed: Whether the change is surely worse than tolerated.
    """

    metric: Metric
    base: float | None
    new: float | None
    limit: float | None = None
    interval_percent: tuple[float, float] | None = None
    regressed: bool = False

    @property
    def change_percent(self) -> float | None:
        """Relative change, percent; None if a value is unknown or the base is 0."""
        if self.base is None or self.new is None or self.base == 0:
            return None
        return 100 * (self.new / self.base - 1)

    @property
    def over_limit(self) -> bool:
        """Whether the new value is worse than its limit."""
        if self.limit is None or self.new is None:
            return False
        return self.metric.worse(self.new, self.limit)

    @property
    def text(self) -> str:
        """Both values as text: ``104 MB to 131 MB (+26.0 %)``."""
        ends = ("none" if v is None else self.metric.text(v) for v in (self.base, self.new))
        percent = self.change_percent
        if percent is None:
            return " to ".join(ends)
        within = ""
        if self.interval_percent is not None:
            within = ", {:+.1f} to {:+.1f} %".format(*self.interval_percent)
        return " to ".join(ends) + f" ({percent:+.1f} %{within})"

    @property
    def over_text(self) -> str:
        """Message for a value that is worse than its limit."""
        assert self.new is not None
        assert self.limit is not None
        side = "below" if self.metric.better is Better.HIGHER else "over"
        value, limit = self.metric.text(self.new), self.metric.text(self.limit)
        return f"{self.metric.heading} {value} {side} its limit of {limit}"

    @property
    def regressed_text(self) -> str:
        """Message for a change that is surely worse."""
        return f"{self.metric.heading} {self.text}"

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": self.metric.unit,
            "base": self.base,
            "new": self.new,
            "change_percent": self.change_percent,
            "interval_percent": self.interval_percent and list(self.interval_percent),
            "regressed": self.regressed,
            "limit": self.limit,
            "over_limit": self.over_limit,
        }

    @classmethod
    def from_json(cls, key: str, data: Json) -> Self:
        """Build from the JSON of :meth:`to_json`."""
        metric = KNOWN.get(key) or Metric(key, data["unit"], "", better=Better.LOWER)
        # Files of older versions have no intervals of metrics.
        low_high = data.get("interval_percent")
        interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
        regressed = bool(data.get("regressed"))
        return cls(metric, data["base"], data["new"], data["limit"], interval, regressed)


def metrics_by_key(timings: Iterable[Json]) -> dict[str, Metric]:
    """Return the metrics other than latency, by key.

    Raises:
        UsageError: an argument is not the JSON of a timing.
    """
    try:
        found = {metric.key: metric for data in timings for metric in metrics_of(data)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"a timing is incomplete ({error!r}): write it again with esm-host time --json"
        ) from error
    del found[LATENCY.key]
    return found


def comparable(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the metrics that have a better direction."""
    return {key: metric for key, metric in metrics.items() if metric.better is not Better.NEITHER}


def check_metric(name: str, key: str, metrics: Mapping[str, Metric]) -> Metric:
    """Return the comparable metric of a key.

    Args:
        name: Name of the argument that the key is from.
        key: Key of the metric.
        metrics: Metrics other than latency, by key.

    Raises:
        UsageError: the metric is unknown, is latency, or has no better direction.
    """
    if key == LATENCY.key:
        raise UsageError(
            f"{argument(name)} {key}: latency is always compared, and is limited by "
            f"{argument('max_latency_ms')}"
        )
    known = comparable(metrics)
    if key not in metrics:
        raise UsageError(f"{argument(name)}: {unknown('metric', key, known)}")
    if key not in known:
        cure = (
            f"choose {', '.join(known)}"
            if key in KNOWN
            else "set better=Better.LOWER or Better.HIGHER in its metric source, and time again"
        )
        raise UsageError(
            f"{argument(name)} {key}: the metric has no better direction, so no regression can be "
            f"decided: {cure}"
        )
    return metrics[key]


def check_limits(limits: Mapping[str, float], metrics: Mapping[str, Metric]) -> None:
    """Check that every limit is a number and belongs to a metric."""
    for key, limit in limits.items():
        check_metric("limits", key, metrics)
        if not math.isfinite(limit):
            raise UsageError(f"{argument('limits')} {key}={limit}: give a number")


def metric_changes(
    metrics: Mapping[str, Metric],
    base: Sequence[Json],
    new: Sequence[Json],
    limits: Mapping[str, float],
    confidence: float,
    tolerance_percent: float,
) -> tuple[MetricChange, ...]:
    """Return the changes of a model's metrics that have a value on either side, or a limit.

    Args:
        metrics: Metrics by key.
        base: Results of the model in the base timings.
        new: Results in the new timings.
        limits: Limits by key.
        confidence: Confidence level of the intervals.
        tolerance_percent: Largest change that is not a regression, percent.
    """
    changes = []
    for key, metric in metrics.items():
        interval = _interval(metric, base, new, confidence)
        sure = len(base) + len(new) > 2 or all(map(_is_stable, (*base, *new)))
        regressed = interval is not None and sure and interval[0] > tolerance_percent
        ends = _mean(metric, base), _mean(metric, new)
        changes.append(MetricChange(metric, *ends, limits.get(key), interval, regressed))
    return tuple(c for c in changes if not c.base is c.new is c.limit is None)


def energy_warnings(timings: Mapping[str, Json]) -> list[str]:
    """Return the reasons to doubt the changes of energies, one line each.

    Args:
        timings: JSON of the timings, by the name of the file, the base first.
    """
    found: list[str] = []
    first: tuple[str, str] | None = None
    for name, data in timings.items():
        energies = [energy for each in data["results"] if (energy := each.get("energy"))]
        unresolved = sum(energy.get("verdict") == "unresolved" for energy in energies)
        if unresolved:
            found.append(
                f"{name}: {unresolved} of {len(energies)} energies are unresolved: their changes "
                "are unreliable"
            )
        sensors = sorted({f"{e['source']} ({e['covers']})" for e in energies if e.get("source")})
        if not sensors:
            continue
        text = ", ".join(sensors)
        first = first or (name, text)
        if text != first[1]:
            found.append(
                f"{name}: energies by {text}, those of {first[0]} by {first[1]}: they are not "
                "comparable"
            )
    return found


def _mean(metric: Metric, results: Sequence[Json]) -> float | None:
    values = [v for result in results if (v := value_of(result, metric)) is not None]
    return math.fsum(values) / len(values) if values else None


def _is_stable(result: Json) -> bool:
    """Return whether a result has a stable energy."""
    return bool((result.get("energy") or {}).get("verdict") == "stable")


def _interval(
    metric: Metric, base: Sequence[Json], new: Sequence[Json], confidence: float
) -> tuple[float, float] | None:
    """Return the interval of a change, percent; None if a value has no interval.

    Several timings per side give Student's two-sample interval of the logarithms. Its standard
    error is at least that within the timings.
    """
    sides = [[_log_and_error(metric, result) for result in side] for side in (base, new)]
    found = [[each for each in side if each is not None] for side in sides]
    if any(None in side for side in sides):
        return None
    means = [statistics.fmean(log for log, _, _ in side) for side in found]
    within = math.hypot(*(error / len(side) for side in found for _, error, _ in side))
    freedom = len(base) + len(new) - 2
    if freedom:
        squares = sum(
            (log - mean) ** 2 for side, mean in zip(found, means, strict=True) for log, _, _ in side
        )
        between = math.sqrt(squares / freedom * (1 / len(base) + 1 / len(new)))
        half = t_quantile(freedom, confidence) * max(between, within)
    else:
        half = math.hypot(*(t_quantile(n, confidence) * error for ((_, error, n),) in found))
    middle = means[1] - means[0]
    return 100 * math.expm1(middle - half), 100 * math.expm1(middle + half)


def _log_and_error(metric: Metric, result: Json) -> tuple[float, float, int] | None:
    """Return the logarithm of a value, its standard error and the degrees of freedom of that."""
    value, energy = value_of(result, metric), result.get("energy") or {}
    percent = result.get("metrics", {}).get(INTERVALS.get(metric.key, ""))
    windows = len(energy.get("gross_mj", ()))
    if value is None or percent is None or not value > 0 or windows < 2:
        return None
    return math.log(value), percent / 100 / t_quantile(windows - 1), windows - 1
