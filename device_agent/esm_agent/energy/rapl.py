"""RAPL counters of Intel and AMD processors (Linux, Documentation/power/powercap/powercap.rst)."""

from __future__ import annotations

from pathlib import Path

from esm_agent.device import sysfs
from esm_agent.energy.source import EnergySource, SensorError
from esm_protos.energy import PACKAGE
from esm_protos.messages import NOT_FOUND

FOLDER = "sys/class/powercap"
_TICK_S = 0.001
"""Intel, Software Developer's Manual, volume 3, 16.10.3: the counter changes about every 1 ms."""
_STEP_J = 61e-6  # 2^-14 J on most processors


class Rapl(EnergySource):
    """Energy of all processor packages.

    Only domains named ``package`` count: cores and graphics are inside them. The second interface
    ``intel-rapl-mmio`` has the same packages again.

    Args:
        root: Folder that holds ``sys``.

    Raises:
        SensorError: there is no package, or it cannot be read.
    """

    covers = PACKAGE
    tick_s = _TICK_S
    resolution_j = _STEP_J

    def __init__(self, root: Path = Path("/")) -> None:
        folders = sorted((root / FOLDER).glob("intel-rapl:*"))
        found = [(folder, sysfs.read(folder / "name") or "") for folder in folders]
        packages = [(folder, name) for folder, name in found if name.startswith("package")]
        if not packages:
            raise SensorError(NOT_FOUND)
        self.name = f"RAPL {', '.join(name for _, name in packages)}"
        self._domains = [_Domain(folder / "energy_uj") for folder, _ in packages]

    def joules(self) -> float:
        return sum(domain.joules() for domain in self._domains)


class _Domain:
    """Counter that starts again at 0 beyond its range."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._range_uj = sysfs.number(path.parent / "max_energy_range_uj") or 0
        self._last_uj = self._read()
        self._total_uj = 0

    def joules(self) -> float:
        now = self._read()
        step = now - self._last_uj
        if step < 0:
            step += self._range_uj + 1
        if step < 0:
            raise SensorError(f"{self._path} went back from {self._last_uj} to {now}")
        self._total_uj += step
        self._last_uj = now
        return self._total_uj / 1e6

    def _read(self) -> int:
        try:
            return int(self._path.read_text())
        except PermissionError:
            raise SensorError(
                f"only root may read {self._path}", f"sudo chmod a+r {self._path}"
            ) from None
        except (OSError, ValueError) as error:
            raise SensorError(f"{self._path} cannot be read: {error}") from error
