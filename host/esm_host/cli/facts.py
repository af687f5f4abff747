"""Printed facts of a device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from esm_protos.messages import (
    NOT_FOUND,
    PI_THROTTLED_BITS,
    DeviceInfo,
    DeviceState,
    EnergySensor,
    GpuState,
    Limits,
)
from esm_protos.providers import ProviderInfo, ProviderOption
from esm_protos.text import counted

_WIDTH = 12
_OPEN = "any option of the provider, as ONNX Runtime takes it"


def lines(name: str, before: DeviceInfo, now: DeviceInfo, between_s: float) -> Iterator[str]:
    """Yield a line ``heading  text`` for each fact that the device reports.

    Args:
        name: Name of the device.
        before: Earlier facts; the counters of the two give the load.
        now: Current facts.
        between_s: Time between the two, s.
    """
    state = now.state
    facts = {
        "device": f"{name}: {now.hostname}",
        "hardware": f"{now.cpu_model}, {now.machine}, {counted(now.cpu_count, 'processor')}, "
        f"{_size(now.memory_bytes)}",
        "gpu": "; ".join(map(_gpu, state.gpus)),
        "system": f"{now.os}, Python {now.python_version}",
        "agent": f"{now.agent_version}, protocol {now.protocol_version}",
        "runtime": f"{now.runtime}, providers {', '.join(now.providers)}",
        "limits": _limits(now.limits),
        "cache": _size(now.limits.max_cache_bytes) if now.limits.max_cache_bytes else "none",
        "isolation": ", ".join(now.isolation) or "none",
        "in use": _occupancy(now),
        "clocks": _clocks(state),
        "temperature": "" if state.temperature_c is None else f"{state.temperature_c:.1f} C",
        "throttling": _throttling(state),
        "load": _load(before.state, state, between_s),
        "memory": _memory(state),
        "time": "" if now.time_unix_s is None else _time(now.time_unix_s),
    }
    for heading, text in facts.items():
        if text:
            yield f"{heading:{_WIDTH}} {text}"
    for provider in (*now.provider_table, *now.unusable_providers):
        if provider.version or provider.problem:  # older agents do not tell
            yield f"{'provider':{_WIDTH}} {provider.line}"
    for text in _energy(now.energy_sensors):
        yield f"{'energy':{_WIDTH}} {text}"
    for provider in now.provider_table:
        if provider.open_options:
            yield f"{'option':{_WIDTH}} --ep {provider.name} --ep-option NAME=VALUE ({_OPEN})"
        for option in provider.options:
            yield f"{'option':{_WIDTH}} {_option(provider, option)}"


def _energy(sensors: Sequence[EnergySensor]) -> list[str]:
    """Return the sensors of a device that exist, or the names of those that it looked for."""
    if existing := [sensor.line for sensor in sensors if sensor.problem != NOT_FOUND]:
        return existing
    looked_for = ", ".join(sensor.name for sensor in sensors)
    return [f"no sensor found (looked for {looked_for})"] if sensors else []


def _option(provider: ProviderInfo, option: ProviderOption) -> str:
    text = f"{option.values}; {option.default} by default"
    told = f": {option.help}" if option.help else ""
    return f"--ep {provider.name} --ep-option {option.name}={option.default} ({text}){told}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def _limits(limits: Limits) -> str:
    return (
        f"{counted(limits.max_block_models, 'model')} and {_size(limits.max_block_bytes)} a block, "
        f"{_size(limits.max_model_bytes)} a model, {_size(limits.max_memory_bytes)} of memory, "
        f"{limits.max_block_s:g} s"
    )


def _occupancy(info: DeviceInfo) -> str:
    occupancy, holder = info.occupancy, info.occupancy.holder
    waiting = f", {occupancy.waiting} waiting" if occupancy.waiting else ""
    if holder is not None:
        text = f"by {holder.owner} ({holder.purpose}), for {holder.held_s:.0f} s{waiting}"
    else:
        text = f"free{waiting}"
    return f"{text}; stopping, accepts no new work" if occupancy.draining else text


def _clocks(state: DeviceState) -> str:
    if not state.clock_mhz:
        return ""
    governors = ", ".join(dict.fromkeys(state.governors))
    return f"{_range(state.clock_mhz)} MHz" + (f" ({governors})" if governors else "")


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _throttling(state: DeviceState) -> str:
    told = []
    if (bits := state.pi_throttled) is not None:
        names = PI_THROTTLED_BITS.items()
        now = [name for bit, name in names if bits >> bit & 1]
        since = [name for bit, name in names if bits >> (bit + 16) & 1 and name not in now]
        told.append(f"now: {', '.join(now)}" if now else "not now")
        told += [f"since the start: {', '.join(since)}"] if since else []
    if state.throttle_events is not None:
        told.append(f"{state.throttle_events} events since the start")
    return "; ".join(told)


def _load(before: DeviceState, now: DeviceState, between_s: float) -> str:
    told = []
    if before.busy_s is not None and now.busy_s is not None:
        told.append(f"{max(0.0, now.busy_s - before.busy_s) / between_s:.1f} processors busy now")
    if now.load_1min is not None:
        told.append(f"{now.load_1min:.2f} over a minute")
    return ", ".join(told)


def _memory(state: DeviceState) -> str:
    told = []
    if state.memory_available_bytes is not None:
        told.append(f"{_size(state.memory_available_bytes)} available")
    if state.swap_used_bytes:
        told.append(f"{_size(state.swap_used_bytes)} swapped out")
    return ", ".join(told)


def _time(unix_s: float) -> str:
    """Return the device's time, and its difference from this workstation's clock."""
    text = f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"
    off = clock_off(unix_s)
    return f"{text}, {off}" if off else text


def clock_off(unix_s: float, least_s: float = 60.0) -> str:
    """Return a device's clock difference from this workstation, in words; empty below least_s."""
    off_s = unix_s - time.time()
    for unit, seconds in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if abs(off_s) >= max(seconds, least_s):
            side = "ahead of" if off_s > 0 else "behind"
            return f"{abs(off_s) / seconds:.0f} {unit} {side} this workstation's clock"
    return ""


def _gpu(gpu: GpuState) -> str:
    told = [gpu.name]
    told += [f"{gpu.clock_mhz:.0f} MHz"] if gpu.clock_mhz is not None else []
    told += [f"{gpu.temperature_c:.0f} C"] if gpu.temperature_c is not None else []
    told += [f"{gpu.power_w:.0f} W"] if gpu.power_w is not None else []
    told += [f"slowed by {', '.join(gpu.throttle_reasons)}"] if gpu.throttle_reasons else []
    return ", ".join(told)
