"""Progress of blocks on stderr: a line per device in a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from esm_protos.messages import Progress, Standing, State
from esm_protos.terminal import shows_escapes
from esm_protos.text import printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_REDRAWS_PER_S = 2  # drawing disturbs timings if this machine is the device
_SURE_AFTER_S = 3.0  # earlier estimates of the time left are too uncertain
_WORTH_A_LINE_S = 30.0


class DeviceLines:
    """Display of the progress of devices that measure at the same time.

    Args:
        devices: Names of the devices.
        quiet: Whether to print nothing.
    """

    def __init__(self, devices: Sequence[str], quiet: bool) -> None:
        self._lines = dict.fromkeys(devices, "connecting")
        self._states: dict[str, str] = {}
        self._began: dict[str, tuple[float, float]] = {}
        self._measuring: dict[str, tuple[float, float]] = {}
        self._loading = LoadingTimes()
        self._told_loading: dict[str, float] = {}
        self._told: set[str] = set()
        self._quiet = quiet
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self._quiet and shows_escapes(sys.stderr):
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self._table,
                console=Console(stderr=True, highlight=False),
                refresh_per_second=_REDRAWS_PER_S,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, device: str, progress: Progress) -> None:
        """Show the progress of a device; called from the devices' threads."""
        if self._quiet:
            return
        with self._lock:
            left_s = self._left_s(device, progress)
            loading_s = self._loading.seconds(device, progress)
            self._lines[device] = printable(self._text(device, progress, left_s))
            state = printable(_state(progress))
            if left_s is not None and left_s >= _WORTH_A_LINE_S:
                if self._live is None and device not in self._told:
                    self._write(f"{device}: {state}, at most {duration(left_s)} left")
                self._told.add(device)
            if self._live is None and self._states.get(device) != state:
                self._write(f"{device}: {state}")
            elif self._live is None and loading_s - self._told_loading.get(device, 0.0) >= (
                _WORTH_A_LINE_S
            ):
                self._write(f"{device}: {loading(loading_s)}")
                self._told_loading[device] = loading_s
            if not loading_s:
                self._told_loading.pop(device, None)
            self._states[device] = state

    def wait(self, device: str, done: int, total: int, seconds: float) -> None:
        """Show when a device's next block begins; called from the devices' threads."""
        if self._quiet:
            return
        line = f"{done} of {total} blocks done, the next one in {duration(seconds)}"
        with self._lock:
            self._lines[device] = line
            self._states.pop(device, None)
            if self._live is None:
                self._write(f"{device}: {line}")

    def _write(self, line: str) -> None:
        # Whole lines, so that those of several devices do not mix.
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def _left_s(self, device: str, progress: Progress) -> float | None:
        """Return the measuring time left, s; None while it is unknown."""
        now, fraction = time.monotonic(), progress.fraction
        if progress.state is not State.MEASURING:
            self._measuring.pop(device, None)
            return None
        began_at, before = self._measuring.setdefault(device, (now, fraction))
        if fraction < before:  # the next block
            self._measuring[device] = (now, fraction)
        elif now - began_at >= _SURE_AFTER_S and fraction > before:
            return (now - began_at) / (fraction - before) * (1 - fraction)
        return None

    def _text(self, device: str, progress: Progress, left_s: float | None) -> str:
        if progress.standing is not None and progress.standing.ahead:
            return waiting(progress.standing)
        if progress.state is State.MEASURING:
            left = "" if left_s is None else f", at most {duration(left_s)} left"
            return f"measuring {100 * progress.fraction:.0f} %{left}"
        if progress.state is not State.UPLOADING or progress.total_bytes is None:
            return str(progress.state.value)
        done = progress.fraction * progress.total_bytes
        now = time.monotonic()
        began_at, before = self._began.setdefault(device, (now, done))
        rate = f", {(done - before) / (now - began_at) / 1e6:.1f} MB/s" if now > began_at else ""
        return f"uploading {done / 1e6:.1f} of {progress.total_bytes / 1e6:.1f} MB{rate}"

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        with self._lock:
            for device, line in self._lines.items():
                loading_s = self._loading.seconds(device)
                told = loading(loading_s) if loading_s >= _SURE_AFTER_S else line
                table.add_row(Text(device), Text(told))
        return table


class LoadingTimes:
    """Times for which devices have been loading models, so far."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}

    def seconds(self, device: str, progress: Progress | None = None) -> float:
        """Return the time so far, s; 0 if the device is not loading.

        Args:
            device: Name of the device.
            progress: Its latest progress; None if there is none since the last call.
        """
        if progress is not None and progress.state is not State.PREPARING:
            self._began.pop(device, None)
        elif progress is not None or device in self._began:
            now = time.monotonic()
            return now - self._began.setdefault(device, now)
        return 0.0


def loading(seconds: float) -> str:
    """Return the state of a device that has been loading models for some time, in words."""
    return f"loading models, {duration(seconds)} so far"


def _state(progress: Progress) -> str:
    """Return the state whose change is printed as a line."""
    standing = progress.standing
    if standing is None or not standing.ahead:
        return progress.state.value
    return f"waiting{_for(standing)}, {standing.ahead} before us"


def waiting(standing: Standing) -> str:
    """Return the holder of the device and the expected wait, in words."""
    before = f", {standing.ahead - 1} more before us" if standing.ahead > 1 else ""
    about = f", about {duration(standing.wait_s)}" if standing.wait_s else ""
    return f"waiting{_for(standing)}{before}{about}"


def _for(standing: Standing) -> str:
    holder = standing.holder
    return f" for {holder.owner} ({holder.purpose})" if holder else ""


def duration(seconds: float) -> str:
    """Return a duration in seconds, or in minutes from 90 s on."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
