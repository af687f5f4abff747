"""Memory of what the agent's reference models took: how fast this device usually is.

A file of lines, one per block: when, under which conditions, and what each reference took. Two
agents of one user may share it. A block is never lost for it: lines that cannot be read are
skipped, and a file that cannot be written is left as it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from esm_agent.device import sysfs
from esm_agent.device.facts import cpu_model, usable_cpus
from esm_agent.device.machine import read_turbo
from esm_agent.measure.references import reference_models
from esm_protos.locks import lock
from esm_protos.messages import LONGEST_NS, SHORTEST_NS, MeasureSpec, Usual
from esm_protos.paces import usual_of
from esm_protos.private_files import write_private
from esm_protos.providers import ProviderInfo
from esm_protos.user_folders import user_folder

Floats = NDArray[np.float64]

log = logging.getLogger(__name__)

FORMAT = 2
"""Version of the lines. Version 1 had the mean of the runs of the reference model without weights,
version 2 has that of its visits' quickest runs: another latency."""
KEPT_S = 90 * 86_400.0
"""How long a moment is remembered."""
MOMENT_S = 300.0
"""Blocks of so many seconds are one moment: else a busy hour would outweigh a quiet month."""
_MOST_MOMENTS = 1000
_KEPT_LINES = 3
"""Lines kept of a moment: they show how blocks differ within it."""
_MOST_BYTES = 3 << 20  # then the file is written anew, with a few lines for each moment
_MOST_READ_BYTES = 2 * _MOST_BYTES
_LOCK_S, _LOCK_POLL_S = 2.0, 0.01
"""Time for which a block waits for other agents to write theirs."""
_NONSENSE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)

Conditions = Mapping[str, str]
"""What must be equal for two moments to be of the same device in the same setting."""


@dataclass(frozen=True)
class Remembered:
    """What is remembered under some conditions.

    Attributes:
        conditions: in which the lines agree.
        since_unix_s: time of the first line.
        usual: None where no moment has latencies of enough references.
    """

    conditions: Conditions
    since_unix_s: float
    usual: Usual | None


def conditions(
    runtime: str,
    spec: MeasureSpec,
    provider: ProviderInfo,
    cpus: Sequence[int] = (),
    root: Path = Path("/"),
) -> dict[str, str]:
    """Return the conditions of a block on this device as it is set up now.

    Args:
        runtime: its name and version.
        provider: that is measured with.
        cpus: processors that are measured on; empty: all that this process may use.
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
        "gpu": "",
        **provider.identity,
        "threads": str(spec.threads),
        "cpus": ",".join(map(str, sorted(cpus or usable_cpus()))),
        "references": _references_digest(),
        "cpu": cpu_model(root),
        "governor": " ".join(read["scaling_governor"]),
        "max_khz": " ".join(read["scaling_max_freq"]),
        "turbo": "" if turbo is None else str(turbo.on),
        "settings": " ".join(_settings(spec, provider)),
    }


def _settings(spec: MeasureSpec, provider: ProviderInfo) -> Iterator[str]:
    """Yield options that are not as by default, a switch that is on by its name."""
    given = provider.complete(spec.provider_options)
    for option in provider.options:
        if (value := given[option.name]) != option.default:
            yield option.name if value == "1" else f"{option.name}={value}"


def history_file() -> Path:
    """Return systemd's place for it, else the user's; raise OSError without a home folder."""
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]) / "history.jsonl"
    return user_folder("XDG_STATE_HOME", ".local/state") / "esm-agent" / "history.jsonl"


class HistoryFile:
    """A device's history.

    Args:
        now: seconds since 1970.

    Attributes:
        problem: why the file could not be read or written since :meth:`usual` was last called;
            else empty.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._now = now
        self._told = False
        self.problem = ""

    def add(self, conditions: Conditions, latency_ns: Mapping[str, float]) -> None:
        """Remember what the references took just now; nothing if none could be timed."""
        if not latency_ns:
            return
        line = {
            "format": FORMAT,
            "at_unix_s": round(self._now(), 1),
            "conditions": dict(conditions),
            "latency_ns": {name: round(value, 1) for name, value in latency_ns.items()},
        }
        try:
            with self._locked() as file:
                # First the end of a line that another program could not finish.
                file.write(b"\n" + json.dumps(line).encode())
                file.flush()
                if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                    self._shorten()
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}"
            if not self._told:  # once, and not after every block
                log.warning("nothing is remembered in %s: %s", self.path, error.strerror)
                self._told = True

    def usual(self, conditions: Conditions, references: Sequence[str]) -> Usual | None:
        """Return what is usual under these conditions; None where nothing is remembered.

        Args:
            references: names of the models, in the order of the result's columns.
        """
        self.problem = ""
        own = [line for line in self._lines() if line["conditions"] == conditions]
        return _usual(own, references)

    def remembered(self) -> list[Remembered]:
        """Return what is remembered, by conditions, the latest ones last."""
        found = []
        for lines in _by_conditions(self._lines()):
            names = sorted({name for line in lines for name in line["latency_ns"]})
            since_unix_s = min(line["at_unix_s"] for line in lines)
            found.append(Remembered(lines[0]["conditions"], since_unix_s, _usual(lines, names)))
        return found

    def forget(self) -> None:
        """Remove the file; raises OSError if it cannot."""
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """Open the file to append to it, locked against other agents.

        Raises:
            OSError: it cannot be written to, or another program has it locked.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
            handle = _regular(os.open(self.path, flags, 0o600))
            with os.fdopen(handle, "ab") as file:
                _lock_soon(file)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), self.path.stat()):
                        yield file
                        return
                # Another agent has put a new file in its place.

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that are still remembered and make sense, in the order of writing.

        Times from further away, past or future, were told by a clock that was wrong.
        """
        now = self._now()
        return (line for line in self._read() if _is_sound(line) and _is_near(line, now))

    def _read(self) -> Iterator[Any]:
        """Yield what the lines at the end of the file hold, of any format."""
        texts: list[bytes] = []
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(size - _MOST_READ_BYTES, 0))
                texts = file.read(_MOST_READ_BYTES).splitlines()
        except FileNotFoundError:
            pass
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}"
        for text in texts:
            with contextlib.suppress(*_NONSENSE):
                yield json.loads(text)

    def _shorten(self) -> None:
        """Leave a few lines of each of the newest moments, one where that is too much.

        A clock that most lines contradict may be wrong, and forgets none of them. Lines that a
        newer agent has written in another format stay, the last of them.
        """
        read, now = list(self._read()), self._now()
        sound = [line for line in read if _is_sound(line)]
        near = [line for line in sound if _is_near(line, now)]
        if len(near) < len(sound) / 2:
            near = sound
        newer = [json.dumps(line) for line in read if _is_newer(line)]
        while sum(map(len, newer)) > _MOST_BYTES / 4:
            del newer[: len(newer) // 10 + 1]
        kept = [_fullest(moment) for own in _by_conditions(near) for moment in _moments(own)]
        for most in (_KEPT_LINES, 1):
            lines = [
                moment[i * len(moment) // min(len(moment), most)]
                for moment in kept
                for i in range(min(len(moment), most))
            ]
            lines.sort(key=lambda line: float(line["at_unix_s"]))
            texts = [json.dumps(line) for line in lines]
            if sum(map(len, texts)) <= _MOST_BYTES / 2:
                break
        while sum(map(len, texts)) > _MOST_BYTES / 2:
            del texts[: len(texts) // 2 + 1]
        write_private(self.path, "\n".join([*newer, *texts]).encode())


def _lock_soon(file: IO[bytes]) -> None:
    """Lock a file; raise OSError if another program does not let go of it: a block waits."""
    ends = time.monotonic() + _LOCK_S
    while True:
        try:
            lock(file, wait=False)
        except BlockingIOError as error:
            if time.monotonic() > ends:
                raise OSError(error.errno, "another program has it locked") from None
            time.sleep(_LOCK_POLL_S)
        else:
            return


def open_regular(path: Path) -> IO[bytes]:
    """Open a file to read it; raise OSError for what may never end or never begin, as a FIFO."""
    return os.fdopen(_regular(os.open(path, os.O_RDONLY | os.O_NONBLOCK)), "rb")


def _regular(handle: int) -> int:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file")
    return handle


def _is_sound(line: Any) -> bool:
    """Whether a line is of this format, and makes sense."""
    try:
        values = line["latency_ns"].values()
        return (
            line["format"] == FORMAT
            and bool(values)
            and all(SHORTEST_NS <= value <= LONGEST_NS for value in values)
            and isinstance(line["conditions"], dict)
            and math.isfinite(line["at_unix_s"])
        )
    except _NONSENSE:
        return False


def _is_near(line: Mapping[str, Any], now: float) -> bool:
    return bool(abs(line["at_unix_s"] - now) < KEPT_S)


def _is_newer(line: Any) -> bool:
    """Whether an agent of a later version wrote it."""
    number = line.get("format") if isinstance(line, dict) else None
    return isinstance(number, int) and number > FORMAT


def _by_conditions(lines: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the lines under the same conditions together, the latest conditions last."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        found[json.dumps(line["conditions"], sort_keys=True)].append(line)
    return sorted(found.values(), key=lambda own: float(own[-1]["at_unix_s"]))


def _moments(lines: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the lines of each of the newest moments, in the order of time."""
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        found[int(line["at_unix_s"] // MOMENT_S)].append(line)
    return [found[number] for number in sorted(found)[-_MOST_MOMENTS:]]


def _fullest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that have the most references."""
    most = max(len(line["latency_ns"]) for line in lines)
    return [line for line in lines if len(line["latency_ns"]) == most]


def _usual(lines: Iterable[dict[str, Any]], references: Sequence[str]) -> Usual | None:
    """Return what is usual over the moments of lines under the same conditions.

    References that more than half of the moments lack are left out, and then lines that lack
    another: a burst of poor blocks in one moment takes nothing from the others.
    """
    moments = _moments(lines)
    references = [
        name
        for name in references
        if 2 * sum(any(name in line["latency_ns"] for line in own) for own in moments)
        >= len(moments)
    ]
    kept = [
        line
        for own in moments
        for line in own
        if all(name in line["latency_ns"] for name in references)
    ]
    rows = [[line["latency_ns"][name] for name in references] for line in kept]
    moment = np.array([int(line["at_unix_s"] // MOMENT_S) for line in kept], dtype=np.int64)
    return usual_of(
        references,
        MOMENT_S * (moment.astype(np.float64) + 0.5),
        np.array(rows, dtype=np.float64).reshape(len(kept), len(references)),
        moment,
    )


@cache
def _references_digest() -> str:
    """Return what tells reference models of other releases apart."""
    digest = hashlib.sha256()
    for model in reference_models():
        digest.update(model.path.read_bytes())
    return digest.hexdigest()[:12]
