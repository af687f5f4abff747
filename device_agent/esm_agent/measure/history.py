"""History of the latencies of the agent's reference models, which gives the usual ones.

The file has a line for each block: time, conditions, and latencies of the reference models. Two
agents of a user can share it. An error in it never fails a block: invalid lines are skipped, and
a file that cannot be written stays unchanged.
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
from dataclasses import dataclass, replace
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
from esm_protos.messages import LONGEST_NS, SHORTEST_NS, MeasureSpec, UsualLatencies
from esm_protos.paces import usual_latencies
from esm_protos.private_files import write_private
from esm_protos.providers import ProviderInfo
from esm_protos.user_folders import user_folder

Floats = NDArray[np.float64]

log = logging.getLogger(__name__)

FORMAT = 2
"""Version of the lines. They differ for the reference model without weights: version 1 has the
mean of all runs, version 2 that of the quickest run of each visit."""
KEPT_S = 90 * 86_400.0
"""Time for which a moment is kept, seconds."""
MOMENT_S = 300.0
"""Duration of a moment, seconds. Without moments, a busy hour would outweigh a quiet month."""
_MOST_MOMENTS = 1000
_KEPT_LINES = 3
"""Number of lines kept of a moment, to show how blocks differ within it."""
_MOST_BYTES = 3 << 20  # size at which the file is shortened to a few lines per moment
_MOST_READ_BYTES = 2 * _MOST_BYTES
_LOCK_S, _LOCK_POLL_S = 2.0, 0.01
"""Time for which a block waits for the lock, and the interval between attempts, seconds."""
_NONSENSE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)

Conditions = Mapping[str, str]
"""Device and settings; only moments with equal conditions are comparable."""


@dataclass(frozen=True)
class HistoryRecord:
    """History under some conditions.

    Attributes:
        conditions: Conditions of all its lines.
        since_unix_s: Time of the first line, Unix seconds.
        usual: Usual latencies; None if no moment has enough reference models.
    """

    conditions: Conditions
    since_unix_s: float
    usual: UsualLatencies | None


def conditions(
    runtime: str,
    spec: MeasureSpec,
    provider: ProviderInfo,
    cpus: Sequence[int] = (),
    root: Path = Path("/"),
) -> dict[str, str]:
    """Return the conditions of a block with the current settings of this device.

    Args:
        runtime: Name and version of the runtime.
        spec: Settings of the block.
        provider: Execution provider that runs the models.
        cpus: Processors that run the models; empty for all available ones.
        root: Folder that holds ``proc`` and ``sys``; for tests.
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
        "settings": " ".join([*_settings(spec, provider), *_session(spec)]),
    }


def _settings(spec: MeasureSpec, provider: ProviderInfo) -> Iterator[str]:
    """Yield options that are not as by default, a switch that is on by its name."""
    defaults = provider.complete({})
    for name, value in provider.complete(spec.provider_options).items():
        if value != defaults.get(name):
            yield name if value == "1" else f"{name}={value}"


def _session(spec: MeasureSpec) -> Iterator[str]:
    """Yield session settings that are not as by default.

    Reference models have no free dimensions.
    """
    for name, value in replace(spec.session, free_dims={}).changes().items():
        yield f"session:{name}={value}"


def history_file() -> Path:
    """Return the path of the file in systemd's folder, else in the user's.

    Raises:
        OSError: this user has no home folder.
    """
    if given := os.environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]) / "history.jsonl"
    return user_folder("XDG_STATE_HOME", ".local/state") / "esm-agent" / "history.jsonl"


class HistoryFile:
    """History of a device in a file.

    Args:
        path: Path of the file.
        now: Clock, Unix seconds.

    Attributes:
        problem: Error of the file since the last call of :meth:`usual`; "" without one.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._now = now
        self._warned = False
        self.problem = ""

    def add(self, conditions: Conditions, latency_ns: Mapping[str, float]) -> None:
        """Add the latencies of the reference models in a block; do nothing without any.

        An error of the file is logged once, and kept in :attr:`problem`.
        """
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
                # The newline ends an incomplete line of another program.
                file.write(b"\n" + json.dumps(line).encode())
                file.flush()
                if os.fstat(file.fileno()).st_size > _MOST_BYTES:
                    self._shorten()
        except OSError as error:
            self.problem = f"{self.path}: {error.strerror}"
            if not self._warned:
                log.warning("no history is kept in %s: %s", self.path, error.strerror)
                self._warned = True

    def usual(self, conditions: Conditions, references: Sequence[str]) -> UsualLatencies | None:
        """Return the usual latencies under these conditions; None without a history.

        Args:
            conditions: Conditions of the block.
            references: Names of the reference models, in the order of the result's columns.
        """
        self.problem = ""
        own = [line for line in self._lines() if line["conditions"] == conditions]
        return _usual(own, references)

    def records(self) -> list[HistoryRecord]:
        """Return the history by conditions, the most recent ones last."""
        records = []
        for lines in _by_conditions(self._lines()):
            names = sorted({name for line in lines for name in line["latency_ns"]})
            since_unix_s = min(line["at_unix_s"] for line in lines)
            usual = _usual(lines, names)
            records.append(HistoryRecord(lines[0]["conditions"], since_unix_s, usual))
        return records

    def forget(self) -> None:
        """Delete the file.

        Raises:
            OSError: it cannot be deleted.
        """
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """Open the file for appending, locked against other agents.

        Raises:
            OSError: it cannot be written, or another program holds the lock.
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
                # Another agent has replaced the file: try again with the new one.

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Return the valid lines within ``KEPT_S``, in the order of writing.

        Times further away come from a wrong clock.
        """
        now = self._now()
        return (line for line in self._read() if _is_sound(line) and _is_near(line, now))

    def _read(self) -> Iterator[Any]:
        """Yield the content of the lines at the end of the file, of any format."""
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
        """Keep a few lines of each of the newest moments, or one if that is too much.

        If most lines are too far from the current time, the clock may be wrong, and no line is
        dropped for its age. The last lines of a newer agent's format are kept.
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
    """Lock a file within ``_LOCK_S``, because a block waits for it.

    Raises:
        OSError: another program holds the lock.
    """
    ends = time.monotonic() + _LOCK_S
    while True:
        try:
            lock(file, wait=False)
        except BlockingIOError as error:
            if time.monotonic() > ends:
                raise OSError(error.errno, "another program holds its lock") from None
            time.sleep(_LOCK_POLL_S)
        else:
            return


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        OSError: it cannot be read, or it is not a regular file; reading a FIFO could block.
    """
    return os.fdopen(_regular(os.open(path, os.O_RDONLY | os.O_NONBLOCK)), "rb")


def _regular(handle: int) -> int:
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file")
    return handle


def _is_sound(line: Any) -> bool:
    """Return whether a line is valid and of this format."""
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
    """Return whether a newer agent wrote a line."""
    number = line.get("format") if isinstance(line, dict) else None
    return isinstance(number, int) and number > FORMAT


def _by_conditions(lines: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the lines grouped by conditions, the most recent conditions last."""
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[json.dumps(line["conditions"], sort_keys=True)].append(line)
    return sorted(groups.values(), key=lambda own: float(own[-1]["at_unix_s"]))


def _moments(lines: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the lines of each of the newest moments, in time order."""
    groups: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[int(line["at_unix_s"] // MOMENT_S)].append(line)
    return [groups[number] for number in sorted(groups)[-_MOST_MOMENTS:]]


def _fullest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines with the most reference models."""
    most = max(len(line["latency_ns"]) for line in lines)
    return [line for line in lines if len(line["latency_ns"]) == most]


def _usual(lines: Iterable[dict[str, Any]], references: Sequence[str]) -> UsualLatencies | None:
    """Return the usual latencies over the moments of lines with equal conditions.

    Reference models that more than half of the moments lack are left out, then all incomplete
    lines. So failures in a single moment do not affect the others.
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
    return usual_latencies(
        references,
        MOMENT_S * (moment.astype(np.float64) + 0.5),
        np.array(rows, dtype=np.float64).reshape(len(kept), len(references)),
        moment,
    )


@cache
def _references_digest() -> str:
    """Return a digest of the reference models, which differ between releases."""
    digest = hashlib.sha256()
    for model in reference_models():
        digest.update(model.path.read_bytes())
    return digest.hexdigest()[:12]
