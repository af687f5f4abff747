"""The agent's log: events with fields, as lines of text or as JSON objects.

If the reader of the log stops reading, lines are dropped, so calls and measurements never wait.
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
    """Write the log to standard error, which no longer blocks after this call."""
    try:
        handler = NonBlockingHandler(_unblocked_stderr(), _formatter(json_lines))
    except (OSError, ValueError, AttributeError):  # standard error is closed, or not a file
        configure_child(json_lines)
    else:
        logging.basicConfig(level=logging.INFO, handlers=[handler])


def is_json() -> bool:
    """Return whether the log of this process has lines of JSON."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.getLogger().handlers)


def configure_child(json_lines: bool) -> None:
    """Write the log of a child process to the standard error that it shares with the agent."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(json_lines))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _formatter(json_lines: bool) -> logging.Formatter:
    return JsonFormatter() if json_lines else TextFormatter()


def event(log: logging.Logger, level: int, text: str, **fields: object) -> None:
    """Log an event; fields may come from clients, so they are shortened and stay on the line."""
    log.log(level, "%s", text, extra={_FIELDS: fields})


def limited_event(log: logging.Logger, level: int, text: str, **fields: object) -> None:
    """Log an event at most once a second for each text, client and status code.

    For events that clients can cause at will. The next line has the number of events that were
    dropped, as ``left_out``.
    """
    _rate_limit.log(log, level, text, fields)


class _RateLimit:
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


_rate_limit = _RateLimit()


class NonBlockingHandler(logging.Handler):
    """Handler that writes to a non-blocking pipe, and drops and counts lines if it is full.

    Args:
        descriptor: Descriptor of the pipe, which takes a line completely or not at all.
        formatter: Format of the lines.
    """

    _LONGEST_BYTES = 4000  # below PIPE_BUF, up to which a write to a pipe is atomic

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._dropped = 0
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                notice = logging.makeLogRecord(
                    {
                        "msg": "lines of the log were dropped, because it was not read",
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        _FIELDS: {"lines": self._dropped},
                    }
                )
                self._write(self.format(notice))
                self._dropped = 0
            self._write(self.format(record))
        except BlockingIOError:
            self._dropped += 1
        except OSError:
            pass  # the reader is gone
        except Exception:
            self.handleError(record)

    def _write(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        for start in range(0, len(data), self._LONGEST_BYTES):
            os.write(self._descriptor, data[start : start + self._LONGEST_BYTES])


def _unblocked_stderr() -> int:
    """Put a pipe between standard error and this process with its children.

    A thread copies the pipe to standard error, and only the thread waits for a reader. A
    non-blocking standard error would also be non-blocking for other programs that share it, such
    as a shell.
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
        # Child processes may keep the pipe open, so a marker ends it.
        with contextlib.suppress(OSError):  # the pipe is full
            os.write(descriptor, end)
        os.dup2(reader, descriptor)
        copier.join(_LAST_LINES_S)

    atexit.register(restore)
    return descriptor


def _copy(source: int, target: int, end: bytes) -> None:
    """Copy data until the end marker, or until no process has the pipe open."""
    over = False
    while not over and (data := os.read(source, _COPY_BYTES)):
        if over := data.endswith(end):
            data = data.removesuffix(end)
        with contextlib.suppress(OSError):  # without a reader the pipe is still emptied
            while data:
                data = data[os.write(target, data) :]


class TextFormatter(logging.Formatter):
    """Lines such as ``2026-01-31 12:00:00,000 INFO block measured: block_id=7f models=3``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = printable(super().formatMessage(record))
        fields = {key: value for key, value in _fields(record).items() if value != ""}
        if not fields:
            return line
        return f"{line}: " + " ".join(f"{key}={_word(value)}" for key, value in fields.items())


class JsonFormatter(logging.Formatter):
    """JSON objects, one per line: time (RFC 3339, UTC), level, event, and the event's fields."""

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
    """Return a value as one word, in quotes if needed."""
    text = str(value)
    plain = not any(letter in text for letter in ' "=')
    return text if plain else json.dumps(text)
