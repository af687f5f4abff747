"""Sources of metrics beside latency: plug-ins that watch a model's visits.

They run in the measuring process. ``esm-agent serve --metrics`` names them: classes in files, or
entry points of installed packages in the group ``esm.metrics``.
"""

from __future__ import annotations

import inspect
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from esm_protos.metrics import KNOWN, Metric
from esm_protos.plugins import Family, PluginError, described

log = logging.getLogger(__name__)


class MetricSource(ABC):
    """Source of one or more metrics of a model.

    It is made once. It is started before each visit of a model and stopped after it; nothing else
    runs meanwhile. A visit is a few inferences in a row.

    Attributes:
        metrics: what it measures. ``aggregate`` says how the values of a model's visits are put
            together.
    """

    metrics: ClassVar[tuple[Metric, ...]]

    @abstractmethod
    def start(self) -> None:
        """Begin a visit."""

    @abstractmethod
    def stop(self, inferences: int) -> Mapping[str, float]:
        """End a visit and return its values by their metrics' keys; what is not known is absent.

        Args:
            inferences: of the visit, counted or not, 1 or more.
        """


SOURCES = Family(
    what="metric source",
    group="esm.metrics",
    base="esm_agent.measure.sources:MetricSource",
    builtin={},
    required=("metrics",),
)


def load_sources(names: Sequence[str]) -> list[MetricSource]:
    """Return new sources.

    Args:
        names: ``path/to/file.py:Class``, or entry points.

    Raises:
        PluginError: there is no such source, or it cannot be made, or its metric has a key that is
            taken.
    """
    sources: list[MetricSource] = []
    taken = set(KNOWN)
    for name in names:
        made = SOURCES.load(name)
        try:
            sources.append(made())
        except Exception as error:  # anything that a user's class may do
            raise PluginError(f"metric source '{name}': {_described(error, made)}") from error
        for metric in made.metrics:
            if metric.key in taken:
                raise PluginError(f"metric source '{name}': {metric.key} is taken: rename its key")
            taken.add(metric.key)
    return sources


class VisitMetrics:
    """What sources measure of the models of one block.

    A source that fails is left out from then on, and the agent's log says why.

    Args:
        tick: told that an inference is over, of a visit or not.
    """

    def __init__(self, sources: Sequence[MetricSource], tick: Callable[[], None]) -> None:
        self._sources = list(sources)
        self._tick = tick
        self._values: dict[int, dict[str, list[float]]] = {}
        self._model: int | None = None
        self._inferences = 0

    def begin(self, model: int) -> None:
        """Start the sources for a visit of a model, by its index in the block."""
        self.end()
        self._model, self._inferences = model, 0
        for source in list(self._sources):
            try:
                source.start()
            except Exception as error:
                self._drop(source, error)

    def tick(self) -> None:
        """Count an inference."""
        self._inferences += 1
        self._tick()

    def end(self) -> None:
        """Stop the sources, if a visit is under way."""
        model, self._model = self._model, None
        if model is None or not self._inferences:
            return
        for source in list(self._sources):
            try:
                found = _checked(source, source.stop(self._inferences))
            except Exception as error:
                self._drop(source, error)
                continue
            for key, value in found.items():
                self._values.setdefault(model, {}).setdefault(key, []).append(value)

    def values(self, model: int) -> dict[str, float]:
        """Return the values of a model's visits, put together."""
        taken = self._values.get(model, {})
        metrics = {m.key: m for source in self._sources for m in source.metrics}
        return {key: metrics[key].one(v) for key, v in taken.items() if key in metrics}

    def _drop(self, source: MetricSource, error: Exception) -> None:
        self._sources.remove(source)
        log.warning(
            "metric source %s is left out of this block: %s",
            type(source).__name__,
            _described(error, type(source)),
        )


def _described(error: Exception, source: type[MetricSource]) -> str:
    """Return an error on one line, with the line of the source's file that it comes from."""
    return described(error, Path(inspect.getfile(source)))


def _checked(source: MetricSource, values: Mapping[str, float]) -> dict[str, float]:
    """Return values as numbers; raise ValueError for a key that is unknown, and what is none."""
    known = {metric.key for metric in source.metrics}
    found = {}
    for key, value in values.items():
        if key not in known or not math.isfinite(value):
            raise ValueError(f"{key}={value}: give finite numbers of {', '.join(sorted(known))}")
        found[key] = float(value)
    return found
