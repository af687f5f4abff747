"""Metrics that a campaign learns to predict."""

from __future__ import annotations

from dataclasses import dataclass

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_protos import metrics
from esm_protos.metrics import Metric
from esm_protos.nearest import unknown


@dataclass(frozen=True)
class CampaignMetric:
    """Metric that a campaign learns to predict.

    Attributes:
        name: Name in settings, such as ``"energy"``.
        metric: The metric of a timed model.
    """

    name: str
    metric: Metric

    @property
    def key(self) -> str:
        """Name of the values in frames, JSON and searches, such as ``"energy_mj"``."""
        return self.metric.key

    @property
    def unit(self) -> str:
        return self.metric.unit

    @property
    def title(self) -> str:
        """Name in texts, such as ``"peak memory"``."""
        return self.name.replace("_", " ")

    @property
    def shown_unit(self) -> str:
        """Unit in reports and printed tables."""
        return "MB" if self.unit == "bytes" else self.unit

    @property
    def shown_factor(self) -> float:
        """Factor from the unit to the shown one."""
        return 1e-6 if self.unit == "bytes" else 1.0

    def named(self, what: str) -> str:
        """Return the name of a further quantity in the unit of the values.

        For ``"at_most"`` it is ``"energy_at_most_mj"``.
        """
        stem, _, unit = self.key.rpartition("_")
        return f"{stem}_{what}_{unit}"

    @property
    def at_most(self) -> str:
        """Name of the upper bounds of the values."""
        return self.named("at_most")

    @property
    def predicted(self) -> str:
        """Name of the column with held-out predictions."""
        return "predicted_ms" if self == LATENCY else self.named("predicted")

    def column(self, what: str) -> str:
        """Return the name of a column without a unit, such as ``"energy_verdict"``.

        Those of the latency have no prefix.
        """
        return what if self == LATENCY else f"{self.name}_{what}"


LATENCY = CampaignMetric("latency", metrics.LATENCY)
ENERGY = CampaignMetric("energy", metrics.ENERGY[0])
PEAK_MEMORY = CampaignMetric("peak_memory", metrics.PEAK_MEMORY)
CAMPAIGN_METRICS = {each.name: each for each in (LATENCY, ENERGY, PEAK_MEMORY)}
"""All such metrics, by name."""


def read_metrics(text: str) -> tuple[CampaignMetric, ...]:
    """Return the metrics of comma-separated names.

    Raises:
        UsageError: a name is unknown or given twice, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(
            f"{argument('metric')} names no metric: choose {', '.join(CAMPAIGN_METRICS)}"
        )
    for name in names:
        if name not in CAMPAIGN_METRICS:
            raise UsageError(f"{argument('metric')}: {unknown('metric', name, CAMPAIGN_METRICS)}")
        if names.count(name) > 1:
            raise UsageError(f"{argument('metric')} {text}: give each metric once")
    return tuple(CAMPAIGN_METRICS[name] for name in names)
