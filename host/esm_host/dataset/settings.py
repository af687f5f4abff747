"""Settings of measuring: devices, runs of a model, and quality control of blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from esm_host.dataset.campaign_metric import ENERGY, PEAK_MEMORY, CampaignMetric, read_metrics
from esm_host.errors import check_range
from esm_host.typed import check_fields
from esm_protos.messages import MOST_ENERGY_S, MeasureSpec

PRECISION = 0.02
"""Half-width of the 95 % confidence interval at which a model is done, as a share."""
LONG_VISITS = 20
"""Rounds of visits from one with long visits to the next; long visits give warm latencies."""
ENERGY_TIME_S = 40.0
"""Default time per model for its energy, s."""


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings:
    """Settings of measuring.

    Attributes:
        device: ``"local"``, ``"host:port"``, or the name of a device or a group.
        spec: Settings of a measurement. By default at most 150 runs of a model, fewer once its
            confidence interval is 2 %, with the agent's reference models timed in the same block
            (``spec.references``).
        references: Number of the campaign's own reference models, which every block holds.
        reference_tolerance_percent: Largest deviation of a reference at which a block passes.
        max_remeasurements: Largest number of repeats of a failed block.
        group_tolerance_percent: Largest difference in pace between the devices of a group.
        block_size: Architectures per block, references not counted.
        raw: Whether latencies are as measured instead of at the device's usual pace.
        metric: Metrics to learn, comma-separated: names in
            :data:`esm_host.dataset.campaign_metric.CAMPAIGN_METRICS`. The first one leads: it
            decides what is measured and when the campaign ends.
        energy_time_s: Time per model for its energy, s, if it is a metric.

    Raises:
        UsageError: a value is out of range.
    """

    device: str = field(kw_only=False)
    spec: MeasureSpec = field(
        default_factory=lambda: MeasureSpec(
            precision=PRECISION, references=True, long_visits=LONG_VISITS
        )
    )
    references: int = 4
    reference_tolerance_percent: float = 3.0
    max_remeasurements: int = 2
    group_tolerance_percent: float = 10.0
    block_size: int = 20
    raw: bool = False
    metric: str = "latency"
    energy_time_s: float = ENERGY_TIME_S

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("references", self.references, 1, 64)
        check_range("reference_tolerance_percent", self.reference_tolerance_percent, 0, 10**6)
        check_range("max_remeasurements", self.max_remeasurements, 0, 1000)
        check_range("group_tolerance_percent", self.group_tolerance_percent, 0, 10**6)
        check_range("block_size", self.block_size, 1, 10_000)
        check_range("energy_time_s", self.energy_time_s, 1, MOST_ENERGY_S)
        read_metrics(self.metric)

    @property
    def metrics(self) -> tuple[CampaignMetric, ...]:
        """Metrics to learn, the leading one first."""
        return read_metrics(self.metric)

    @property
    def lead(self) -> CampaignMetric:
        """Metric that decides what is measured and when the campaign ends."""
        return self.metrics[0]

    @property
    def energy_s(self) -> float:
        """Time per model for its energy, s; 0 if it is no metric."""
        return self.energy_time_s if ENERGY in self.metrics else 0.0

    @property
    def measures_memory(self) -> bool:
        """Whether peak memory is a metric."""
        return PEAK_MEMORY in self.metrics
