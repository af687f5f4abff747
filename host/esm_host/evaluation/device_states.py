"""Device states as rows of a table."""

from __future__ import annotations

from esm_protos.messages import DeviceState

STATE_COLUMNS = (
    *("at_s", "clock_mhz", "temperature_c", "load_1min", "memory_available_bytes"),
    *("throttle_events", "pi_throttled", "gpu_clock_mhz", "gpu_temperature_c", "gpu_power_w"),
)


def state_row(state: DeviceState) -> dict[str, float | None]:
    """Return a state as a row; None where the device reports no value.

    ``clock_mhz`` is that of the fastest core, as the others may idle. Of several GPUs the first
    counts.
    """
    row: dict[str, float | None] = {
        "at_s": state.at_ns / 1e9,
        "clock_mhz": max(state.clock_mhz, default=None),
    }
    for name in STATE_COLUMNS[2:7]:
        row[name] = getattr(state, name)
    gpu = state.gpus[0] if state.gpus else None
    for name in STATE_COLUMNS[7:]:
        row[name] = getattr(gpu, name.removeprefix("gpu_"), None)
    return row
