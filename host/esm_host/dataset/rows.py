"""Conversion of measurements to and from table rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import sqlalchemy as sa

from esm_protos.messages import Energy, Failure, FailureKind, Measurement
from esm_protos.metrics import THREADS_USED

_FIELDS = frozenset(field.name for field in fields(Measurement))


def to_row(measurement: Measurement, table: sa.Table) -> dict[str, Any]:
    """Return the columns of a table that are fields of a measurement, arrays compressed."""
    names = [column.name for column in table.c if column.name in _FIELDS]
    row = {name: _written(getattr(measurement, name)) for name in names}
    if "failure_kind" in table.c:
        failure = measurement.failure
        row["failure_kind"] = None if failure is None else failure.kind.value
        row["failure_message"] = None if failure is None else plain(failure.message)
    return row


def from_row(
    model_id: str, row: sa.RowMapping, more: Mapping[str, Any] | None = None
) -> Measurement:
    """Return the measurement of a row, the inverse of :func:`to_row`.

    Args:
        model_id: Id of the measured model.
        row: Row of the main table.
        more: Columns of further tables with fields of the same measurement; None for none.

    Raises:
        zlib.error: an array is damaged.
    """
    found = {
        name: _read(value) for name, value in {**row, **(more or {})}.items() if name in _FIELDS
    }
    kind = row["failure_kind"]
    failure = Failure(FailureKind(kind), row["failure_message"]) if kind else None
    return Measurement(model_id, failure=failure, **found)


def all_metrics(measurement: Measurement) -> dict[str, float]:
    """Return the metrics of a measurement, with the threads that it used, which have no column."""
    used = measurement.threads_used
    return {**measurement.metrics, **({THREADS_USED.key: used} if used else {})}


def plain(text: str) -> str:
    """Return a text without NUL characters, which PostgreSQL cannot store."""
    return text.replace("\0", "")


def energy_of(data: Mapping[str, Any]) -> Energy:
    """Return the energy whose fields are stored as JSON, which has no tuples."""
    return Energy(**{name: _read(value) for name, value in data.items()})


def _written(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return zlib.compress(value.astype("<i8").tobytes())
    return value


def _read(value: Any) -> Any:
    if isinstance(value, bytes):
        return np.frombuffer(zlib.decompress(value), dtype="<i8").astype(np.int64)
    if isinstance(value, list):  # JSON has no tuples
        return tuple(map(_read, value))
    return value
