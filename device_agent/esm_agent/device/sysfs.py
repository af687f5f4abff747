"""Readers of the kernel's small files; a missing, unreadable or invalid value is None."""

from __future__ import annotations

import re
from pathlib import Path

CPU = "sys/devices/system/cpu"

# Names of sensors of the processor or its chip: cpu-thermal (Pi), bcm2835_thermal (older Pi),
# x86_pkg_temp, soc-thermal and bigcore0-thermal (Rockchip), CPU-therm (Jetson), TCPU (laptops).
# Also names of hwmon drivers.
_CPU_SENSOR = re.compile(r"cpu|soc|pkg|package|core|bcm2\d+|k\d+temp|zenpower", re.IGNORECASE)


def read(path: Path | str) -> str | None:
    """Return a file's text without surrounding space."""
    try:
        # Path.read_text() is several times slower, and telemetry reads dozens of files.
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").strip("\0 \n\t")
    except (OSError, ValueError):
        return None


def number(path: Path | str, base: int = 10) -> int | None:
    """Return the integer that is the whole content of a file."""
    return parse(read(path), base)


def parse(text: str | None, base: int = 10) -> int | None:
    """Return a text as an integer."""
    try:
        return None if text is None else int(text, base)
    except ValueError:
        return None


def cpu_folders(root: Path) -> list[Path]:
    """Return the folders ``cpu0``, ``cpu1``, ... in the order of their numbers."""
    folders = (root / CPU).glob("cpu[0-9]*")
    return sorted(folders, key=lambda folder: int(re.sub(r"\D", "", folder.name) or 0))


def thermal_zones(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders of the processor's thermal zones, and those of all zones."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    return [zone for zone in zones if _is_cpu(zone / "type")], zones


def cpu_hwmons(root: Path) -> list[Path]:
    """Return the folders of the processor's hardware monitors (coretemp, k10temp)."""
    return [
        hwmon
        for hwmon in sorted((root / "sys/class/hwmon").glob("hwmon*"))
        if _is_cpu(hwmon / "name")
    ]


def _is_cpu(path: Path) -> bool:
    name = read(path) or ""
    return bool(_CPU_SENSOR.search(name)) and "gpu" not in name.lower()
