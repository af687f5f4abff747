"""Power monitors INA2xx and INA3221, as on Jetson boards.

Source: Linux, Documentation/hwmon/ina2xx.rst and ina3221.rst.
"""

from __future__ import annotations

import re
from pathlib import Path

from esm_agent.device import sysfs
from esm_agent.energy.source import PowerMeter, SensorError
from esm_protos.energy import BOARD
from esm_protos.messages import NOT_FOUND

FOLDER = "sys/class/hwmon"
_CHIP = re.compile(r"ina2\d\d|ina3221")
_INPUT = re.compile(r"(VDD|VIN|POM_5V|SYS_VIN).*_IN|VDD_IN")
"""Label of the channel at a Jetson's power input, which feeds all others."""
_CHANNELS = 3  # of an INA3221; channels beyond are shunts and sums
_STEP_W, _TICK_S = 1e-3, 0.1


class _Channel:
    """Channel with a file of microwatts, or files of millivolts and milliamperes."""

    def __init__(self, hwmon: Path, number: int, voltage: int) -> None:
        self._power = hwmon / f"power{number}_input"
        self._volts = hwmon / f"in{voltage}_input"
        self._amperes = hwmon / f"curr{number}_input"
        self.label = sysfs.read(hwmon / f"in{voltage}_label") or ""

    def watts(self) -> float | None:
        """Return the power, watts; None if the channel is switched off."""
        if (microwatts := sysfs.number(self._power)) is not None:
            return microwatts / 1e6
        volts, amperes = sysfs.number(self._volts), sysfs.number(self._amperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6


class Hwmon(PowerMeter):
    """Power at a board's input, or the sum of its measured rails.

    Args:
        root: Folder that holds ``sys``.

    Raises:
        SensorError: there is no such monitor, or it cannot be read.
    """

    covers = BOARD
    tick_s = _TICK_S

    def __init__(self, root: Path = Path("/")) -> None:
        chips: list[tuple[Path, str]] = []
        for hwmon in sorted((root / FOLDER).glob("hwmon*")):
            name = sysfs.read(hwmon / "name") or ""
            if _CHIP.fullmatch(name):
                chips.append((hwmon, name))
        if not chips:
            raise SensorError(NOT_FOUND)
        channels = [channel for chip in chips for channel in _channels(*chip)]
        self._channels = [each for each in channels if each.watts() is not None]
        if not self._channels:
            folders = ", ".join(str(hwmon) for hwmon, _ in chips)
            raise SensorError(f"no channel of {folders} has a power, or a voltage and a current")
        at_input = [each for each in self._channels if _INPUT.fullmatch(each.label)]
        self._channels = at_input[:1] or self._channels
        labels = ", ".join(filter(None, (each.label for each in self._channels)))
        self.name = f"{chips[0][1].upper()} {labels}".rstrip()
        periods_ms = [sysfs.number(hwmon / "update_interval") or 0 for hwmon, _ in chips]
        self.tick_s = max(*periods_ms, 1000 * _TICK_S) / 1000
        self.resolution_j = _STEP_W * self.tick_s

    def watts(self) -> float:
        powers = [each.watts() for each in self._channels]
        known = [watts for watts in powers if watts is not None]
        if len(known) < len(powers):
            raise SensorError(f"{self.name} has no value any more")
        return sum(known)


def _channels(hwmon: Path, name: str) -> list[_Channel]:
    """Return the channels of a chip; an INA2xx has its bus voltage as the second input."""
    if name == "ina3221":
        return [_Channel(hwmon, number, number) for number in range(1, _CHANNELS + 1)]
    return [_Channel(hwmon, 1, 1)]
