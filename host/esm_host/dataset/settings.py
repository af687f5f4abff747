"""Settings of measuring: devices, runs of a model, and quality control of blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from esm_host.errors import check_range
from esm_host.typed import check_fields
from esm_protos.messages import MeasureSpec

PRECISION = 0.02
"""Half-width of the 95 % confidence interval at which a model is done, as a share."""
LONG_VISITS = 20
"""Rounds of visits from one with long visits to the next; long visits give warm latencies."""


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

    def __post_init__(self) -> None:
        check_fields(self)
        check_range("references", self.references, 1, 64)
        check_range("reference_tolerance_percent", self.reference_tolerance_percent, 0, 10**6)
        check_range("max_remeasurements", self.max_remeasurements, 0, 1000)
        check_range("group_tolerance_percent", self.group_tolerance_percent, 0, 10**6)
        check_range("block_size", self.block_size, 1, 10_000)
