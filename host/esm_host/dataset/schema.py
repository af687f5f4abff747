"""SQLAlchemy tables of a store."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 3

SCHEMA = sa.MetaData()
FACTS = sa.Table(
    "facts",
    SCHEMA,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)
PLAN = sa.Table(
    "plan",
    SCHEMA,
    sa.Column("architecture_key", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("architecture", sa.JSON, nullable=False),
    sa.UniqueConstraint("round", "position"),
)
BLOCKS = sa.Table(
    "blocks",
    SCHEMA,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("block_id", sa.String, nullable=False, unique=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("measured_at", sa.String, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("device", sa.JSON, nullable=False),
    sa.Column("states", sa.JSON, nullable=False),
    sa.Column("busy_ns", sa.BigInteger, nullable=False),
    sa.Column("running_ns", sa.BigInteger, nullable=False),
    sa.Column("bytes_sent", sa.BigInteger, nullable=False),
    sa.Column("wall_seconds", sa.Float, nullable=False),
)
MEASUREMENTS = sa.Table(
    "measurements",
    SCHEMA,
    sa.Column("block_id", sa.ForeignKey("blocks.block_id"), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("architecture_key", sa.ForeignKey("plan.architecture_key"), nullable=False),
    sa.Column("latency_ns", sa.LargeBinary, nullable=False),
    sa.Column("start_ns", sa.LargeBinary, nullable=False),
    sa.Column("load_ns", sa.BigInteger, nullable=False),
    sa.Column("first_run_ns", sa.BigInteger, nullable=False),
    sa.Column("copy_in_ns", sa.LargeBinary, nullable=False),
    sa.Column("copy_out_ns", sa.LargeBinary, nullable=False),
    sa.Column("ran_on", sa.JSON, nullable=False),
    sa.Column("fallback", sa.JSON, nullable=False),
    sa.Column("failure_kind", sa.String),
    sa.Column("failure_message", sa.String),
)
JUDGEMENTS = sa.Table(
    "judgements",
    SCHEMA,
    sa.Column("block_id", sa.ForeignKey("blocks.block_id"), primary_key=True),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("worst_deviation", sa.Float, nullable=False),
)
"""Results of the quality control of blocks."""
VERDICTS = sa.Table(
    "verdicts",
    SCHEMA,
    sa.Column("block_id", sa.ForeignKey("blocks.block_id"), primary_key=True),
    sa.Column("architecture_key", sa.ForeignKey("plan.architecture_key"), primary_key=True),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
)
"""Judgements of the models of a block (:class:`esm_host.evaluation.verdict.Judgement`)."""
ROUNDS = sa.Table(
    "rounds",
    SCHEMA,
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("result", sa.JSON, nullable=False),
)

DEPARTURES = sa.Table(
    "departures",
    # Created when the first device of a group leaves; stores of single devices lack the table.
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("device", sa.String, nullable=False),
    sa.Column("left_at", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
)
WITH_REFERENCES = sa.MetaData()
"""Tables created with the first block that holds the agent's reference models.

Other stores lack them. Older programs ignore them and read the rest.
"""
AGENT_REFERENCES = sa.Table(
    "agent_references",
    WITH_REFERENCES,
    sa.Column("block_id", sa.String, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("latency_ns", sa.LargeBinary, nullable=False),
    sa.Column("start_ns", sa.LargeBinary, nullable=False),
    sa.Column("load_ns", sa.BigInteger, nullable=False),
    sa.Column("first_run_ns", sa.BigInteger, nullable=False),
    sa.Column("runs_per_visit", sa.Integer, nullable=False),
    sa.Column("weight_bytes", sa.BigInteger, nullable=False),
    sa.Column("session_runs", sa.JSON, nullable=False),
    sa.Column("failure_kind", sa.String),
    sa.Column("failure_message", sa.String),
)
USUAL = sa.Table(
    "usual",
    WITH_REFERENCES,
    sa.Column("block_id", sa.String, primary_key=True),
    sa.Column("usual", sa.JSON, nullable=False),
)
VISITS = sa.Table(
    "visits",
    WITH_REFERENCES,
    sa.Column("block_id", sa.String, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("runs_per_visit", sa.Integer, nullable=False),
    sa.Column("weight_bytes", sa.BigInteger, nullable=False),
    sa.Column("session_runs", sa.JSON, nullable=False),
    sa.Column("warming_ns", sa.JSON, nullable=False),
    sa.Column("warm_ns", sa.LargeBinary, nullable=False),
)


def _of_some(name: str, column: str) -> sa.Table:
    """Return a table with JSON of some measurements.

    It is created with the first of them. Stores without any, and older ones, lack the table.
    """
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("block_id", sa.String, primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column(column, sa.JSON, nullable=False),
    )


VALUES = _of_some("metrics", "metrics")
ENERGIES = _of_some("energies", "energy")
"""Sources, windows and problems of energies (:class:`esm_protos.messages.Energy`)."""
