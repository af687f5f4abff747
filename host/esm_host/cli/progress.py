"""What becomes of blocks, on stderr: a line per device in a terminal, a few lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from esm_protos.messages import Progress, Standing, State
from esm_protos.text import printable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

_REDRAWS_PER_S = 2  # drawing costs time where this is the device


class DeviceLines:
    """Watches devices that measure at the same time.

    Args:
        quiet: says nothing.
    """

    def __init__(self, devices: Sequence[str], quiet: bool) -> None:
        self._lines = dict.fromkeys(devices, "connecting")
        self._states: dict[str, str] = {}
        self._began: dict[str, tuple[float, float]] = {}
        self._quiet = quiet
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
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
        """Called from the devices' threads."""
        if self._quiet:
            return
        with self._lock:
            self._lines[device] = printable(self._text(device, progress))
            state = printable(_state(progress))
            if self._live is None and self._states.get(device) != state:
                # Whole lines, so that those of several devices do not mix.
                sys.stderr.write(f"{device}: {state}\n")
                sys.stderr.flush()
            self._states[device] = state

    def _text(self, device: str, progress: Progress) -> str:
        if progress.standing is not None and progress.standing.ahead:
            return waiting(progress.standing)
        if progress.state is State.MEASURING:
            return f"measuring {100 * progress.fraction:.0f} %"
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
                table.add_row(Text(device), Text(line))
        return table


def _state(progress: Progress) -> str:
    """What is worth a line of its own when it changes."""
    standing = progress.standing
    if standing is None or not standing.ahead:
        return progress.state.value
    return f"waiting{_for(standing)}, {standing.ahead} before us"


def waiting(standing: Standing) -> str:
    """Who has the device, and for how long."""
    before = f", {standing.ahead - 1} more before us" if standing.ahead > 1 else ""
    return f"waiting{_for(standing)}{before}, about {duration(standing.wait_s)}"


def _for(standing: Standing) -> str:
    holder = standing.holder
    return f" for {holder.owner} ({holder.purpose})" if holder else ""


def duration(seconds: float) -> str:
    """In minutes where it is long."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
