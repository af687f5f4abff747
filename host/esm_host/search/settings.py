"""What a search is asked for."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from esm_host.arguments import argument
from esm_host.errors import DatasetError, UsageError
from esm_host.search.latency import AT_MOST, LATENCY, quantity
from esm_host.search.objectives import COUNTED, Wish, read_wish
from esm_host.search.problem import Limit, Objective
from esm_protos.plugins import absolute

_LIMIT = re.compile(r"\s*(\w+)\s*(<=|>=)\s*([-+0-9.eE]+)\s*")


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides what a search finds.

    Attributes:
        runs: folders of campaigns, one per device that is searched for.
        objectives: as :func:`~esm_host.search.objectives.read_wish` takes them, the latency aside,
            which is one in any case; by default most FLOPs, a stand-in for accuracy.
        max_latency_ms: one for all devices, or one for each; none: the whole front.
        limits: of other quantities, as ``"flops<=3e8"`` or ``"accuracy>=70"``.
        method: as :func:`~esm_host.search.methods.make_method` takes it; a path becomes absolute.
        proxy: a source's name, as :func:`esm_host.sources.registry.load` takes it, by whose
            predictor the front is searched (One Proxy), adapted where it does not rank as the
            device does; ``""`` searches by the campaigns' own. Of several devices of a table the
            one that ranks most alike.
        measure: architectures to measure at most; 0 leaves it at predictions.
        batch: of these at a time.
        probability: of keeping ``max_latency_ms``, for what is found.
        seed: of everything random.

    Raises:
        UsageError: a value makes no sense.
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

    def __post_init__(self) -> None:
        if self.method is not None:
            object.__setattr__(self, "method", absolute(self.method))
        if not self.runs:
            raise UsageError("a search needs the folder of a campaign: give one")
        if len({Path(run).resolve() for run in self.runs}) < len(self.runs):
            raise UsageError("a campaign is named twice: name each device's once")
        if len(self.max_latency_ms) not in (0, 1, len(self.runs)):
            raise UsageError(
                f"{len(self.max_latency_ms)} times {argument('max_latency_ms')} for "
                f"{len(self.runs)} campaigns: "
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
                f"{argument('proxy')} stands in for one device, whose front is measured: give one "
                f"campaign, and {argument('measure')} 1 or more"
            )
        names = [wish.name for wish in self.wishes]
        if len(set(names)) < len(names):
            raise UsageError("an objective is given twice: give each once")
        for text in self.limits:
            self._limit(text)

    @property
    def wishes(self) -> tuple[Wish, ...]:
        """The objectives, the latency first."""
        wishes = [read_wish(text) for text in self.objectives or ("flops:max",)]
        return (Wish("latency", "", False), *(wish for wish in wishes if wish.name != "latency"))

    @property
    def devices(self) -> list[str]:
        """What tells the devices' quantities apart, their folders' names; ``""`` where there is
        one."""
        return [Path(run).name for run in self.runs] if len(self.runs) > 1 else [""]

    @property
    def all_objectives(self) -> list[Objective]:
        """The devices' latencies first."""
        latencies = [quantity(LATENCY, device) for device in self.devices]
        return [objective for wish in self.wishes for objective in wish.objectives(latencies)]

    @property
    def all_limits(self) -> list[Limit]:
        """Of the devices' latencies and of everything else."""
        devices = self.devices
        each = self.max_latency_ms
        if len(each) == 1:
            each = each * len(devices)
        found = [
            Limit(quantity(AT_MOST, device), value)
            for device, value in zip(devices if each else (), each, strict=True)
        ]
        return found + [self._limit(text) for text in self.limits]

    def _limit(self, text: str) -> Limit:
        match = _LIMIT.fullmatch(text)
        known = {**COUNTED, **{wish.name: wish.quantity for wish in self.wishes}}
        known.pop("latency", None)
        try:
            name, sign, number = match.groups() if match else ("", "", "")
            limit = Limit(known[name], float(number), operator.eq(sign, ">="))
        except (KeyError, ValueError):
            hint = f"; of the latency {argument('max_latency_ms')}" if "latency" in text else ""
            raise UsageError(
                f"{argument('limits')} '{text}': give NAME<=NUMBER or NAME>=NUMBER of "
                f"{', '.join(known)}{hint}"
            ) from None
        if not math.isfinite(limit.value):
            raise UsageError(f"{argument('limits')} '{text}': give a number that is not infinite")
        return limit

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SearchSettings:
        """Inverse of :meth:`to_json`.

        Raises:
            DatasetError: written by a program with other settings.
        """
        try:
            values: dict[str, Any] = {name: _tuple(value) for name, value in data.items()}
            return cls(**values)
        except TypeError as error:
            raise DatasetError(
                f"the stored settings are unreadable ({error}): use the esm-profiler that wrote it"
            ) from error


def _tuple(value: Any) -> Any:
    """JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


class SearchFolder:
    """Where a search keeps everything."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.rounds = path / "rounds.json"
        self.front = path / "front.json"

    def read_settings(self) -> SearchSettings:
        """Of the folder's search.

        Raises:
            UsageError: there is none.
            DatasetError: they are damaged.
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
