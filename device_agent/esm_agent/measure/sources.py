"""Plug-ins that measure metrics other than latency during a model's visits.

They run in the measuring process. ``esm-agent serve --metrics`` selects them: classes in files, or
entry points of installed packages in the group ``esm.metrics``.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from esm_agent.measure.threads import ThreadsUsed
from esm_protos.metrics import KNOWN, Metric
from esm_protos.plugins import Family, PluginError, described_in

log = logging.getLogger(__name__)


class MetricSource(ABC):
    """Source of one or more metrics of a model.

    It is created once, started before each visit of a model and stopped after it. Nothing else runs
    in between. A visit is a few inferences in a row.

    Attributes:
        metrics: Measured metrics. ``aggregate`` sets how the values of a model's visits are
            combined.
    """

    metrics: ClassVar[tuple[Metric, ...]]

    @abstractmethod
    def start(self) -> None:
        """Begin a visit."""

    @abstractmethod
    def stop(self, inferences: int) -> Mapping[str, float]:
        """End a visit and return its known values, by key of the metric.

        Args:
            inferences: Number of inferences of the visit, counted or not; 1 or more.
        """


SOURCES = Family(
    what="metric source",
    group="esm.metrics",
    base="esm_agent.measure.sources:MetricSource",
    builtin={},
    required=("metrics",),
)


def load_sources(names: Sequence[str]) -> list[MetricSource]:
    """Create metric sources.

    Args:
        names: Names: ``path/to/file.py:Class``, or entry points.

    Raises:
        PluginError: a source does not exist or cannot be created, or its metric's key is taken.
    """
    sources: list[MetricSource] = []
    taken = {name for metric in KNOWN.values() for name in (metric.key, metric.field)}
    for name in names:
        try:
            source = _created(name)
            for metric in source.metrics:
                for key in sorted({metric.key, metric.field} & taken):
                    raise PluginError(f"{key} is taken: rename its key")
                taken |= {metric.key, metric.field}
        except PluginError as error:
            raise PluginError(f"--metrics {name}: {error}") from error
        sources.append(source)
    return sources


def _created(name: str) -> MetricSource:
    """Create a metric source.

    Raises:
        PluginError: it does not exist or cannot be created, or its metrics are none.
    """
    made = SOURCES.load(name)
    try:
        source: MetricSource = made()
        metrics = source.metrics
    except Exception as error:  # anything that a user's class may do
        raise PluginError(described_in(error, made)) from error
    if not isinstance(metrics, tuple | list) or not all(isinstance(m, Metric) for m in metrics):
        raise PluginError(f"metrics is {metrics!r}: give a tuple of Metric")
    return source


class VisitMetrics:
    """Values that metric sources measure for the models of a block.

    A source that fails is dropped, and the agent's log has the reason.

    Args:
        sources: Metric sources.
        tick: Function called after each inference.
    """

    def __init__(self, sources: Sequence[MetricSource], tick: Callable[[], None]) -> None:
        self._sources = list(sources)
        self._tick = tick
        self._values: dict[int, dict[str, list[float]]] = {}
        self._model: int | None = None
        self._inferences = 0
        self._threads = ThreadsUsed()

    def begin(self, model: int) -> None:
        """Start the sources for a visit of a model, by its index in the block."""
        self.end()
        self._model, self._inferences = model, 0
        for source in list(self._sources):
            try:
                source.start()
            except Exception as error:
                self._drop(source, error)
        self._threads.begin()

    def tick(self) -> None:
        """Count an inference."""
        self._inferences += 1
        self._tick()

    def end(self) -> None:
        """Stop the sources, if a visit is under way."""
        model, self._model = self._model, None
        if model is None or not self._inferences:
            return
        self._threads.end(model)
        for source in list(self._sources):
            try:
                found = _checked(source, source.stop(self._inferences))
            except Exception as error:
                self._drop(source, error)
                continue
            for key, value in found.items():
                self._values.setdefault(model, {}).setdefault(key, []).append(value)

    def values(self, model: int) -> dict[str, float]:
        """Return the combined values of a model's visits, by key."""
        taken = self._values.get(model, {})
        metrics = {m.key: m for source in self._sources for m in source.metrics}
        return {key: metrics[key].one(v) for key, v in taken.items() if key in metrics}

    def threads_used(self, model: int) -> float:
        """Return the number of threads that a model used; 0 if its visits were too short."""
        return self._threads.used(model)

    def _drop(self, source: MetricSource, error: Exception) -> None:
        self._sources.remove(source)
        log.warning(
            "metric source %s is dropped for this block: %s",
            type(source).__name__,
            described_in(error, type(source)),
        )


def _checked(source: MetricSource, values: Mapping[str, float]) -> dict[str, float]:
    """Return values as numbers.

    Raises:
        TypeError: the values are not a mapping.
        ValueError: a key is unknown, or a value is not finite.
    """
    known = {metric.key for metric in source.metrics}
    if not isinstance(values, Mapping):
        raise TypeError(f"stop returned {values!r}: return a dict of {', '.join(sorted(known))}")
    found = {}
    for key, value in values.items():
        if key not in known or not math.isfinite(value):
            raise ValueError(f"{key}={value}: give finite numbers of {', '.join(sorted(known))}")
        found[key] = float(value)
    return found
