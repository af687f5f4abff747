"""Energy counter of NVIDIA GPUs (nvmlDeviceGetTotalEnergyConsumption)."""

from __future__ import annotations

from collections.abc import Callable

from esm_agent.energy.source import EnergySource, SensorError
from esm_protos.energy import GPU
from esm_protos.messages import NOT_FOUND

_STEP_J = 1e-3


class Nvml(EnergySource):
    """Energy of one GPU, with its memory.

    Args:
        gpu: Name of the GPU, and the function that returns its counter, millijoules; None without
            a GPU.

    Raises:
        SensorError: there is no GPU, or it has no counter.
    """

    covers = GPU
    resolution_j = _STEP_J

    def __init__(self, gpu: tuple[str, Callable[[], float | None]] | None) -> None:
        if gpu is None:
            raise SensorError(NOT_FOUND)
        name, self._read = gpu
        self.name = f"NVML {name}"
        if self._read() is None:
            raise SensorError(f"{name} has no energy counter: it needs Volta or newer")

    def joules(self) -> float:
        millijoules = self._read()
        if millijoules is None:
            raise SensorError(f"{self.name} has no value any more")
        return millijoules / 1000
