"""Power management chip of the Raspberry Pi 5 (``vcgencmd pmic_read_adc``)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from esm_agent.device.telemetry import Run, run_command
from esm_agent.energy.source import PowerMeter, SensorError
from esm_protos.energy import BOARD
from esm_protos.messages import NOT_FOUND

_COMMAND = ("vcgencmd", "pmic_read_adc")
_LINE = re.compile(r"(\w+)_([AV])\s+\w+\(\d+\)=(\d+(?:\.\d+)?)[AV]")
_STEP_W = 1e-3


class Pmic(PowerMeter):
    """Sum of voltage times current over a board's rails.

    USB devices and the losses before the rails are outside. A calibration against a meter at the
    plug corrects for them: ``slope`` and ``offset_w``, from a JSON file.

    Args:
        run: Function that runs ``vcgencmd``; None: as installed.
        calibration: JSON file such as ``{"slope": 1.1, "offset_w": 0.5}``; it may be missing.

    Raises:
        SensorError: there is no such chip, or the calibration is invalid.
    """

    covers = BOARD
    tick_s = 0.1
    resolution_j = _STEP_W * tick_s

    def __init__(self, run: Run | None = None, calibration: Path | None = None) -> None:
        if run is None and shutil.which("vcgencmd") is None:
            raise SensorError(NOT_FOUND)
        self._run = run or run_command
        self._slope, self._offset_w = _calibration(calibration)
        self.name = "PMIC" if (self._slope, self._offset_w) == (1, 0) else "PMIC, calibrated"
        try:
            self.watts()
        except (OSError, subprocess.SubprocessError) as error:
            raise SensorError(
                f"{' '.join(_COMMAND)} fails: {error}",
                "add the agent's user to the group video: sudo usermod -aG video $USER",
            ) from error

    def watts(self) -> float:
        rails: dict[str, dict[str, float]] = {}
        for rail, unit, value in _LINE.findall(self._run(_COMMAND)):
            rails.setdefault(rail, {})[unit] = float(value)
        powers = [rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2]
        if not powers:  # a Raspberry Pi 4 has the command, and no such chip
            raise SensorError(NOT_FOUND)
        return self._slope * sum(powers) + self._offset_w


def _calibration(path: Path | None) -> tuple[float, float]:
    """Return the slope and the offset, watts."""
    if path is None or not path.exists():
        return 1.0, 0.0
    try:
        told = json.loads(path.read_text())
        return float(told["slope"]), float(told["offset_w"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SensorError(
            f"{path} is no calibration ({type(error).__name__}: {error})",
            'write {"slope": 1.1, "offset_w": 0.5}',
        ) from error
