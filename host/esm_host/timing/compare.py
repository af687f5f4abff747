"""Regression check between timings, from their JSON (docs/compare.md).

With one timing per side, the interval of a change combines the intervals of the timings. These
include the variation of the device over time, except in files of schema version 2. With several
timings per side, the interval follows from the spread between timings.
"""

from __future__ import annotations

import enum
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import PurePath
from typing import Any

import numpy as np

from esm_host.arguments import argument
from esm_host.errors import EsmError, UsageError
from esm_host.evaluation.difference import WIDEST
from esm_host.timing.fed import fed_text
from esm_host.timing.metric_changes import (
    MetricChange,
    check_limits,
    comparable,
    energy_warnings,
    metric_changes,
    metrics_by_key,
)
from esm_protos import older_peers
from esm_protos.nearest import unknown
from esm_protos.providers import ProviderInfo
from esm_protos.statistics import degrees_of_freedom, t_quantile
from esm_protos.text import counted

READ = (2, 3)
"""Supported schema versions of timings."""

FACTS = ("hostname", "machine", "cpu_model", "cpu_count", "runtime")
"""Facts of a device that must be equal, besides those of its execution provider."""
CASES, INPUTS, RAW, MAX_TIME = "cases", "inputs", "raw", "max_time"
PROVIDER_OPTIONS = "provider_options"
"""Name that allows differences of all options of execution providers."""
_OF_MAX_TIME = ("max_block_s", "min_rounds")
"""Settings derived from ``max_time_s``, whose default grows with the number of models."""
_LACKED = ("min_rounds", "short_visits", "references", "sessions")
"""Settings missing in older files; the intervals already include their effect."""

_MOST_TOLD = 3
"""Most differences of one name that a message lists."""

_BOUNDS = {
    "trimmed_mean_ms": (1e-9, 1e12),
    "ci95_percent": (0.0, sys.float_info.max),
    "block_ci95_percent": (0.0, sys.float_info.max),
}
"""Smallest and largest valid values of each field; a field may also be None."""

Json = Mapping[str, Any]
_Executions = Mapping[str, Mapping[str, str]]
"""Execution providers with the values of their options."""


class DifferentError(EsmError):
    """Error of timings that were not taken in the same way."""

    exit_code = 2


class Outcome(enum.StrEnum):
    """Result of comparing the latencies of one model."""

    SLOWER = "slower"
    """The lower end of the interval is above the tolerance."""
    UNDECIDED = "undecided"
    """Slower beyond the tolerance, but each side has one timing, and one or both are not stable."""
    TOLERATED = "tolerated"
    """Slower, but the interval reaches below the tolerance."""
    SAME = "same"
    """The interval contains 0."""
    FASTER = "faster"
    FAILED = "failed"
    """The model fails in a larger share of the new timings than of the base."""
    MENDED = "mended"
    """The model fails in a smaller share of the new timings than of the base."""
    NEVER_RAN = "never_ran"

    @property
    def is_regression(self) -> bool:
        """Whether the outcome is a regression."""
        return self in (Outcome.SLOWER, Outcome.FAILED)


@dataclass(frozen=True)
class Change:
    """Change of one model in one case on one device.

    Attributes:
        device: Name of the device in the base.
        base_ms, new_ms: Latencies, ms: the geometric means of the timings in which the model ran.
        change_percent: Change of the latency, percent; None unless the model ran in all timings.
        interval_percent: Confidence interval of the change, percent; None as above.
        model_changed: Whether the model files differ.
        limit_ms: Upper limit of the new latency, ms; None without a limit.
        over_limit: Whether the lower end of the new latency's interval is above the limit.
        metrics: Changes of other metrics.
    """

    model: str
    device: str
    case: Json
    outcome: Outcome
    base_ms: float | None
    new_ms: float | None
    change_percent: float | None
    interval_percent: tuple[float, float] | None
    model_changed: bool
    limit_ms: float | None = None
    over_limit: bool = False
    metrics: tuple[MetricChange, ...] = ()

    @property
    def metrics_over_limit(self) -> list[MetricChange]:
        """Changes of metrics above their limit."""
        return [change for change in self.metrics if change.over_limit]

    @property
    def metrics_regressed(self) -> list[MetricChange]:
        """Changes of metrics that are surely worse than tolerated."""
        return [change for change in self.metrics if change.regressed]

    @property
    def is_regression(self) -> bool:
        """Whether the model became slower or fails, takes more energy, or exceeds a limit."""
        metrics = self.metrics_over_limit or self.metrics_regressed
        return self.outcome.is_regression or self.over_limit or bool(metrics)


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    Attributes:
        confidence: Confidence level of the intervals.
        tolerance_percent: Largest change that is not a regression, percent.
        changes: Change of every model, case and device.
        allowed: Differences between the timings that the caller allowed, in words.
        timings: Number of base timings and of new timings.
        warnings: Reasons to doubt the timings, in words; empty in files of older versions.
    """

    confidence: float
    tolerance_percent: float
    changes: tuple[Change, ...]
    allowed: tuple[str, ...]
    timings: tuple[int, int]
    warnings: tuple[str, ...] = ()

    @property
    def regressions(self) -> list[Change]:
        """Changes that are regressions."""
        return [change for change in self.changes if change.is_regression]

    @property
    def undecided(self) -> list[Change]:
        """Changes without a decision."""
        return [change for change in self.changes if change.outcome is Outcome.UNDECIDED]

    @property
    def degrees_of_freedom(self) -> int:
        """Degrees of freedom of the spread between timings; 0 with one timing per side."""
        return sum(self.timings) - 2

    def name(self, change: Change) -> str:
        """Return the label of a model with its case, and its device if there are several."""
        several = len({each.device for each in self.changes}) > 1
        parts = [f"{change.device}: {change.model}" if several else change.model]
        if change.case["batch"]:
            parts.append(f"batch {change.case['batch']}")
        parts += [f"{symbol}={size}" for symbol, size in change.case.get("dims", {}).items()]
        if change.case["threads"] > 1:
            parts.append(counted(change.case["threads"], "thread"))
        parts += [change.case["provider"]] if change.case.get("provider") else []
        return ", ".join(parts)

    def verdict(self, change: Change) -> str:
        """Return the outcome of a change in words."""
        words = {
            Outcome.SLOWER: "slower",
            Outcome.UNDECIDED: "undecided, not stable: time each side again",
            Outcome.TOLERATED: f"slower, {self.tolerance_percent:g} % tolerated",
            Outcome.SAME: "same within noise",
            Outcome.FASTER: "faster",
            Outcome.FAILED: "fails now",
            Outcome.MENDED: "failed before",
            Outcome.NEVER_RAN: "fails in both",
        }
        over = f", over its limit of {change.limit_ms:g} ms" if change.over_limit else ""
        over += "".join(f", {each.over_text}" for each in change.metrics_over_limit)
        over += "".join(f", {each.regressed_text}" for each in change.metrics_regressed)
        changed = " (another file)" if change.model_changed else ""
        return words[change.outcome] + over + changed

    @classmethod
    def from_json(cls, data: Json) -> Comparison:
        """Return the comparison that :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: the data is not a comparison.
        """
        if data["schema_version"] != 1 or data["kind"] != "comparison":
            raise ValueError(f"kind {data['kind']}, schema version {data['schema_version']}")
        changes = []
        for result in data["results"]:
            low_high = result["interval_percent"]
            interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
            outcome = Outcome(result["outcome"])
            # Files of older versions have no "metrics".
            metrics = tuple(
                MetricChange.from_json(key, each) for key, each in result.get("metrics", {}).items()
            )
            told = {"outcome": outcome, "interval_percent": interval, "metrics": metrics}
            changes.append(Change(**{**result, **told}))
        return cls(
            data["confidence_percent"] / 100,
            data["tolerance_percent"],
            tuple(changes),
            tuple(data["allowed_differences"]),
            (data["timings"]["base"], data["timings"]["new"]),
            tuple(data.get("warnings", ())),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "schema_version": 1,
            "kind": "comparison",
            "confidence_percent": 100 * self.confidence,
            "tolerance_percent": self.tolerance_percent,
            "timings": dict(zip(("base", "new"), self.timings, strict=True)),
            "allowed_differences": list(self.allowed),
            "warnings": list(self.warnings),
            "regressions": len(self.regressions),
            "results": [
                {
                    **asdict(change),
                    "outcome": change.outcome.value,
                    "metrics": {each.metric.key: each.to_json() for each in change.metrics},
                }
                for change in self.changes
            ],
        }


def compare(
    base: Json | Sequence[Json],
    new: Json | Sequence[Json],
    confidence: float = 0.95,
    tolerance_percent: float = 2.0,
    allow: Sequence[str] = (),
    match: Mapping[str, str] | None = None,
    limits_ms: Mapping[str, float] | None = None,
    limits: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare the latencies of two sides by model, case and device.

    Models match by path, or by file name if the paths differ. A single device per timing matches
    whatever its name.

    Args:
        base, new: One or more timings per side, all measured in the same way.
        confidence: Confidence level of the intervals, at least 0.5 and below 1.
        tolerance_percent: Largest lower end of an interval that is not a regression, percent.
        allow: Names of settings and device facts that may differ. ``cases`` allows missing
            models or cases; ``inputs`` allows other input shapes or types; ``raw`` allows
            latencies as measured next to latencies at the usual pace.
        match: New name of each renamed model, ``{"v1.onnx": "v2.onnx"}``: paths or file names.
        limits_ms: Upper limits of new latencies, ms, by the model's name in the base. A limit is
            exceeded if the lower end of the interval is above it.
        limits: Upper limits of other metrics for every model, by key, in the metric's unit:
            ``{"peak_rss_bytes": 2e8}``.

    Raises:
        UsageError: an argument is invalid, or data is not the JSON of a timing.
        DifferentError: settings, devices or cases differ and ``allow`` does not name them.
    """
    sides = [_side(name, given) for name, given in (("base", base), ("new", new))]
    for old, theirs in (match or {}).items():
        sides[1] = [_renamed(timing, old, theirs) for timing in sides[1]]
    timings = [timing for side in sides for timing in side]
    for timing in timings:
        _check_numbers(timing.data, timing.name)
    first = timings[0]
    _check_arguments([each.data for each in timings], confidence, tolerance_percent, allow)
    try:
        several = any(len(_executions(timing.data)) > 1 for timing in timings)
        itself = {name: name for name in first.data["context"]["devices"]}
        found = [_results(first.data, itself, several)]
        differences: list[tuple[str, str]] = []
        for timing in timings[1:]:
            names = _device_names(first.data, timing.data)
            where = "" if len(timings) == 2 else f"the {timing.name} differs from the base: "
            differences += [
                (what, f"{where}{text}") for what, text in _differences(first, timing, names)
            ]
            found.append(_results(timing.data, names, several))
        found = _match_inputs(_match_names(found))
        called = [timing.name for timing in timings]
        if has_common := bool(set.intersection(*map(set, found))):
            differences += [(CASES, text) for text in _unmatched(called, found)]
            differences += [(INPUTS, text) for text in _different_inputs(called, found)]
        options = set[str]().union(*(_option_names(timing.data) for timing in timings))
        # An option may have the name of a setting, whose differences stay refused.
        options -= {*first.data["context"]["spec"], *FACTS, CASES, INPUTS, RAW, MAX_TIME}
        _check_allowed(differences, [*allow, *(options if PROVIDER_OPTIONS in allow else ())])
        if not has_common:
            have = (f"{name} has {_some(own)}" for name, own in zip(called, found, strict=True))
            raise DifferentError(f"the timings have no case in common: {', '.join(have)}")
        allowed = [text for _, text in differences]
        spec = first.data["context"]["spec"]
        max_latency = _Limits(limits_ms or {})
        judge = _Judge(
            confidence, tolerance_percent, spec["trim"], spec["runs_per_visit"], max_latency
        )
        count = len(sides[0])
        results = [
            [each[key] for each in found] for key in found[0] if all(key in each for each in found)
        ]
        metrics = metrics_by_key(timing.data for timing in timings)
        check_limits(limits or {}, metrics)
        metrics = comparable(metrics)
        changes = tuple(
            replace(
                judge.change(of[:count], of[count:]),
                metrics=metric_changes(
                    metrics, of[:count], of[count:], limits or {}, confidence, tolerance_percent
                ),
            )
            for of in results
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"a timing is incomplete ({error!r}): write it again with esm-host time --json"
        ) from error
    max_latency.check()
    counts = len(sides[0]), len(sides[1])
    doubts = doubts_of({timing.name: timing.data for timing in timings})
    return Comparison(confidence, tolerance_percent, changes, tuple(allowed), counts, doubts)


def doubts_of(timings: Mapping[str, Json]) -> tuple[str, ...]:
    """Return the reasons to doubt a comparison of timings.

    Args:
        timings: JSON of the timings of both sides, by their names in the texts, the base first.
    """
    alone = len(timings) == 2
    found = (text for name, data in timings.items() for text in _doubts(name, data, alone))
    return (*found, *energy_warnings(timings))


def _doubts(name: str, data: Json, alone: bool) -> Iterator[str]:
    """Yield the reasons to doubt a timing: it was cut short, or latencies are not stable.

    Args:
        name: Name of the timing in the texts.
        data: JSON of the timing.
        alone: Whether each side has one timing. With several, their spread shows the instability.
    """
    if any(device.get("interrupted", False) for device in data["context"]["devices"].values()):
        yield f"{name} was cut short by an interrupt"
    verdicts = Counter(r["verdict"] for r in data["results"] if r["verdict"] is not None)
    total = verdicts.total()
    if unstable := total - verdicts.pop("stable", 0):
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        doubt = ": their changes are unreliable" if alone else ""
        yield f"{name}: {unstable} of {total} latencies are not stable ({counts}){doubt}"


def _check_allowed(differences: Sequence[tuple[str, str]], allow: Sequence[str]) -> None:
    """Check that all differences are allowed.

    Raises:
        DifferentError: some are not; the message names all of them.
    """
    by_name: dict[str, list[str]] = {}
    for what, text in differences:
        if what not in allow:
            by_name.setdefault(what, []).append(text)
    if not by_name:
        return
    told = []
    for texts in by_name.values():
        more = f" (and {len(texts) - _MOST_TOLD} more)" if len(texts) > _MOST_TOLD else ""
        told.append(f"{'; '.join(texts[:_MOST_TOLD])}{more}")
    names = [*by_name]
    effect = "compares the common cases" if names == [CASES] else "compares them anyway"
    raise DifferentError(f"{'; '.join(told)}: {argument('allow')} {','.join(names)} {effect}")


def check_timing(data: Any, name: str) -> Json:
    """Return the data of a timing.

    Raises:
        UsageError: it is not the JSON of a timing of a supported version.
    """
    if not isinstance(data, Mapping) or data.get("kind") != "timing":
        raise UsageError(
            f"{name} is not a timing: give a file written by esm-host time --json FILE"
        )
    if data.get("schema_version") not in READ:
        understood = " and ".join(map(str, READ))
        raise UsageError(
            f"{name} has schema version {data.get('schema_version')}; supported: {understood}. "
            "Write it again with this version of esm-host time"
        )
    _check_numbers(data, name)
    return data


def _check_numbers(data: Json, name: str) -> None:
    """Check the ranges of numbers; NaN would compare as equal.

    Raises:
        UsageError: a number is out of range.
    """
    results = data.get("results")
    for result in results if isinstance(results, list) else ():
        for field, (least, most) in _BOUNDS.items():
            value = result.get(field) if isinstance(result, Mapping) else None
            if value is None:
                continue
            if not isinstance(value, int | float) or not least <= value <= most:
                raise UsageError(
                    f"{name}: {field} of {result.get('model')} is {value!r}: write it again "
                    "with esm-host time --json"
                )


@dataclass(frozen=True)
class _Judge:
    confidence: float
    tolerance_percent: float
    trim: float
    runs_per_visit: int
    limits: _Limits

    def change(self, base: Sequence[Json], new: Sequence[Json]) -> Change:
        """Return the change of a model from its results in all timings of each side."""
        outcome = _failure_outcome(base, new)
        value = interval = None
        if outcome is None:
            middle = _log_mean(new) - _log_mean(base)
            half = self._half(base, new)
            value = 100 * math.expm1(middle)
            interval = 100 * math.expm1(middle - half), 100 * math.expm1(middle + half)
            outcome = self._outcome(*interval)
            several = len(base) + len(new) > 2
            if outcome is Outcome.SLOWER and not several and not _stable(base[0], new[0]):
                outcome = Outcome.UNDECIDED
        limit_ms = self.limits.of(base[0]["model"])
        over = False
        if limit_ms is not None and (after_ms := _latency_ms(new)) is not None:
            over = math.log(after_ms) - self._half_of(new) > math.log(limit_ms)
        return Change(
            base[0]["model"],
            base[0]["device"],
            base[0]["case"],
            outcome,
            _latency_ms(base),
            _latency_ms(new),
            value,
            interval,
            any(_content(result) != _content(base[0]) for result in new),
            limit_ms,
            over,
        )

    def _outcome(self, low: float, high: float) -> Outcome:
        if low > self.tolerance_percent:
            return Outcome.SLOWER
        if low > 0:
            return Outcome.TOLERATED
        return Outcome.FASTER if high < 0 else Outcome.SAME

    def _half(self, base: Sequence[Json], new: Sequence[Json]) -> float:
        """Return the half-width of the interval of the difference of mean logarithms.

        Several timings give a two-sample t interval (Student) with a pooled variance, since each
        side has few timings. Timings may agree by chance: the standard error is at least that of
        the runs and sessions within the timings.
        """
        freedom = len(base) + len(new) - 2
        if freedom == 0:
            return min(math.hypot(self._half_of(base), self._half_of(new)), WIDEST)
        squares = sum(len(side) * float(np.var(_logs(side))) for side in (base, new))
        between = math.sqrt(squares / freedom * (1 / len(base) + 1 / len(new)))
        within = math.hypot(*map(self._within_error, (base, new)))
        return min(t_quantile(freedom, self.confidence) * max(between, within), WIDEST)

    def _half_of(self, results: Sequence[Json]) -> float:
        """Return the half-width of the interval of one side's log latency."""
        ran = [result for result in results if result["trimmed_mean_ms"] is not None]
        if len(ran) > 1:
            between = float(np.std(_logs(ran), ddof=1)) / math.sqrt(len(ran))
            within = self._within_error(ran)
            return t_quantile(len(ran) - 1, self.confidence) * max(between, within)
        freedom = self._freedom(ran[0])
        return self._error(ran[0], "ci95_percent") * t_quantile(freedom, self.confidence)

    def _within_error(self, results: Sequence[Json]) -> float:
        """Return the standard error of the mean due to runs and sessions within the timings."""
        errors = (self._error(result, _within(result)) for result in results)
        return math.hypot(*errors) / len(results)

    def _error(self, result: Json, name: str) -> float:
        """Return the standard error behind an interval, as a share of the latency.

        Args:
            name: Field with the half-width of the interval, percent.
        """
        if result[name] is None:
            raise DifferentError(
                f"{_label(result)} has too few runs for an interval: give more {argument('runs')}"
            )
        return float(result[name]) / 100 / t_quantile(self._freedom(result))

    def _freedom(self, result: Json) -> int:
        if (blocks := len(result.get("blocks", ()))) > 1:
            return blocks - 1
        # Older files state the runs per visit only once for all models.
        per_visit = result.get("runs_per_visit") or self.runs_per_visit
        return degrees_of_freedom(result["runs"] // per_visit, self.trim)


class _Limits:
    """Latency limits by model path, file name, or file name without its ending."""

    def __init__(self, limits_ms: Mapping[str, float]) -> None:
        self._limits_ms = limits_ms
        self._used: set[str] = set()
        self._models: dict[str, None] = {}

    def of(self, model: str) -> float | None:
        """Return the limit of a model, ms; None without a limit."""
        self._models[PurePath(model).name] = None
        for name in (model, PurePath(model).name, PurePath(model).stem):
            if name in self._limits_ms:
                self._used.add(name)
                return self._limits_ms[name]
        return None

    def check(self) -> None:
        """Check that every limit belongs to a model.

        Raises:
            UsageError: the timings have no model of a limit's name.
        """
        for name in self._limits_ms.keys() - self._used:
            raise UsageError(f"{argument('max_latency')}: {unknown('model', name, self._models)}")


@dataclass(frozen=True)
class _Timing:
    """A timing and its name in messages."""

    name: str
    data: Json


def _side(name: str, given: Json | Sequence[Json]) -> list[_Timing]:
    several = [given] if isinstance(given, Mapping) else list(given)
    if not several:
        raise UsageError(f"no {name} timing: give at least one")
    for (i, one), (j, other) in combinations(enumerate(several, start=1), 2):
        if one == other:  # a copy would count as a perfect repetition
            raise UsageError(f"{name} timings {i} and {j} are the same: give each once")
    if len(several) == 1:
        return [_Timing(f"{name} timing", several[0])]
    return [_Timing(f"{name} timing {n}", data) for n, data in enumerate(several, start=1)]


def _renamed(timing: _Timing, old: str, new: str) -> _Timing:
    """Return a timing with a model renamed to its name in the base."""
    results = timing.data.get("results", ())
    own = [r for r in results if new in (r.get("model"), PurePath(str(r.get("model"))).name)]
    if not own:
        names = dict.fromkeys(PurePath(str(r.get("model"))).name for r in results)
        text = unknown("model", new, names, where=f"of the {timing.name}")
        raise UsageError(f"{argument('match')} {old}={new}: {text}")
    renamed = [{**r, "model": old} if any(r is each for each in own) else r for r in results]
    return _Timing(timing.name, {**timing.data, "results": renamed})


def _check_arguments(
    timings: Sequence[Json], confidence: float, tolerance_percent: float, allow: Sequence[str]
) -> None:
    if not 0.5 <= confidence < 1:  # above 1, percent were probably meant
        raise UsageError(
            f"{argument('confidence')} {confidence:g}: give a share of at least 0.5 and below 1"
        )
    if not 0 <= tolerance_percent < math.inf:
        raise UsageError(
            f"{argument('tolerance_percent')} {tolerance_percent:g}: give a percentage of 0 or more"
        )
    told: set[str] = set()
    settings: dict[str, Any] = {}
    for data in timings:
        context = data.get("context", {})
        spec = context.get("spec", {})
        told |= {
            name
            for device in context.get("devices", {}).values()
            for provider in provider_table(device.get("info") or {})
            for name in provider.identity
        }
        told |= _option_names(data)
        settings |= {**spec, **older_peers.spec_json(spec)}
    facts = (*FACTS, *sorted({*told, *older_peers.NAMES} - {*settings}))
    known = (*settings, *facts, CASES, INPUTS, RAW, MAX_TIME)
    for name in allow:
        if name not in known:
            raise UsageError(f"{argument('allow')}: {unknown('difference', name, known)}")


def _option_names(data: Json) -> set[str]:
    """Return the names of the options of a timing's execution providers, given or not."""
    context = data.get("context", {})
    names = {
        option.name
        for device in context.get("devices", {}).values()
        for provider in provider_table(device.get("info") or {})
        for option in provider.options
    }
    names |= {*older_peers.OPTION_FIELDS, *context.get("spec", {}).get(PROVIDER_OPTIONS, ())}
    results = data.get("results")
    for result in results if isinstance(results, list) else ():
        names |= {*(result.get(PROVIDER_OPTIONS, ()) if isinstance(result, Mapping) else ())}
    return names


def _device_names(base: Json, new: Json) -> dict[str, str]:
    """Return the base's name for each device of the new timing."""
    ours, theirs = (list(data["context"]["devices"]) for data in (base, new))
    if len(ours) == len(theirs) == 1:
        return {theirs[0]: ours[0]}
    if lacking := sorted(set(ours) ^ set(theirs)):
        raise DifferentError(
            f"only one of the timings has the device {lacking[0]}: measure on the same devices"
        )
    return {name: name for name in theirs}


def _differences(
    base: _Timing, new: _Timing, names: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the name of each difference and its description with both values."""
    ours, theirs = (older_peers.spec_json(each.data["context"]["spec"]) for each in (base, new))
    given = _executions(base.data), _executions(new.data)
    several = max(map(len, given)) > 1
    for name in (*ours, *(name for name in theirs if name not in ours)):
        lacked = name in _LACKED and (name not in ours or name not in theirs)
        if lacked or name in (*_OF_MAX_TIME, PROVIDER_OPTIONS):
            continue
        if name == "provider" and several:
            continue  # each is a case
        if ours.get(name) != theirs.get(name):
            yield name, f"the setting {name} differs: {ours.get(name)} and {theirs.get(name)}"
    told = "min_rounds" in ours and "min_rounds" in theirs
    if told and (one := _max_time(ours)) != (other := _max_time(theirs)):
        yield MAX_TIME, f"the setting {MAX_TIME} differs: {one} and {other}"
    if (raw := _raw(base.data)) != _raw(new.data):
        which = base.name if raw else new.name
        yield (
            RAW,
            f"only the {which} has latencies as measured (raw, or an older version): time both in "
            "the same way",
        )
    for theirs_name, name in names.items():
        before = base.data["context"]["devices"][name]
        after = new.data["context"]["devices"][theirs_name]
        for which, device in ((base.name, before), (new.name, after)):
            measured = device["info"] is not None and device.get("block_starts_s")
            if device["error"] is not None and not measured:
                raise DifferentError(f"the {which} failed on {name}: {device['error']}")
        yield from _device_differences(name, (before["info"], after["info"]), given)


def _executions(data: Json) -> dict[str, Mapping[str, str]]:
    """Return the execution providers of a timing, each with the values of its options."""
    found = {r["provider"]: r.get("provider_options", {}) for r in data["results"]}
    if len(found) > 1:
        return found
    spec = older_peers.spec_json(data["context"]["spec"])
    return {spec["provider"]: spec["provider_options"]}


def _max_time(spec: Json) -> str:
    return "its default" if spec.get("min_rounds") else f"{spec['max_block_s']:g} s"


def _raw(data: Json) -> bool:
    """Return whether latencies are as measured, not at the device's usual pace."""
    return bool(data["context"].get("raw", data["schema_version"] < 3))


def _device_differences(
    name: str, infos: tuple[Json, Json], given: tuple[_Executions, _Executions]
) -> Iterator[tuple[str, str]]:
    """Yield the differences of a device and of its execution providers, as :func:`_differences`.

    Args:
        name: Name of the device.
        infos: Description of the device in each timing.
        given: Execution providers of each timing, with their options.
    """
    before, after = infos
    yield from _fact_differences(name, {f: before[f] for f in FACTS}, {f: after[f] for f in FACTS})
    pairs = [(provider, provider) for provider in given[0] if provider in given[1]]
    if len(given[0]) == len(given[1]) == 1:
        pairs = list(zip(*given, strict=True))
    for one, other in pairs:
        providers = _provider(before, one), _provider(after, other)
        yield from _provider_differences(name, providers, (given[0][one], given[1][other]))


def _fact_differences(name: str, ours: Json, theirs: Json) -> Iterator[tuple[str, str]]:
    for fact in {**ours, **theirs}:
        if (one := ours.get(fact, "")) != (other := theirs.get(fact, "")):
            yield fact, f"{fact} of {name} differs: {one} and {other}"


def _provider_differences(
    name: str,
    providers: tuple[ProviderInfo, ProviderInfo],
    given: tuple[Mapping[str, str], Mapping[str, str]],
) -> Iterator[tuple[str, str]]:
    """Yield the differences of an execution provider and of its options."""
    ours, theirs = providers
    yield from _fact_differences(name, ours.identity, theirs.identity)
    if ours.name != theirs.name:
        return
    # An option unknown to one version has the default of the other.
    defaults = {option.name: option.default for option in (*theirs.options, *ours.options)}
    own, others = (
        {
            **defaults,
            **{option.name: option.default for option in provider.options},
            **options,
        }
        for provider, options in zip(providers, given, strict=True)
    )
    for option in {**own, **others}:
        if own.get(option) != others.get(option):
            text = f"{own.get(option, 'not given')} and {others.get(option, 'not given')}"
            yield option, f"the option {option} of {ours.name} differs on {name}: {text}"


def _provider(info: Json, name: str) -> ProviderInfo:
    found = (provider for provider in provider_table(info) if provider.name == name)
    return next(found, ProviderInfo(name))


def provider_table(info: Json) -> tuple[ProviderInfo, ...]:
    """Return the execution providers of a device from its JSON."""
    if "provider_table" in info:
        return tuple(map(ProviderInfo.from_json, info["provider_table"]))
    gpus = [gpu["name"] for gpu in info.get("state", {}).get("gpus", ())]
    return older_peers.provider_table(info.get("providers", ()), gpus)


_Key = tuple[str, ...]


def _results(data: Json, names: Mapping[str, str], several: bool) -> dict[_Key, Json]:
    """Return the results of a timing by model, device, provider and case.

    Args:
        data: JSON of the timing.
        names: Base's name of each device.
        several: Whether some timing has several execution providers, which are then cases.
    """
    found: dict[_Key, Json] = {}
    for result in data["results"]:
        case = result["case"]
        shapes = sorted((name, tuple(dims)) for name, dims in case["shapes"].items())
        # Older files have no "dims".
        dims = sorted(case.get("dims", {}).items())
        rest = (case["batch"], dims, case["threads"], case["inputs_sha256"], shapes)
        provider = result["provider"] if several else ""
        found[result["model"], names[result["device"]], provider, repr(rest)] = result
    return found


def _match_names(found: list[dict[_Key, Json]]) -> list[dict[_Key, Json]]:
    """Return the results by file name if paths differ and file names are unique."""
    paths = [{key[0] for key in results} for results in found]
    if all(p == paths[0] for p in paths) or any(
        len({PurePath(path).name for path in p}) < len(p) for p in paths
    ):
        return found
    return [
        {(PurePath(key[0]).name, *key[1:]): result for key, result in results.items()}
        for results in found
    ]


def _match_inputs(found: list[dict[_Key, Json]]) -> list[dict[_Key, Json]]:
    """Return the results with the base's keys where equal inputs were given in another form.

    A key changes only if exactly one result per timing has these inputs.
    """
    first = found[0]
    renamed = [first]
    for results in found[1:]:
        keys = {}
        for key, result in results.items():
            same = [k for k, other in first.items() if _same_work(k, other, key, result)]
            rivals = [k for k, other in results.items() if _same_work(k, other, key, result)]
            if key not in first and len(same) == len(rivals) == 1 and same[0] not in results:
                keys[key] = same[0]
        renamed.append({keys.get(key, key): result for key, result in results.items()})
    return renamed


def _same_work(one: _Key, a: Json, other: _Key, b: Json) -> bool:
    """Return whether a model on a device had inputs of the same shapes and types."""
    return (
        one[:3] == other[:3]
        and bool(a["inputs"] and b["inputs"])
        and _types_and_dims(a) == _types_and_dims(b)
        and a["case"]["threads"] == b["case"]["threads"]
        and a["case"]["inputs_sha256"] == b["case"]["inputs_sha256"]
    )


def _some(results: Mapping[_Key, Json]) -> str:
    called = [f"'{_label(result)}'" for result in results.values()]
    more = f" and {len(called) - 2} more" if len(called) > 2 else ""
    return ", ".join(called[:2]) + more or "nothing"


def _unmatched(names: Sequence[str], found: Sequence[Mapping[_Key, Json]]) -> Iterator[str]:
    """Yield descriptions of results that are missing in a timing."""
    for key, result in {key: each[key] for each in found for key in each}.items():
        has = [name for name, results in zip(names, found, strict=True) if key in results]
        lacks = [name for name in names if name not in has]
        if len(has) == 1:
            yield f"only the {has[0]} has {_label(result)}"
        elif lacks:
            yield f"the {lacks[0]} lacks {_label(result)}"


def _different_inputs(names: Sequence[str], found: Sequence[Mapping[_Key, Json]]) -> Iterator[str]:
    """Yield descriptions of equal cases with other input shapes or types."""
    for key, first in found[0].items():
        for name, results in zip(names[1:], found[1:], strict=True):
            other = results.get(key)
            if other is None or not (first["inputs"] and other["inputs"]):
                continue  # a failed result may lack its inputs
            if _types_and_dims(first) != _types_and_dims(other):
                yield (
                    f"{_label(first)} had input {_fed(first)} in the {names[0]} and {_fed(other)} "
                    f"in the {name}"
                )


def _types_and_dims(result: Json) -> list[tuple[Any, ...]]:
    """Return the types and dimensions of inputs without names, which exporters may change."""
    return [(fed["type"], *fed["dims"]) for fed in result["inputs"]]


def _fed(result: Json) -> str:
    return fed_text((fed["name"], fed["type"], fed["dims"]) for fed in result["inputs"])


def _label(result: Json) -> str:
    """Return the label of a result: its model and case."""
    case = result["case"]
    parts = [result["model"]]
    parts += [f"batch {case['batch']}"] if case["batch"] else []
    parts += [f"{symbol}={size}" for symbol, size in case.get("dims", {}).items()]
    parts += [f"{case['threads']} threads"] if case["threads"] > 1 else []
    parts += [case["provider"]] if case.get("provider") else []
    parts += [f"{name}:{'x'.join(map(str, dims))}" for name, dims in case["shapes"].items()]
    parts += ["inputs from a file"] if case["inputs_sha256"] else []
    return ", ".join(parts)


def _content(result: Json) -> tuple[Any, Any]:
    return result["model_sha256"], result["external"]


def _within(result: Json) -> str:
    """Return the field with the interval due to runs and sessions within the timing."""
    return "block_ci95_percent" if "block_ci95_percent" in result else "ci95_percent"


def _stable(*results: Json) -> bool:
    return all(result["verdict"] == "stable" for result in results)


def _logs(results: Sequence[Json]) -> list[float]:
    """Return the logarithms of the latencies, without failed results."""
    latencies = (result["trimmed_mean_ms"] for result in results)
    return [math.log(latency) for latency in latencies if latency is not None]


def _log_mean(results: Sequence[Json]) -> float:
    return math.fsum(_logs(results)) / len(results)


def _latency_ms(results: Sequence[Json]) -> float | None:
    ran = [r["trimmed_mean_ms"] for r in results if r["trimmed_mean_ms"] is not None]
    if len(ran) > 1:
        return math.exp(math.fsum(map(math.log, ran)) / len(ran))
    return ran[0] if ran else None


def _failure_outcome(base: Sequence[Json], new: Sequence[Json]) -> Outcome | None:
    """Return the outcome of failures; None if the model ran in all timings."""
    before, after = (1 - len(_logs(side)) / len(side) for side in (base, new))
    if before == after:
        return None if after == 0 else Outcome.NEVER_RAN
    return Outcome.FAILED if after > before else Outcome.MENDED
