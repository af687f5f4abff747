"""The agent's log: an event with fields, on a line for people or as a JSON object for programs."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from esm_protos.text import foreign, printable

_FIELDS = "esm_fields"


def configure(json_lines: bool) -> None:
    """Writes the log to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json_lines else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def event(log: logging.Logger, level: int, text: str, **fields: object) -> None:
    """Logs what happened. Fields come from clients too: they are cut, and stay on their line."""
    log.log(level, "%s", text, extra={_FIELDS: fields})


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
