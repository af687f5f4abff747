"""A small campaign that learns energy and peak memory, and the fake device's sensor of energy."""

from __future__ import annotations

from esm_host import Settings
from esm_protos.messages import EnergySensor, MeasureSpec

RAPL = EnergySensor("RAPL package-0", "package", 6e-5, 0.001)
ALL = "latency,energy,peak_memory"
SMALL = Settings(
    "any",
    resolution=32,
    width_mult=0.25,
    initial=20,
    max_models=20,
    block_size=5,
    references=2,
    bins=1,
    predictor="ridge",
    encoding="fc",
    target_accuracy_percent=50,
    spec=MeasureSpec(runs=12),
    verify=0,
    sampling="balanced",
    energy_time_s=3,
)
NET_W = 5.0
"""Power that an inference adds on the fake device."""
