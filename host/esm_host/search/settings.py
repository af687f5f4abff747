"""Settings and folder of a search."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from esm_host.arguments import argument
from esm_host.dataset.campaign_metric import CAMPAIGN_METRICS, ENERGY, CampaignMetric
from esm_host.errors import DatasetError, UsageError
from esm_host.search.latency import AT_MOST, ENERGY_DELAY, LATENCY, bounded_by, quantity
from esm_host.search.objectives import COUNTED, ObjectiveSpec, parse_objective
from esm_host.search.problem import Limit, Objective
from esm_host.typed import check_fields
from esm_protos.plugins import absolute
from esm_protos.text import counted

_LIMIT = re.compile(r"\s*(.+?)\s*(<=|>=)\s*([-+0-9.eE]+)\s*")
_LIMITED = {
    name: metric
    for metric in CAMPAIGN_METRICS.values()
    if metric.key != LATENCY
    for name in (metric.key, metric.name)
}
"""Metrics that ``limits`` bounds, by the names that users give."""


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides the result of a search.

    Attributes:
        runs: Folders of campaigns, one per device.
        objectives: Objectives besides the latency
            (:func:`~esm_host.search.objectives.parse_objective`). By default the FLOPs are
            maximised, as a stand-in for accuracy.
        max_latency_ms: Latency limit, ms: one for all devices or one per device. Empty for the
            whole front.
        limits: Limits of other quantities, such as ``"flops<=3e8"``, ``"accuracy>=70"`` or
            ``"energy_mj<=5"``. One of a metric holds on all devices; ``"pi4.energy_mj<=5"`` names
            one.
        method: Search method (:func:`~esm_host.search.methods.make_method`); None for the default.
            A path becomes absolute.
        proxy: Source of a proxy device (:func:`esm_host.sources.registry.load`). Its predictor
            proposes the front (One Proxy); it is adapted if it does not rank as the device does. Of
            a table with several devices the most similar one is used. ``""`` searches with the
            campaigns' predictors.
        measure: Largest number of architectures to measure; 0 returns predictions.
        batch: Number of architectures measured per round.
        probability: Probability that a result keeps ``max_latency_ms``, and the limits of metrics.
        seed: Random seed.
        contexts: Value of each context in which architectures are searched, by name. A context of
            which the campaigns drew one value may be left out.

    Raises:
        UsageError: a value is out of its range.
    """

    runs: tuple[str, ...]
    objectives: tuple[str, ...] = ()
    max_latency_ms: tuple[float, ...] = ()
    limits: tuple[str, ...] = ()
    method: str | None = None
    proxy: str = ""
    measure: int = 50
    batch: int = 10
    probability: float = 0.9
    seed: int = 0
    contexts: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.method is not None:
            object.__setattr__(self, "method", absolute(self.method))
        if not self.runs:
            raise UsageError("a search needs the folder of a campaign: give one")
        if len({Path(run).resolve() for run in self.runs}) < len(self.runs):
            raise UsageError("a campaign is named twice: name each device's once")
        if len(self.max_latency_ms) not in (0, 1, len(self.runs)):
            raise UsageError(
                f"{len(self.max_latency_ms)} times {argument('max_latency_ms')} for "
                f"{counted(len(self.runs), 'campaign')}: "
                "give one for all, or one for each in their order"
            )
        for value in self.max_latency_ms:
            if not 0 < value < math.inf:
                raise UsageError(
                    f"{argument('max_latency_ms')} {value:g}: give milliseconds above 0"
                )
        if not 0 < self.probability < 1:
            raise UsageError(
                f"{argument('probability')} {self.probability:g}: give a share, above 0 and below 1"
            )
        for name, least in (("measure", 0), ("batch", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{argument(name)} {getattr(self, name)}: give {least} or more")
        if self.proxy and (len(self.runs) > 1 or not self.measure):
            raise UsageError(
                f"{argument('proxy')} needs one campaign and {argument('measure')} 1 or more: "
                "the proxy stands for one device whose front is measured"
            )
        if self.proxy and len(self.metrics) > 1:
            raise UsageError(
                f"{argument('proxy')} predicts latencies only: leave out objectives and limits of "
                f"{self.metrics[1].title}"
            )
        specs = self.objective_specs
        names = [spec.quantity if spec.is_measured else spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise UsageError("an objective is given twice: give each once")
        for text in self.limits:
            self._limit(text)

    @property
    def objective_specs(self) -> tuple[ObjectiveSpec, ...]:
        """Objectives as given, the latency first."""
        specs = [parse_objective(text) for text in self.objectives or ("flops:max",)]
        latency = ObjectiveSpec("latency", "", False)
        return (latency, *(spec for spec in specs if spec.name != "latency"))

    @property
    def devices(self) -> list[str]:
        """Folder names, which prefix the devices' quantities; ``[""]`` for a single device."""
        return [Path(run).name for run in self.runs] if len(self.runs) > 1 else [""]

    @property
    def all_objectives(self) -> list[Objective]:
        """Objectives, the devices' latencies first."""
        return [
            objective
            for spec in self.objective_specs
            for objective in spec.objectives(self.devices)
        ]

    @property
    def metrics(self) -> list[CampaignMetric]:
        """Metrics that objectives and limits are of, the latency first."""
        names = {LATENCY, *(objective.name.rpartition(".")[2] for objective in self.all_objectives)}
        names |= {bounded_by(limit.name).rpartition(".")[2] for limit in self.all_limits}
        if ENERGY_DELAY in names:
            names.add(ENERGY.key)
        own = {spec.name for spec in self.objective_specs if spec.source}
        return [m for m in CAMPAIGN_METRICS.values() if m.key in names - own]

    @property
    def all_limits(self) -> list[Limit]:
        """Limits of the devices' latencies and of all other quantities."""
        devices = self.devices
        each = self.max_latency_ms
        if len(each) == 1:
            each = each * len(devices)
        found = [
            Limit(quantity(AT_MOST, device), value)
            for device, value in zip(devices if each else (), each, strict=True)
        ]
        return found + [limit for text in self.limits for limit in self._limit(text)]

    def _limit(self, text: str) -> list[Limit]:
        """Return a limit; of a metric one for each device."""
        own = {spec.name: spec.quantity for spec in self.objective_specs if spec.source}
        known = {**COUNTED, **own}
        match = _LIMIT.fullmatch(text)
        name, sign, number = match.groups() if match else ("", "", "0")
        device, _, plain = name.rpartition(".")
        metric = None if name in known else _LIMITED.get(plain)
        devices = [each for each in self.devices if device in ("", each)]
        try:
            value = float(number)
            names = [quantity(metric.at_most, d) for d in devices] if metric else [known[name]]
        except (KeyError, ValueError):
            names = []
        if not names:
            hint = (
                f"; limit the latency by {argument('max_latency_ms')}" if "latency" in text else ""
            )
            raise UsageError(
                f"{argument('limits')} '{text}': give NAME<=NUMBER or NAME>=NUMBER of "
                f"{', '.join([*known, *(m.key for m in dict.fromkeys(_LIMITED.values()))])}{hint}"
            )
        if not math.isfinite(value):
            raise UsageError(f"{argument('limits')} '{text}': give a finite number")
        if metric and sign == ">=":
            raise UsageError(f"{argument('limits')} '{text}': {name} has an upper limit, write <=")
        return [Limit(each, value, operator.eq(sign, ">=")) for each in names]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSettings:
        """Build from the result of :meth:`to_json`.

        Raises:
            DatasetError: a program with other settings wrote it.
        """
        try:
            values: dict[str, Any] = {name: _tuple(value) for name, value in data.items()}
            return cls(**values)
        except TypeError as error:
            raise DatasetError(
                f"the stored settings are unreadable ({error}): use the esm-profiler that wrote it"
            ) from error


def _tuple(value: Any) -> Any:
    """Convert a list, as JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


class SearchFolder:
    """Files of a search."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.rounds = path / "rounds.json"
        self.front = path / "front.json"

    def read_settings(self) -> SearchSettings:
        """Return the settings of the folder's search.

        Raises:
            UsageError: there is no search.
            DatasetError: the settings are damaged.
        """
        try:
            return SearchSettings.from_json(json.loads(self.settings.read_text()))
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"{self.path} holds no search: leave {argument('resume')} out"
            ) from None
        except (ValueError, AttributeError) as error:
            raise DatasetError(
                f"{self.settings} is damaged ({error}): restore it from a copy"
            ) from error
