"""Migrations of older stores to the current tables, one version at a time.

Measured values do not change. A write-protected store is copied first.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import sqlalchemy as sa

_NOTHING = zlib.compress(b"").hex()


def _to_2(connection: sa.Connection) -> None:
    """Add device states and verdicts."""
    connection.exec_driver_sql("ALTER TABLE blocks ADD COLUMN states JSON NOT NULL DEFAULT '[]'")
    connection.exec_driver_sql(
        "CREATE TABLE verdicts (block_id VARCHAR NOT NULL REFERENCES blocks (block_id), "
        "architecture_key VARCHAR NOT NULL REFERENCES plan (architecture_key), "
        "verdict VARCHAR NOT NULL, reasons JSON NOT NULL, "
        "PRIMARY KEY (block_id, architecture_key))"
    )


def _to_3(connection: sa.Connection) -> None:
    """Add GPU copies and the execution providers of nodes."""
    for name in ("copy_in_ns", "copy_out_ns"):
        connection.exec_driver_sql(
            f"ALTER TABLE measurements ADD COLUMN {name} BLOB NOT NULL DEFAULT x'{_NOTHING}'"
        )
    for name in ("ran_on", "fallback"):
        connection.exec_driver_sql(
            f"ALTER TABLE measurements ADD COLUMN {name} JSON NOT NULL DEFAULT '[]'"
        )


_STEPS: dict[int, Callable[[sa.Connection], None]] = {1: _to_2, 2: _to_3}


def migrate(connection: sa.Connection, version: int, wanted: int) -> None:
    """Migrate a store to another schema version, in the connection's transaction.

    Args:
        connection: Open connection to the store.
        version: Version of the store, from 1 to ``wanted``.
        wanted: Version to migrate to.
    """
    for step in range(version, wanted):
        _STEPS[step](connection)
    connection.execute(
        sa.text("UPDATE facts SET value = :value WHERE key = 'schema_version'"),
        {"value": str(wanted)},
    )
