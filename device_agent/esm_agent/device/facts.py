"""Facts of this device, which a host stores with every measurement."""

from __future__ import annotations

import os
import platform
import socket
import uuid
from pathlib import Path

from esm_agent import __version__
from esm_agent.device.cgroups import read_groups
from esm_protos.messages import PROTOCOL_VERSION, DeviceInfo, DeviceState, Limits
from esm_protos.providers import ProviderInfo


def device_info(
    runtime: str,
    providers: tuple[ProviderInfo, ...],
    limits: Limits,
    cpus: tuple[int, ...] = (),
    isolation: tuple[str, ...] = (),
) -> DeviceInfo:
    """Return the facts of this machine and of its runtime.

    Args:
        runtime: Name and version of the runtime.
        providers: Execution providers that it can measure on.
        limits: Limits of the agent.
        cpus: Numbers of the processors it measures on; empty for all available ones.
        isolation: Restrictions of the measuring process.
    """
    return DeviceInfo(
        protocol_version=PROTOCOL_VERSION,
        agent_version=__version__,
        hostname=socket.gethostname(),
        machine=platform.machine(),
        cpu_model=cpu_model(),
        cpu_count=len(cpus or usable_cpus()),
        memory_bytes=memory_bytes(),
        os=platform.platform(),
        python_version=platform.python_version(),
        runtime=runtime,
        providers=tuple(provider.name for provider in providers),
        provider_table=providers,
        limits=limits,
        state=DeviceState(at_ns=0),
        isolation=isolation,
        cpu_quota=read_groups().cpu_quota(),
        instance=uuid.uuid4().hex,
        session_settings=True,
    )


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory available to this program: all, or its control group's limit, bytes.

    Args:
        root: Folder that holds ``proc`` and ``sys``; for tests.
    """
    physical = physical_bytes()
    limit = read_groups(root).memory_limit()
    return physical if limit is None else min(physical, limit)


def physical_bytes() -> int:
    """Return the memory of this machine, regardless of control groups, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_cpus() -> tuple[int, ...]:
    """Return the numbers of the processors that this program may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_model(root: Path = Path("/")) -> str:
    """Return the processor's name.

    It is in cpuinfo on x86, and in the device tree on single-board computers.

    Args:
        root: Folder that holds ``proc``; for tests.
    """
    try:
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    try:
        return (root / "proc/device-tree/model").read_text().strip("\0\n ")
    except OSError:
        return platform.processor() or "unknown"
