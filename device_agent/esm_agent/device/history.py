"""What the agent remembers of its reference models: how fast this device usually is.

A file of lines, one per block: when, under which conditions, and what each reference took. Two
agents of one user may share it. A block is never lost for it: lines that cannot be read are
skipped, and a file that cannot be written is left as it is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esm_agent.device import sysfs
from esm_agent.device.facts import cpu_model
from esm_agent.device.machine import read_turbo
from esm_protos.locks import lock
from esm_protos.messages import MeasureSpec, Usual
from esm_protos.paces import usual_of
from esm_protos.private_files import write_private
from esm_protos.user_folders import user_folder

log = logging.getLogger(__name__)

FORMAT = 1
KEPT_S = 90 * 86_400.0
"""How long a moment is remembered."""
MOMENT_S = 300.0
"""Blocks of so many seconds are one moment: else a busy hour would outweigh a quiet month."""
_MOST_MOMENTS = 1000
_MOST_BYTES = 8 << 20  # then the file is written anew, with what is still remembered

Conditions = Mapping[str, str]
"""What must be equal for two moments to be of the same device in the same setting."""


def conditions(runtime: str, spec: MeasureSpec, root: Path = Path("/")) -> dict[str, str]:
    """Return the conditions of a block on this device as it is set up now.

    Args:
        runtime: its name and version.
        root: where ``proc`` and ``sys`` are; for tests.
    """
    folders = sysfs.cpu_folders(root)
    read = {
        name: sorted({text for cpu in folders if (text := sysfs.read(cpu / "cpufreq" / name))})
        for name in ("scaling_governor", "scaling_max_freq")
    }
    turbo = read_turbo(root)
    return {
        "runtime": runtime,
        "provider": spec.provider,
        "threads": str(spec.threads),
        "cpu": cpu_model(root),
        "governor": " ".join(read["scaling_governor"]),
        "max_khz": " ".join(read["scaling_max_freq"]),
        "turbo": "" if turbo is None else str(turbo.on),
        "settings": " ".join(name for name in ("tf32", "cuda_graph") if getattr(spec, name)),
    }


def history_file() -> Path:
    """Return systemd's place for it, else the user's; raise OSError without a home folder."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]) / "history.jsonl"
    return user_folder("XDG_STATE_HOME", ".local/state") / "esm-agent" / "history.jsonl"


class HistoryFile:
    """A device's history.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._now = now
        self._told = False

    def add(self, conditions: Conditions, latency_ns: Mapping[str, float]) -> None:
        """Remember what the references took just now."""
        line = {
            "format": FORMAT,
            "at_unix_s": round(self._now(), 1),
            "conditions": dict(conditions),
            "latency_ns": {name: round(value, 1) for name, value in latency_ns.items()},
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                lock(file, wait=True)
                # A line that another program could not finish ends here.
                file.write(
                    b"\n" + json.dumps(line).encode() if file.tell() else json.dumps(line).encode()
                )
            if self.path.stat().st_size > _MOST_BYTES:
                self._shorten()
        except OSError as error:
            if not self._told:  # once, and not after every block
                log.warning("no history in %s: %s", self.path, error.strerror)
                self._told = True

    def usual(self, conditions: Conditions, references: Sequence[str]) -> Usual | None:
        """Return what is usual under these conditions; None where nothing is remembered.

        Args:
            references: names of the models, in the order of the result's columns.
        """
        moments: defaultdict[int, list[list[float]]] = defaultdict(list)
        for line in self._lines():
            if line["conditions"] == conditions:
                taken = [line["latency_ns"].get(name, np.nan) for name in references]
                moments[int(line["at_unix_s"] // MOMENT_S)].append(taken)
        kept = sorted(moments)[-_MOST_MOMENTS:]
        rows = [_medians(np.array(moments[number], dtype=np.float64)) for number in kept]
        return usual_of(
            references,
            MOMENT_S * (np.array(kept, dtype=np.float64) + 0.5),
            np.array(rows, dtype=np.float64).reshape(len(kept), len(references)),
        )

    def forget(self) -> None:
        """Remove the file; raises OSError if it cannot."""
        self.path.unlink(missing_ok=True)

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that are still remembered and make sense."""
        oldest = self._now() - KEPT_S
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            for text in file:
                with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                    line = json.loads(text)
                    values = line["latency_ns"].values()
                    sound = all(0 < float(value) < 1e18 for value in values)
                    if line["format"] == FORMAT and sound and line["at_unix_s"] > oldest:
                        yield line

    def _shorten(self) -> None:
        """Leave the newer half of what is remembered."""
        lines = [json.dumps(line) for line in self._lines()]
        write_private(self.path, "\n".join(lines[len(lines) // 2 :]).encode())


def _medians(rows: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Of each column, without NaN."""
    found = []
    for column in rows.T:
        known = column[~np.isnan(column)]
        found.append(float(np.median(known)) if known.size else np.nan)
    return found
