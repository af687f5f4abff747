"""Devices by name, as in ``esm-host devices``: ``esm_host.devices``.

Names and credentials are in ``$XDG_CONFIG_HOME/esm/devices.toml``, or in the file of ESM_CONFIG.
The command and Python share this file.

Example::

    esm_host.devices.add("pi4", "192.168.1.20:7343", token="esm_...", fingerprint="sha256:...")
    esm_host.devices.info("pi4").runtime
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from esm_host.transport import devices as _devices
from esm_host.transport import discovery as _discovery
from esm_host.transport import naming as _naming
from esm_host.transport import overview as _overview
from esm_host.transport import pairing as _pairing
from esm_host.transport.discovery import AnnouncedAgent
from esm_host.transport.overview import Row
from esm_host.transport.pairing import AddedDevice
from esm_host.typed import typed
from esm_protos.messages import DeviceInfo, Diagnosis

__all__ = [
    *("AddedDevice", "AnnouncedAgent", "Row", "add", "doctor", "find", "group", "groups", "info"),
    *("list", "remove", "rename"),
]


@typed
def info(name: str) -> DeviceInfo:
    """Return the facts, limits and current state of a device.

    Args:
        name: ``"local"``, ``"host:port"`` or a name.

    Raises:
        UsageError: the name is unknown.
        DeviceError: no agent answers, or it rejects this host.
    """
    with _devices.connect(name) as profiler:
        return profiler.device_info()


@typed
def doctor(name: str, seconds: float = 10.0, *, wait: bool = True) -> Diagnosis:
    """Diagnose a device for causes of bad measurements; ``.fit`` is False if it cannot measure.

    Args:
        name: ``"local"``, ``"host:port"`` or a name.
        seconds: Time to run built-in models, 0.1 to 600 s.
        wait: Whether to wait for a device that is in use; if False it raises BusyError.

    Raises:
        UsageError: the name is unknown.
        BusyError: the device is in use and ``wait`` is False.
        DeviceError: no agent answers, or the agent refuses.
    """
    with _devices.connect(name) as profiler:
        profiler.device_info()  # report an unreachable device before waiting
        profiler.reserve("doctor", wait)
        return profiler.diagnose(seconds)


@typed
def find(seconds: float = 3.0) -> tuple[AnnouncedAgent, ...]:
    """Return the agents that announce themselves in this network; their claims are unverified.

    Args:
        seconds: Time to listen, s.

    Raises:
        DeviceError: this machine has no network to listen in.
    """
    return tuple(_discovery.find(seconds))


@typed
def add(
    name: str,
    address: str,
    *,
    token: str | None = None,
    fingerprint: str | None = None,
    ca: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    force: bool = False,
) -> AddedDevice:
    """Give a device a name after its agent answered; ``esm-agent pair`` prints the arguments.

    A device on another machine without a token or certificates causes a Python warning: others on
    the network can read and change the traffic.

    Args:
        name: Name of the device.
        address: Address, ``"host:port"``.
        token: Token; None uses ESM_TOKEN, which is not stored.
        fingerprint: Fingerprint of the agent's certificate, ``"sha256:..."``.
        ca: Certificate of the agent's authority for mutual TLS, PEM file.
        certificate: Certificate of this host for mutual TLS, PEM file.
        key: Key of this host's certificate, PEM file.
        force: Whether to replace a device of the same name.

    Raises:
        UsageError: the arguments do not fit together, or the name is taken.
        UnreachableError: no agent answers.
        AuthError: another agent answers, or the agent rejects the token or certificate.
    """
    return _pairing.add(
        name,
        address,
        token,
        fingerprint,
        _pairing.MutualTls.of(
            None if ca is None else Path(ca),
            None if certificate is None else Path(certificate),
            None if key is None else Path(key),
        ),
        force,
        lambda text: warnings.warn(text, stacklevel=5),
    )


@typed
def remove(name: str, *, force: bool = False) -> tuple[str, ...]:
    """Delete a device with its token and pinned certificate, or a group.

    Args:
        name: Name of the device or group.
        force: Whether to remove the device from its groups too.

    Returns:
        Groups that became empty and were deleted too.

    Raises:
        UsageError: the name is unknown, or the device is in a group.
    """
    return _naming.remove(name, force)


@typed
def rename(old: str, new: str) -> None:
    """Rename a device, also in its groups, or a group; campaigns keep the old name.

    Raises:
        UsageError: the old name is unknown, or the new one is taken.
    """
    _naming.rename(old, new)


@typed
def group(name: str, members: Sequence[str]) -> None:
    """Give several devices a common name; replace a group of that name.

    Raises:
        UsageError: a device is unknown, or the name is that of a device.
    """
    _naming.save_group(name, members)


def groups() -> dict[str, tuple[str, ...]]:
    """Return the devices of every group, by its name."""
    return _devices.groups()


# Last, because it hides the built-in list in this module.
def list() -> tuple[Row, ...]:
    """Return all named devices with their users and runtimes, or their errors.

    ``pandas.DataFrame(esm_host.devices.list())`` makes a table.

    Raises:
        UsageError: the configuration is unreadable.
    """
    return tuple(_overview.overview())
