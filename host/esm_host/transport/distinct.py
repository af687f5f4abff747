"""Check for device names that lead to the same agent.

An agent compared with itself would differ by noise only.
"""

from __future__ import annotations

from collections.abc import Mapping

from esm_host.errors import UsageError
from esm_protos.messages import DeviceInfo


def check_distinct(devices: Mapping[str, DeviceInfo]) -> None:
    """Check that no two names lead to the same agent.

    Agents that do not report their instance pass.

    Args:
        devices: Device information by name.

    Raises:
        UsageError: two names lead to the same agent.
    """
    names: dict[str, str] = {}
    for name, device in devices.items():
        if device.instance and names.setdefault(device.instance, name) != name:
            raise same_agent(names[device.instance], name)


def same_agent(name: str, other: str) -> UsageError:
    """Return the error for two names of one agent."""
    return UsageError(f"{name} and {other} are the same agent: give one of them")
