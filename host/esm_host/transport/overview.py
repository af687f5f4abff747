"""Overview of all configured devices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from esm_host.errors import AuthError, EsmError, UnreachableError, UsageError
from esm_host.transport.devices import configured, connect
from esm_protos.messages import DeviceInfo

_ANSWER_S = 3.0
_AT_A_TIME = 16


@dataclass(frozen=True)
class Row:
    """State of one device; unknown values are None.

    Attributes:
        name: Name of the device.
        address: Address of its agent.
        state: ``free``, ``held``, ``draining``, ``unreachable``, ``not authorised``,
            ``misconfigured`` or ``refused``.
        error: Reason why the device did not answer, with the cure.
        owner: Owner of the current lease, as its host states it.
        purpose: Purpose of the lease, as its host states it.
        client: Client of the lease, as the agent identifies it.
        held_s: Age of the lease, s.
        waiting: Number of waiting clients.
        agent_version: Version of the agent.
        runtime: Runtime and its version.
        memory_free_bytes: Free memory, bytes.
    """

    name: str
    address: str
    state: str
    error: str | None = None
    owner: str | None = None
    purpose: str | None = None
    client: str | None = None
    held_s: float | None = None
    waiting: int | None = None
    agent_version: str | None = None
    runtime: str | None = None
    memory_free_bytes: int | None = None


def overview(answer_s: float = _ANSWER_S) -> list[Row]:
    """Query every device at once; a device that does not answer in time is unreachable.

    Args:
        answer_s: Time to wait for an answer, s.

    Raises:
        UsageError: the configuration is unreadable.
    """
    entries = configured()
    if not entries:
        return []

    def ask(name: str) -> Row:
        address = entries[name].address
        try:
            with connect(name, answer_s) as profiler:
                return _row(name, address, profiler.device_info())
        except EsmError as error:
            return Row(name, address, _state(error), str(error))

    with ThreadPoolExecutor(min(len(entries), _AT_A_TIME)) as pool:
        return list(pool.map(ask, entries))


def _row(name: str, address: str, info: DeviceInfo) -> Row:
    occupancy = info.occupancy
    holder = occupancy.holder
    return Row(
        name,
        address,
        "draining" if occupancy.draining else "held" if holder else "free",
        None,
        holder.owner if holder else None,
        holder.purpose if holder else None,
        holder.client if holder else None,
        holder.held_s if holder else None,
        occupancy.waiting,
        info.agent_version,
        info.runtime,
        info.state.memory_available_bytes,
    )


def _state(error: EsmError) -> str:
    if isinstance(error, UnreachableError):
        return "unreachable"
    if isinstance(error, AuthError):
        return "not authorised"
    return "misconfigured" if isinstance(error, UsageError) else "refused"
