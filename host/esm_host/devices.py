"""Devices by name, as ``esm-host devices`` has them: ``esm_host.devices``.

Names and how to come in are in ``$XDG_CONFIG_HOME/esm/devices.toml``, or the file that ESM_CONFIG
names; command and Python share it.

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
from esm_host.transport.discovery import Found
from esm_host.transport.overview import Row
from esm_host.transport.pairing import Added
from esm_protos.messages import DeviceInfo, Diagnosis

__all__ = [
    *("Added", "Found", "Row", "add", "doctor", "find", "group", "groups", "info", "list"),
    *("remove", "rename"),
]


def info(name: str) -> DeviceInfo:
    """What a device is, what its agent takes, and how it is now.

    Args:
        name: ``"local"``, ``"host:port"`` or a name.

    Raises:
        UsageError: the name is unknown.
        DeviceError: nobody answers, or does not let us in.
    """
    with _devices.connect(name) as profiler:
        return profiler.device_info()


def doctor(name: str, seconds: float = 10.0, *, wait: bool = True) -> Diagnosis:
    """What on a device would spoil measurements; ``.fit`` says whether it can measure at all.

    Args:
        name: ``"local"``, ``"host:port"`` or a name.
        seconds: how long built-in models are timed, 0.1 to 600.
        wait: False gives up on a device that somebody else uses.

    Raises:
        UsageError: the name is unknown.
        BusyError: somebody else uses it and ``wait`` is False.
        DeviceError: nobody answers, or the agent refuses.
    """
    with _devices.connect(name) as profiler:
        profiler.device_info()  # first, so that nobody waits for a device that is not there
        profiler.reserve("doctor", wait)
        return profiler.diagnose(seconds)


def find(seconds: float = 3.0) -> tuple[Found, ...]:
    """Agents of this network that announce themselves; what they say is not proven.

    Raises:
        DeviceError: this machine has no network to listen in.
    """
    return tuple(_discovery.find(seconds))


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
) -> Added:
    """Gives a device a name, once it answers; ``esm-agent pair`` prints what it takes.

    A device of another machine without a token or certificates is added with a Python warning:
    anybody in between reads and changes what is sent.

    Args:
        address: ``"host:port"``.
        token: without it ESM_TOKEN serves, and is not stored.
        fingerprint: of the agent's certificate, ``"sha256:..."``.
        ca, certificate, key: mutual TLS, files in PEM.
        force: replaces a device of the same name.

    Raises:
        UsageError: the arguments do not go together, or the name is taken.
        UnreachableError: nobody answers.
        AuthError: the agent is another one, or does not let us in.
    """
    return _pairing.add(
        name,
        address,
        token,
        fingerprint,
        None if ca is None else Path(ca),
        None if certificate is None else Path(certificate),
        None if key is None else Path(key),
        force,
        lambda text: warnings.warn(text, stacklevel=4),
    )


def remove(name: str, *, force: bool = False) -> tuple[str, ...]:
    """Forgets a device, with its token and its pinned certificate, or a group.

    Args:
        force: takes it out of its groups as well.

    Returns:
        Groups that it was the last one of, and which are gone with it.

    Raises:
        UsageError: the name is unknown, or the device is in a group.
    """
    return _naming.remove(name, force)


def rename(old: str, new: str) -> None:
    """Gives a device, in its groups too, or a group another name; campaigns keep the old one.

    Raises:
        UsageError: there is no such name, or the new one is taken.
    """
    _naming.rename(old, new)


def group(name: str, members: Sequence[str]) -> None:
    """Gives several devices one name together; replaces a group of that name.

    Raises:
        UsageError: a device is unknown, or the name is a device's.
    """
    _naming.save_group(name, members)


def groups() -> dict[str, tuple[str, ...]]:
    """Devices of every group, by its name."""
    return _devices.groups()


# Last: within this module it hides Python's.
def list() -> tuple[Row, ...]:
    """Devices that have a name: who uses them, what runs there. Those that do not answer say why.

    ``pandas.DataFrame(esm_host.devices.list())`` is a table of them.

    Raises:
        UsageError: the configuration cannot be understood.
    """
    return tuple(_overview.overview())
