"""Timing of a user's own ONNX files on devices, from the request to the result.

request = read_request([Path("a.onnx")], batches=(1, 8))
timing = time_models(connect, ["pi4", "local"], request, timing_spec())
"""

from esm_host.timing.request import Entry, read_request
from esm_host.timing.result import SCHEMA_VERSION, DeviceTiming, Result, Timing
from esm_host.timing.run import TimingSettings, TimingWatcher, time_block, time_models
from esm_host.timing.spec import RUNS_PER_VISIT, for_models, timing_spec
from esm_host.timing.spread import parse_duration

__all__ = [
    "RUNS_PER_VISIT",
    "SCHEMA_VERSION",
    "DeviceTiming",
    "Entry",
    "Result",
    "Timing",
    "TimingSettings",
    "TimingWatcher",
    "for_models",
    "parse_duration",
    "read_request",
    "time_block",
    "time_models",
    "timing_spec",
]
