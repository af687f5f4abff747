"""The agent's log: an event with fields, on a line for people or as a JSON object for programs.

A log that nobody reads is cut short: neither calls nor measurements wait for its reader.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
import threading
import time
from datetime import UTC, datetime

from esm_protos.text import foreign, printable

_FIELDS = "esm_fields"
_PAUSE_S = 1.0
_COPY_BYTES = 1 << 16
_LAST_LINES_S = 2.0


def configure(json_lines: bool) -> None:
    """Writes the log to standard error from now on, which never blocks from then on either."""
    formatter = JsonFormatter() if json_lines else TextFormatter()
    handler: logging.Handler
    try:
        handler = PatientHandler(_unblocked_stderr(), formatter)
    except (OSError, ValueError, AttributeError):  # it is closed, or not a file
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def event(log: logging.Logger, level: int, text: str, **fields: object) -> None:
    """Logs what happened. Fields come from clients too: they are cut, and stay on their line."""
    log.log(level, "%s", text, extra={_FIELDS: fields})


def sparing(log: logging.Logger, level: int, text: str, **fields: object) -> None:
    """Logs what others can cause at will: one line a second of each text, client and status code.

    The line that follows says how many were left out, as ``left_out``.
    """
    _sparing.log(log, level, text, fields)


class _Sparing:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[object, float] = {}
        self._left_out: dict[object, int] = {}

    def log(self, log: logging.Logger, level: int, text: str, fields: dict[str, object]) -> None:
        now = time.monotonic()
        kind = text, fields.get("client"), fields.get("code")
        with self._lock:
            if now - self._last.get(kind, now - _PAUSE_S) < _PAUSE_S:
                self._left_out[kind] = self._left_out.get(kind, 0) + 1
                return
            self._last[kind] = now
            left_out = self._left_out.pop(kind, 0)
        if left_out:
            fields["left_out"] = left_out
        event(log, level, text, **fields)


_sparing = _Sparing()


class PatientHandler(logging.Handler):
    """Writes lines to a descriptor that does not block; drops and counts what it does not take.

    Args:
        descriptor: of a pipe, which takes a line as a whole or not at all.
    """

    _LONGEST_BYTES = 4000  # below PIPE_BUF, the most that a pipe takes as a whole

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped = 0
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                said = logging.makeLogRecord(
                    {
                        "msg": "lines of the log were dropped, nobody read it",
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        _FIELDS: {"lines": self._dropped},
                    }
                )
                self._write(self.format(said))
                self._dropped = 0
            self._write(self.format(record))
        except BlockingIOError:
            self._dropped += 1
        except OSError:
            pass  # the reader has gone
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        for start in range(0, len(data), self._LONGEST_BYTES):
            os.write(self._descriptor, data[start : start + self._LONGEST_BYTES])


def _unblocked_stderr() -> int:
    """Puts a pipe between this process, with those that it starts, and standard error.

    What is written there is copied by a thread, which alone waits for a reader. A non-blocking
    standard error itself would be one for whoever shares it too, such as a shell.
    """
    descriptor = sys.stderr.fileno()
    reader = os.dup(descriptor)
    source, sink = os.pipe()
    os.set_inheritable(reader, False)
    os.set_blocking(sink, False)
    os.dup2(sink, descriptor)
    os.close(sink)
    end = b"\0" + os.urandom(16)
    copier = threading.Thread(target=_copy, args=(source, reader, end), name="esm-log", daemon=True)
    copier.start()

    def restore() -> None:
        sys.stderr.flush()
        # Processes that were started may keep the pipe open: the end has to be told.
        with contextlib.suppress(OSError):  # it is full, and nobody reads
            os.write(descriptor, end)
        os.dup2(reader, descriptor)
        copier.join(_LAST_LINES_S)

    atexit.register(restore)
    return descriptor


def _copy(source: int, target: int, end: bytes) -> None:
    """Copy all that is written until the end is told, or no process has the pipe any more."""
    over = False
    while not over and (data := os.read(source, _COPY_BYTES)):
        if over := data.endswith(end):
            data = data.removesuffix(end)
        with contextlib.suppress(OSError):  # nobody reads any more; it is emptied all the same
            while data:
                data = data[os.write(target, data) :]


class TextFormatter(logging.Formatter):
    """``2026-01-31 12:00:00,000 INFO block measured: block_id=7f models=3``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = printable(super().formatMessage(record))
        fields = {key: value for key, value in _fields(record).items() if value != ""}
        if not fields:
            return line
        return f"{line}: " + " ".join(f"{key}={_word(value)}" for key, value in fields.items())


class JsonFormatter(logging.Formatter):
    """One object per line: time (RFC 3339, UTC), level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, _FIELDS, {})
    return {key: foreign(v) if isinstance(v, str) else v for key, v in fields.items()}


def _word(value: object) -> str:
    """As it is where it is one word, else quoted."""
    text = str(value)
    plain = not any(letter in text for letter in ' "=')
    return text if plain else json.dumps(text)
