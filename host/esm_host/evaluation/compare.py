"""Whether models became slower between two timings: a regression check, from their JSON.

The interval is that of runs within each timing; how a device drifts between the two is not in it
(docs/compare.md).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from esm_host.errors import EsmError, UsageError
from esm_protos.statistics import degrees_of_freedom, t_quantile

SCHEMA_VERSION = 2
"""Of the timings that are understood."""

FACTS = ("hostname", "machine", "cpu_model", "cpu_count", "runtime", "gpu")
CASES = "cases"

Json = Mapping[str, Any]


class DifferentError(EsmError):
    """The timings were not taken in the same way."""

    exit_code = 2


class Outcome(enum.StrEnum):
    SLOWER = "slower"
    """By more than is tolerated, even at the interval's lower end."""
    TOLERATED = "tolerated"
    """Slower, but perhaps by less than is tolerated."""
    SAME = "same"
    """The interval holds 0."""
    FASTER = "faster"
    FAILED = "failed"
    """It ran before and does not now."""
    MENDED = "mended"
    """It did not run before and does now."""
    NEVER_RAN = "never_ran"

    @property
    def is_regression(self) -> bool:
        return self in (Outcome.SLOWER, Outcome.FAILED)


@dataclass(frozen=True)
class Change:
    """What became of one model in one case on one device.

    Attributes:
        device: by its name in the base.
        change_percent: None unless both ran, as the two below.
        interval_percent: low and high, at the confidence asked for.
        model_changed: the files differ, which may be the point.
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


@dataclass(frozen=True)
class Comparison:
    """All changes, and the differences between the timings that were let pass."""

    confidence: float
    tolerance_percent: float
    changes: tuple[Change, ...]
    allowed: tuple[str, ...]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.outcome.is_regression]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "kind": "comparison",
            "confidence_percent": 100 * self.confidence,
            "tolerance_percent": self.tolerance_percent,
            "allowed_differences": list(self.allowed),
            "regressions": len(self.regressions),
            "results": [
                {**asdict(change), "outcome": change.outcome.value} for change in self.changes
            ],
        }


def compare(
    base: Json,
    new: Json,
    confidence: float = 0.95,
    tolerance_percent: float = 2.0,
    allow: Sequence[str] = (),
) -> Comparison:
    """Compares two timings, result by result: by model, case and device.

    Models have the same name where their paths are equal, or, should paths differ, their files'
    names. The only device of each timing is taken to be the same whatever it was called.

    Args:
        confidence: of the intervals, from 0.5 and below 1.
        tolerance_percent: a change is a regression when its lower end is above this.
        allow: names of settings and facts of devices that may differ; ``cases`` compares what
            both have.

    Raises:
        UsageError: an argument makes no sense, or one is not the JSON of a timing.
        DifferentError: something else than the models differs.
    """
    _check_arguments(base, confidence, tolerance_percent, allow)
    allowed: list[str] = []
    try:
        names = _device_names(base, new)
        for what, text in _differences(base, new, names):
            if what not in allow:
                raise DifferentError(f"{text}: --allow {what} compares anyhow")
            allowed.append(text)
        ours = _results(base, {name: name for name in names.values()})
        theirs = _results(new, names)
        ours, theirs = _named_alike(ours, theirs)
        for text in _unmatched(ours, theirs):
            if CASES not in allow:
                raise DifferentError(f"{text}: --allow {CASES} compares what both have")
            allowed.append(text)
        spec = base["context"]["spec"]
        judge = _Judge(confidence, tolerance_percent, spec["trim"], spec["runs_per_visit"])
        changes = tuple(judge.change(ours[key], theirs[key]) for key in ours if key in theirs)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UsageError(
            f"a timing lacks what it should have ({error!r}): write it again, esm-host time --json"
        ) from error
    return Comparison(confidence, tolerance_percent, changes, tuple(allowed))


def check_timing(data: Any, name: str) -> Json:
    """The data, if it is the JSON of a timing that is understood; else raises UsageError."""
    if not isinstance(data, Mapping) or data.get("kind") != "timing":
        raise UsageError(f"{name} is no timing: esm-host time MODEL.onnx --json {name} writes one")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{name} has schema version {data.get('schema_version')}, {SCHEMA_VERSION} is "
            "understood: write it again with this version of esm-host time"
        )
    return data


@dataclass(frozen=True)
class _Judge:
    confidence: float
    tolerance_percent: float
    trim: float
    runs_per_visit: int

    def change(self, base: Json, new: Json) -> Change:
        before, after = base["trimmed_mean_ms"], new["trimmed_mean_ms"]
        value = interval = None
        if before is None or after is None:
            outcome = _failed(before, after)
        else:
            middle = math.log(after / before)
            half = math.hypot(self._half(base), self._half(new))
            value = 100 * math.expm1(middle)
            interval = 100 * math.expm1(middle - half), 100 * math.expm1(middle + half)
            outcome = self._outcome(*interval)
        return Change(
            base["model"],
            base["device"],
            base["case"],
            outcome,
            before,
            after,
            value,
            interval,
            _content(base) != _content(new),
        )

    def _outcome(self, low: float, high: float) -> Outcome:
        if low > self.tolerance_percent:
            return Outcome.SLOWER
        if low > 0:
            return Outcome.TOLERATED
        return Outcome.FASTER if high < 0 else Outcome.SAME

    def _half(self, result: Json) -> float:
        """Half-width at the confidence, as a share."""
        if result["ci95_percent"] is None:
            raise DifferentError(
                f"{_called(result)} has too few runs for an interval: measure more, --runs"
            )
        freedom = degrees_of_freedom(result["runs"] // self.runs_per_visit, self.trim)
        wider = t_quantile(freedom, self.confidence) / t_quantile(freedom)
        return float(result["ci95_percent"]) / 100 * wider


def _check_arguments(
    base: Json, confidence: float, tolerance_percent: float, allow: Sequence[str]
) -> None:
    if not 0.5 <= confidence < 1:  # less is of no use, and 0.95 is meant as 95
        raise UsageError(
            f"--confidence {100 * confidence:g}: give percent, from 50 and below 100, such as 95"
        )
    if not 0 <= tolerance_percent < math.inf:
        raise UsageError(f"--tolerance {tolerance_percent:g}: give percent, 0 or more")
    known = (*base.get("context", {}).get("spec", {}), *FACTS, CASES)
    for name in allow:
        if name not in known:
            raise UsageError(f"--allow {name}: nothing is called so, there are {', '.join(known)}")


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


def _differences(base: Json, new: Json, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What differs, by name, and both values in words."""
    ours, theirs = base["context"]["spec"], new["context"]["spec"]
    for name in (*ours, *(name for name in theirs if name not in ours)):
        if ours.get(name) != theirs.get(name):
            yield name, f"the setting {name} differs: {ours.get(name)} and {theirs.get(name)}"
    for theirs_name, name in names.items():
        before = base["context"]["devices"][name]
        after = new["context"]["devices"][theirs_name]
        for which, device in (("base", before), ("new", after)):
            if device["error"] is not None:
                raise DifferentError(f"the {which} timing failed on {name}: {device['error']}")
        for fact in FACTS:
            one, other = (_fact(d["info"], fact, ours["provider"]) for d in (before, after))
            if one != other:
                yield fact, f"{fact} of {name} differs: {one} and {other}"


def _fact(info: Json, name: str, provider: str) -> Any:
    if name != "gpu":
        return info[name]
    gpus = info["state"].get("gpus", ()) if provider == "cuda" else ()
    return ", ".join(gpu["name"] for gpu in gpus)


_Key = tuple[str, ...]


def _results(data: Json, names: Mapping[str, str]) -> dict[_Key, Json]:
    """By model, device and case."""
    found: dict[_Key, Json] = {}
    for result in data["results"]:
        case = result["case"]
        shapes = sorted((name, tuple(dims)) for name, dims in case["shapes"].items())
        rest = (case["batch"], case["threads"], case["inputs_sha256"], shapes)
        found[result["model"], names[result["device"]], repr(rest)] = result
    return found


def _named_alike(
    ours: dict[_Key, Json], theirs: dict[_Key, Json]
) -> tuple[dict[_Key, Json], dict[_Key, Json]]:
    """By the names of files, where paths differ and their names do not repeat."""
    paths = [{key[0] for key in results} for results in (ours, theirs)]
    if paths[0] == paths[1] or any(len({PurePath(p).name for p in s}) < len(s) for s in paths):
        return ours, theirs
    one, other = (
        {(PurePath(key[0]).name, *key[1:]): result for key, result in results.items()}
        for results in (ours, theirs)
    )
    return one, other


def _unmatched(ours: Mapping[_Key, Json], theirs: Mapping[_Key, Json]) -> Iterator[str]:
    for which, these, those in (("base", ours, theirs), ("new", theirs, ours)):
        for key, result in these.items():
            if key not in those:
                yield f"only the {which} timing has {_called(result)}"
    if not ours.keys() & theirs.keys():
        raise DifferentError("the timings have no model in common in the same case")


def _called(result: Json) -> str:
    """The model, and its case where it has one."""
    case = result["case"]
    parts = [result["model"]]
    parts += [f"batch {case['batch']}"] if case["batch"] else []
    parts += [f"{case['threads']} threads"] if case["threads"] > 1 else []
    parts += [f"{name}:{'x'.join(map(str, dims))}" for name, dims in case["shapes"].items()]
    parts += ["inputs from a file"] if case["inputs_sha256"] else []
    return ", ".join(parts)


def _content(result: Json) -> tuple[Any, Any]:
    return result["model_sha256"], result["external"]


def _failed(before: float | None, after: float | None) -> Outcome:
    if before is None:
        return Outcome.NEVER_RAN if after is None else Outcome.MENDED
    return Outcome.FAILED
