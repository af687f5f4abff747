"""Whether models became slower between timings: a regression check, from their JSON.

With one timing per side the interval is made of theirs, which hold for the device at any time;
files of schema version 2 know only the runs within each. Several per side tell what timings of one
model vary by (docs/compare.md).
"""

from __future__ import annotations

import enum
import math
import sys
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
    compared_metrics,
    metric_changes,
)
from esm_protos import older_peers
from esm_protos.providers import ProviderInfo
from esm_protos.statistics import degrees_of_freedom, t_quantile

READ = (2, 3)
"""Schema versions of timings that are understood."""

FACTS = ("hostname", "machine", "cpu_model", "cpu_count", "runtime")
"""Of a device, beside those that an execution provider tells."""
CASES, INPUTS, RAW, MAX_TIME = "cases", "inputs", "raw", "max_time"
_OF_MAX_TIME = ("max_block_s", "min_rounds")
"""Settings that ``--max-time`` makes; its default grows with the number of models."""
_LACKED = ("min_rounds", "short_visits", "references", "sessions")
"""Settings that older files lack; what follows from them is in the intervals."""

_BOUNDS = {
    "trimmed_mean_ms": (1e-9, 1e12),
    "ci95_percent": (0.0, sys.float_info.max),
    "block_ci95_percent": (0.0, sys.float_info.max),
}
"""Least and greatest values that make sense; None says that there is none."""

Json = Mapping[str, Any]


class DifferentError(EsmError):
    """The timings were not taken in the same way."""

    exit_code = 2


class Outcome(enum.StrEnum):
    SLOWER = "slower"
    """By more than is tolerated, even at the interval's lower end."""
    UNDECIDED = "undecided"
    """Likewise, but from one timing per side, of which one is not stable."""
    TOLERATED = "tolerated"
    """Slower, but perhaps by less than is tolerated."""
    SAME = "same"
    """The interval holds 0."""
    FASTER = "faster"
    FAILED = "failed"
    """It ran before and does not now; of several timings, it fails in a larger share."""
    MENDED = "mended"
    """It did not run before and does now; likewise."""
    NEVER_RAN = "never_ran"

    @property
    def is_regression(self) -> bool:
        return self in (Outcome.SLOWER, Outcome.FAILED)


@dataclass(frozen=True)
class Change:
    """What became of one model in one case on one device.

    Attributes:
        device: by its name in the base.
        base_ms, new_ms: of several timings the geometric mean of those that ran.
        change_percent: None unless all ran, as the one below.
        interval_percent: low and high, at the confidence asked for.
        model_changed: the files differ, which may be the point.
        limit_ms: that the new latency is to keep; None where nobody gave one.
        over_limit: it lies above, even at its interval's lower end.
        metrics: what became of other metrics.
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
        return [change for change in self.metrics if change.over_limit]

    @property
    def is_regression(self) -> bool:
        return self.outcome.is_regression or self.over_limit or bool(self.metrics_over_limit)


@dataclass(frozen=True)
class Comparison:
    """All changes, and the differences between the timings that were let pass.

    Attributes:
        timings: how many there are of the base and of the new.
    """

    confidence: float
    tolerance_percent: float
    changes: tuple[Change, ...]
    allowed: tuple[str, ...]
    timings: tuple[int, int]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.is_regression]

    @property
    def undecided(self) -> list[Change]:
        return [change for change in self.changes if change.outcome is Outcome.UNDECIDED]

    @property
    def degrees_of_freedom(self) -> int:
        """Of the spread between timings; 0 with one per side, which tell none."""
        return sum(self.timings) - 2

    def name(self, change: Change) -> str:
        """Return a model with its case, and with its device where there are several."""
        several = len({each.device for each in self.changes}) > 1
        parts = [f"{change.device}: {change.model}" if several else change.model]
        if change.case["batch"]:
            parts.append(f"batch {change.case['batch']}")
        parts += [f"{symbol}={size}" for symbol, size in change.case.get("dims", {}).items()]
        if change.case["threads"] > 1:
            parts.append(f"{change.case['threads']} threads")
        return ", ".join(parts)

    def verdict(self, change: Change) -> str:
        """Return what became of a model, in words."""
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
        changed = " (another file)" if change.model_changed else ""
        return words[change.outcome] + over + changed

    @classmethod
    def from_json(cls, data: Json) -> Comparison:
        """Return what :meth:`to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it wrote something else.
        """
        if data["schema_version"] != 1 or data["kind"] != "comparison":
            raise ValueError(f"kind {data['kind']}, schema version {data['schema_version']}")
        changes = []
        for result in data["results"]:
            low_high = result["interval_percent"]
            interval = None if low_high is None else (float(low_high[0]), float(low_high[1]))
            outcome = Outcome(result["outcome"])
            # Files of older versions have no other metrics.
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
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "comparison",
            "confidence_percent": 100 * self.confidence,
            "tolerance_percent": self.tolerance_percent,
            "timings": dict(zip(("base", "new"), self.timings, strict=True)),
            "allowed_differences": list(self.allowed),
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
    """Compares the timings of two sides, result by result: by model, case and device.

    Models have the same name where their paths are equal, or, should paths differ, their files'
    names. The only device of each timing is taken to be the same whatever it was called.

    Args:
        base, new: one or several, all taken alike.
        confidence: of the intervals, from 0.5 and below 1.
        tolerance_percent: a change is a regression when its lower end is above this.
        allow: names of settings and facts of devices that may differ; ``cases`` compares what
            all have, ``inputs`` also what was fed other shapes or types, ``raw`` latencies as
            measured with those at the device's usual pace.
        match: models of the base that have another name in the new timings, ``{"v1.onnx":
            "v2.onnx"}``: paths, or names of files.
        limits_ms: latencies, by the models' names in the base, that a new one must keep: it is a
            regression where even its interval's lower end is above.
        limits: of other metrics, by their keys and in their units, that every model's new value
            must keep: ``{"peak_rss_bytes": 2e8}``.

    Raises:
        UsageError: an argument makes no sense, or one is not the JSON of a timing.
        DifferentError: something else than the models differs.
    """
    sides = [_side(name, given) for name, given in (("base", base), ("new", new))]
    for old, theirs in (match or {}).items():
        sides[1] = [_renamed(timing, old, theirs) for timing in sides[1]]
    timings = [timing for side in sides for timing in side]
    for timing in timings:
        _check_numbers(timing.data, timing.name)
    first = timings[0]
    _check_arguments(first.data, confidence, tolerance_percent, allow)
    allowed: list[str] = []
    try:
        found = [_results(first.data, {name: name for name in first.data["context"]["devices"]})]
        for timing in timings[1:]:
            names = _device_names(first.data, timing.data)
            for what, text in _differences(first, timing, names):
                told = (
                    text if len(timings) == 2 else f"the {timing.name} is not as the base: {text}"
                )
                if what not in allow:
                    raise DifferentError(f"{told}: {argument('allow')} {what} compares anyhow")
                allowed.append(told)
            found.append(_results(timing.data, names))
        found = _fed_alike(_named_alike(found))
        for text in _unmatched([timing.name for timing in timings], found):
            if CASES not in allow:
                raise DifferentError(f"{text}: {argument('allow')} {CASES} compares what all have")
            allowed.append(text)
        for text in _fed_otherwise([timing.name for timing in timings], found):
            if INPUTS not in allow:
                raise DifferentError(f"{text}: {argument('allow')} {INPUTS} compares anyhow")
            allowed.append(text)
        spec = first.data["context"]["spec"]
        max_latency = _Limits(limits_ms or {})
        judge = _Judge(
            confidence, tolerance_percent, spec["trim"], spec["runs_per_visit"], max_latency
        )
        count = len(sides[0])
        results = [
            [each[key] for each in found] for key in found[0] if all(key in each for each in found)
        ]
        metrics = compared_metrics(timing.data for timing in timings)
        check_limits(limits or {}, metrics)
        changes = tuple(
            replace(
                judge.change(of[:count], of[count:]),
                metrics=metric_changes(metrics, of[:count], of[count:], limits or {}),
            )
            for of in results
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"a timing lacks what it should have ({error!r}): write it again, esm-host time --json"
        ) from error
    max_latency.check()
    counts = len(sides[0]), len(sides[1])
    return Comparison(confidence, tolerance_percent, changes, tuple(allowed), counts)


def check_timing(data: Any, name: str) -> Json:
    """The data, if it is the JSON of a timing that is understood; else raises UsageError."""
    if not isinstance(data, Mapping) or data.get("kind") != "timing":
        raise UsageError(f"{name} is no timing: give a file that esm-host time --json FILE wrote")
    if data.get("schema_version") not in READ:
        understood = " and ".join(map(str, READ))
        raise UsageError(
            f"{name} has schema version {data.get('schema_version')}, {understood} are understood: "
            "write it again with this version of esm-host time"
        )
    _check_numbers(data, name)
    return data


def _check_numbers(data: Json, name: str) -> None:
    """Raise UsageError for a number that no timing has, such as NaN, which would count as equal."""
    results = data.get("results")
    for result in results if isinstance(results, list) else ():
        for field, (least, most) in _BOUNDS.items():
            value = result.get(field) if isinstance(result, Mapping) else None
            if value is None:
                continue
            if not isinstance(value, int | float) or not least <= value <= most:
                raise UsageError(
                    f"{name}: {field} of {result.get('model')} is {value!r}: write it again, "
                    "esm-host time --json"
                )


@dataclass(frozen=True)
class _Judge:
    confidence: float
    tolerance_percent: float
    trim: float
    runs_per_visit: int
    limits: _Limits

    def change(self, base: Sequence[Json], new: Sequence[Json]) -> Change:
        """From a model's results in all timings of each side."""
        outcome = _failed(base, new)
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
        """Half-width of the interval of the means' difference, in logarithms.

        Of several timings that of Student's two-sample t: the variance between timings is taken
        to be that of either side, which has few to tell it by. The standard error is no less than
        what runs and sessions within the timings leave, however well these agree by chance.
        """
        freedom = len(base) + len(new) - 2
        if freedom == 0:
            return min(math.hypot(self._half_of(base), self._half_of(new)), WIDEST)
        squares = sum(len(side) * float(np.var(_logs(side))) for side in (base, new))
        between = math.sqrt(squares / freedom * (1 / len(base) + 1 / len(new)))
        within = math.hypot(*map(self._within_error, (base, new)))
        return min(t_quantile(freedom, self.confidence) * max(between, within), WIDEST)

    def _half_of(self, results: Sequence[Json]) -> float:
        """Half-width of the interval of one side's latency, in logarithms."""
        ran = [result for result in results if result["trimmed_mean_ms"] is not None]
        if len(ran) > 1:
            between = float(np.std(_logs(ran), ddof=1)) / math.sqrt(len(ran))
            within = self._within_error(ran)
            return t_quantile(len(ran) - 1, self.confidence) * max(between, within)
        freedom = self._freedom(ran[0])
        return self._error(ran[0], "ci95_percent") * t_quantile(freedom, self.confidence)

    def _within_error(self, results: Sequence[Json]) -> float:
        """Return the standard error that runs and sessions leave in the mean of several timings."""
        errors = (self._error(result, _within(result)) for result in results)
        return math.hypot(*errors) / len(results)

    def _error(self, result: Json, name: str) -> float:
        """Return the standard error of which an interval is, as a share.

        Args:
            name: of half the interval's width, in percent.
        """
        if result[name] is None:
            raise DifferentError(
                f"{_called(result)} has too few runs for an interval: measure more, "
                f"{argument('runs')}"
            )
        return float(result[name]) / 100 / t_quantile(self._freedom(result))

    def _freedom(self, result: Json) -> int:
        if (blocks := len(result.get("blocks", ()))) > 1:
            return blocks - 1
        # Files from before visits could differ by model do not say it of each.
        per_visit = result.get("runs_per_visit") or self.runs_per_visit
        return degrees_of_freedom(result["runs"] // per_visit, self.trim)


class _Limits:
    """Limits of latencies, by models' paths, names of files, or these without an ending."""

    def __init__(self, limits_ms: Mapping[str, float]) -> None:
        self._limits_ms = limits_ms
        self._used: set[str] = set()

    def of(self, model: str) -> float | None:
        """Return the limit of a model, ms, or None."""
        for name in (model, PurePath(model).name, PurePath(model).stem):
            if name in self._limits_ms:
                self._used.add(name)
                return self._limits_ms[name]
        return None

    def check(self) -> None:
        """Raise UsageError for a limit of a model that is not there."""
        for name in self._limits_ms.keys() - self._used:
            raise UsageError(
                f"{argument('max_latency')} {name}: the timings have no model of this name"
            )


@dataclass(frozen=True)
class _Timing:
    """Name: what messages call it."""

    name: str
    data: Json


def _side(name: str, given: Json | Sequence[Json]) -> list[_Timing]:
    several = [given] if isinstance(given, Mapping) else list(given)
    if not several:
        raise UsageError(f"there is no {name} timing: give one or more")
    for (i, one), (j, other) in combinations(enumerate(several, start=1), 2):
        if one == other:  # it would count as if the device had repeated it exactly
            raise UsageError(f"{name} timings {i} and {j} are the same: give each once")
    if len(several) == 1:
        return [_Timing(f"{name} timing", several[0])]
    return [_Timing(f"{name} timing {n}", data) for n, data in enumerate(several, start=1)]


def _renamed(timing: _Timing, old: str, new: str) -> _Timing:
    """Return a timing in which a model has the name that it has in the base."""
    results = timing.data.get("results", ())
    own = [r for r in results if new in (r.get("model"), PurePath(str(r.get("model"))).name)]
    if not own:
        raise UsageError(f"{argument('match')} {old}={new}: the {timing.name} has no model {new}")
    renamed = [{**r, "model": old} if any(r is each for each in own) else r for r in results]
    return _Timing(timing.name, {**timing.data, "results": renamed})


def _check_arguments(
    base: Json, confidence: float, tolerance_percent: float, allow: Sequence[str]
) -> None:
    if not 0.5 <= confidence < 1:  # less is of no use, and 0.95 is meant as 95
        raise UsageError(
            f"{argument('confidence')} {confidence:g}: give a share, from 0.5 and below 1"
        )
    if not 0 <= tolerance_percent < math.inf:
        raise UsageError(
            f"{argument('tolerance_percent')} {tolerance_percent:g}: give percent, 0 or more"
        )
    context = base.get("context", {})
    spec = context.get("spec", {})
    told = {
        name
        for device in context.get("devices", {}).values()
        for provider in provider_table(device.get("info") or {})
        for name in (*provider.identity, *(option.name for option in provider.options))
    }
    facts = (*FACTS, *sorted({*told, *older_peers.NAMES} - {*spec}))
    known = (*spec, *facts, CASES, INPUTS, RAW, MAX_TIME)
    for name in allow:
        if name not in known:
            raise UsageError(
                f"{argument('allow')} {name}: unknown name, choose from {', '.join(known)}"
            )


def _device_names(base: Json, new: Json) -> dict[str, str]:
    """Devices of the new timing, and what the base calls them."""
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
    """What differs, by name, and both values in words."""
    ours, theirs = (older_peers.spec_json(each.data["context"]["spec"]) for each in (base, new))
    for name in (*ours, *(name for name in theirs if name not in ours)):
        lacked = name in _LACKED and (name not in ours or name not in theirs)
        if lacked or name in (*_OF_MAX_TIME, "provider_options"):
            continue
        if ours.get(name) != theirs.get(name):
            yield name, f"the setting {name} differs: {ours.get(name)} and {theirs.get(name)}"
    told = "min_rounds" in ours and "min_rounds" in theirs
    if told and (one := _max_time(ours)) != (other := _max_time(theirs)):
        yield MAX_TIME, f"--max-time differs: {one} and {other}"
    if (raw := _raw(base.data)) != _raw(new.data):
        which = base.name if raw else new.name
        yield (
            RAW,
            f"only the {which} has latencies as measured, as --raw and older versions give them; "
            "time both alike",
        )
    for theirs_name, name in names.items():
        before = base.data["context"]["devices"][name]
        after = new.data["context"]["devices"][theirs_name]
        for which, device in ((base.name, before), (new.name, after)):
            measured = device["info"] is not None and device.get("block_starts_s")
            if device["error"] is not None and not measured:
                raise DifferentError(f"the {which} failed on {name}: {device['error']}")
        yield from _device_differences(name, before["info"], after["info"], (ours, theirs))


def _max_time(spec: Json) -> str:
    return "its default" if spec.get("min_rounds") else f"{spec['max_block_s']:g} s"


def _raw(data: Json) -> bool:
    """Whether latencies are as measured, not at the device's usual pace."""
    return bool(data["context"].get("raw", data["schema_version"] < 3))


def _device_differences(
    name: str, before: Json, after: Json, specs: tuple[Json, Json]
) -> Iterator[tuple[str, str]]:
    """What differs of a device and of the execution provider that measured on it."""
    ours, theirs = (
        _provider(info, spec["provider"]) for info, spec in zip((before, after), specs, strict=True)
    )
    facts = [(fact, before[fact], after[fact]) for fact in FACTS]
    facts += [
        (fact, ours.identity.get(fact, ""), theirs.identity.get(fact, ""))
        for fact in {**ours.identity, **theirs.identity}
    ]
    for fact, one, other in facts:
        if one != other:
            yield fact, f"{fact} of {name} differs: {one} and {other}"
    if ours.name != theirs.name:
        return
    # An option that a version lacks is as it is by default in the other.
    defaults = {option.name: option.default for option in (*theirs.options, *ours.options)}
    own, others = (
        {
            **defaults,
            **{option.name: option.default for option in provider.options},
            **spec["provider_options"],
        }
        for provider, spec in zip((ours, theirs), specs, strict=True)
    )
    for option in {**own, **others}:
        if own.get(option) != others.get(option):
            text = f"{own.get(option)} and {others.get(option)}"
            yield option, f"the option {option} of {ours.name} differs on {name}: {text}"


def _provider(info: Json, name: str) -> ProviderInfo:
    found = (provider for provider in provider_table(info) if provider.name == name)
    return next(found, ProviderInfo(name))


def provider_table(info: Json) -> tuple[ProviderInfo, ...]:
    """Return the execution providers of a device, from the JSON of its facts."""
    if "provider_table" in info:
        return tuple(map(ProviderInfo.from_json, info["provider_table"]))
    gpus = [gpu["name"] for gpu in info.get("state", {}).get("gpus", ())]
    return older_peers.provider_table(info.get("providers", ()), gpus)


_Key = tuple[str, ...]


def _results(data: Json, names: Mapping[str, str]) -> dict[_Key, Json]:
    """By model, device and case."""
    found: dict[_Key, Json] = {}
    for result in data["results"]:
        case = result["case"]
        shapes = sorted((name, tuple(dims)) for name, dims in case["shapes"].items())
        # Files that say nothing of dims are from before there were any.
        dims = sorted(case.get("dims", {}).items())
        rest = (case["batch"], dims, case["threads"], case["inputs_sha256"], shapes)
        found[result["model"], names[result["device"]], repr(rest)] = result
    return found


def _named_alike(found: list[dict[_Key, Json]]) -> list[dict[_Key, Json]]:
    """By the names of files, where paths differ and their names do not repeat."""
    paths = [{key[0] for key in results} for results in found]
    if all(p == paths[0] for p in paths) or any(
        len({PurePath(path).name for path in p}) < len(p) for p in paths
    ):
        return found
    return [
        {(PurePath(key[0]).name, *key[1:]): result for key, result in results.items()}
        for results in found
    ]


def _fed_alike(found: list[dict[_Key, Json]]) -> list[dict[_Key, Json]]:
    """Give results the key of the base's where a model was fed the same in another wording.

    Only where one result of the model in each timing was fed so.
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
    """Whether a model on a device was fed inputs of the same shapes and types."""
    return (
        one[:2] == other[:2]
        and bool(a["inputs"] and b["inputs"])
        and _types_and_dims(a) == _types_and_dims(b)
        and a["case"]["threads"] == b["case"]["threads"]
        and a["case"]["inputs_sha256"] == b["case"]["inputs_sha256"]
    )


def _some(results: Mapping[_Key, Json]) -> str:
    called = [f"'{_called(result)}'" for result in results.values()]
    more = f" and {len(called) - 2} more" if len(called) > 2 else ""
    return ", ".join(called[:2]) + more or "nothing"


def _unmatched(names: Sequence[str], found: Sequence[Mapping[_Key, Json]]) -> Iterator[str]:
    """What one timing has and another lacks."""
    if not set.intersection(*(set(results) for results in found)):
        raise DifferentError(
            "no model was timed in the same case: "
            + ", ".join(
                f"{name} has {_some(results)}" for name, results in zip(names, found, strict=True)
            )
        )
    for key, result in {key: each[key] for each in found for key in each}.items():
        has = [name for name, results in zip(names, found, strict=True) if key in results]
        lacks = [name for name in names if name not in has]
        if len(has) == 1:
            yield f"only the {has[0]} has {_called(result)}"
        elif lacks:
            yield f"the {lacks[0]} lacks {_called(result)}"


def _fed_otherwise(names: Sequence[str], found: Sequence[Mapping[_Key, Json]]) -> Iterator[str]:
    """Yield what the timings fed other shapes or types, though the case is the same."""
    for key, first in found[0].items():
        for name, results in zip(names[1:], found[1:], strict=True):
            other = results.get(key)
            if other is None or not (first["inputs"] and other["inputs"]):
                continue  # what failed may not say what it was fed
            if _types_and_dims(first) != _types_and_dims(other):
                yield (
                    f"{_called(first)} was fed {_fed(first)} in the {names[0]} and {_fed(other)} "
                    f"in the {name}"
                )


def _types_and_dims(result: Json) -> list[tuple[Any, ...]]:
    """An export may name inputs otherwise."""
    return [(fed["type"], *fed["dims"]) for fed in result["inputs"]]


def _fed(result: Json) -> str:
    return fed_text((fed["name"], fed["type"], fed["dims"]) for fed in result["inputs"])


def _called(result: Json) -> str:
    """The model, and its case where it has one."""
    case = result["case"]
    parts = [result["model"]]
    parts += [f"batch {case['batch']}"] if case["batch"] else []
    parts += [f"{symbol}={size}" for symbol, size in case.get("dims", {}).items()]
    parts += [f"{case['threads']} threads"] if case["threads"] > 1 else []
    parts += [f"{name}:{'x'.join(map(str, dims))}" for name, dims in case["shapes"].items()]
    parts += ["inputs from a file"] if case["inputs_sha256"] else []
    return ", ".join(parts)


def _content(result: Json) -> tuple[Any, Any]:
    return result["model_sha256"], result["external"]


def _within(result: Json) -> str:
    """Name of the interval that runs and sessions of a timing leave."""
    return "block_ci95_percent" if "block_ci95_percent" in result else "ci95_percent"


def _stable(*results: Json) -> bool:
    return all(result["verdict"] == "stable" for result in results)


def _logs(results: Sequence[Json]) -> list[float]:
    """Of the latencies of those that ran."""
    latencies = (result["trimmed_mean_ms"] for result in results)
    return [math.log(latency) for latency in latencies if latency is not None]


def _log_mean(results: Sequence[Json]) -> float:
    return math.fsum(_logs(results)) / len(results)


def _latency_ms(results: Sequence[Json]) -> float | None:
    ran = [r["trimmed_mean_ms"] for r in results if r["trimmed_mean_ms"] is not None]
    if len(ran) > 1:
        return math.exp(math.fsum(map(math.log, ran)) / len(ran))
    return ran[0] if ran else None


def _failed(base: Sequence[Json], new: Sequence[Json]) -> Outcome | None:
    """None if it ran in all timings."""
    before, after = (1 - len(_logs(side)) / len(side) for side in (base, new))
    if before == after:
        return None if after == 0 else Outcome.NEVER_RAN
    return Outcome.FAILED if after > before else Outcome.MENDED
