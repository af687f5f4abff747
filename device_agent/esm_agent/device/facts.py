"""What this device is: facts that a host stores with every measurement."""

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
    """Facts of this machine and of the runtime that measures on it.

    Args:
        cpus: that it measures on; empty: all that this program may use.
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
    )


def memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this program can have: physical, or its control group's limit.

    Args:
        root: where ``proc`` and ``sys`` are; for tests.
    """
    physical = physical_bytes()
    limit = read_groups(root).memory_limit()
    return physical if limit is None else min(physical, limit)


def physical_bytes() -> int:
    """Return this machine's memory, whatever a control group may have of it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the processors that this program may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_model(root: Path = Path("/")) -> str:
    """Return the processor's name as the kernel has it.

    x86 says it in cpuinfo, single-board computers in the device tree.

    Args:
        root: where ``proc`` is; for tests.
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
