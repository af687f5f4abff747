"""Names of devices that lead to one agent, which differs from itself by noise only."""

from __future__ import annotations

from collections.abc import Mapping

from esm_host.errors import UsageError
from esm_protos.messages import DeviceInfo


def check_distinct(devices: Mapping[str, DeviceInfo]) -> None:
    """Raise UsageError if two names lead to the same agent.

    Agents that do not tell their instance pass.

    Args:
        devices: what the agents told, by name.
    """
    names: dict[str, str] = {}
    for name, device in devices.items():
        if device.instance and names.setdefault(device.instance, name) != name:
            raise same_agent(names[device.instance], name)


def same_agent(name: str, other: str) -> UsageError:
    """Return the error for two names of one agent."""
    return UsageError(f"{name} and {other} are the same agent: give one of them")
