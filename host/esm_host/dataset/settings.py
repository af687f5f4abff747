"""Settings of measuring: the devices, the runs of a model, and the quality control of blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from esm_host.errors import check_range
from esm_protos.messages import MeasureSpec

PRECISION = 0.02
"""Half-width of the 95 % interval that a model is measured to, as a share."""
LONG_VISITS = 20
"""Of so many rounds of a campaign, the visits of one are long: these tell how long warm models
take."""


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings:
    """Settings of measuring.

    Attributes:
        device: ``"local"``, ``"host:port"``, or a name of a device or a group.
        spec: settings of a measurement; by default 150 runs of a model at most, fewer where 2 % of
            the latency are reached earlier, with the agent's reference models timed along.
        references: number of the campaign's own reference models, which every block holds. Whether
            the agent's reference models are timed along is ``spec.references``.
        reference_tolerance_percent: deviation of a reference from which its block fails.
        max_remeasurements: of a block that failed.
        group_tolerance_percent: by which the pace of one of several devices may differ.
        block_size: architectures per block, references not counted.
        raw: latencies are as measured, not at the device's usual pace.

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
        check_range("references", self.references, 1, 64)
        check_range("reference_tolerance_percent", self.reference_tolerance_percent, 0, 10**6)
        check_range("max_remeasurements", self.max_remeasurements, 0, 1000)
        check_range("group_tolerance_percent", self.group_tolerance_percent, 0, 10**6)
        check_range("block_size", self.block_size, 1, 10_000)
