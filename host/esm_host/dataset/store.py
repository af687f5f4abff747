"""The append-only store: what was planned, what was measured, what was judged of it.

SQLite, or PostgreSQL where a team shares it, through SQLAlchemy Core. A block and its measurements
are written in one transaction, or not at all; nothing is ever changed or deleted. Raw samples are
kept; latencies are derived.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from esm_host.arguments import argument
from esm_host.dataset.database import Database, SqliteFile, detail_of
from esm_host.dataset.migrations import migrate
from esm_host.errors import DatasetError, MismatchError
from esm_host.evaluation.verdict import Judgement, Verdict
from esm_models.architecture import Architecture
from esm_protos.messages import (
    Block,
    BlockResult,
    DeviceInfo,
    DeviceState,
    Failure,
    FailureKind,
    Measurement,
    Nanoseconds,
    Usual,
)

SCHEMA_VERSION = 3
REFERENCE_ROUND = -1
"""The round of the plan under which the reference models stand."""
GROUP_FACT = "group"
"""Names of the devices of a campaign on a group; a campaign on one device has no such fact."""

_schema = sa.MetaData()
_facts = sa.Table(
    "facts",
    _schema,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)
_plan = sa.Table(
    "plan",
    _schema,
    sa.Column("architecture_key", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("architecture", sa.JSON, nullable=False),
    sa.UniqueConstraint("round", "position"),
)
_blocks = sa.Table(
    "blocks",
    _schema,
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
_measurements = sa.Table(
    "measurements",
    _schema,
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
_judgements = sa.Table(
    "judgements",
    _schema,
    sa.Column("block_id", sa.ForeignKey("blocks.block_id"), primary_key=True),
    sa.Column("passed", sa.Boolean, nullable=False),
    sa.Column("worst_deviation", sa.Float, nullable=False),
)
_verdicts = sa.Table(
    "verdicts",
    _schema,
    sa.Column("block_id", sa.ForeignKey("blocks.block_id"), primary_key=True),
    sa.Column("architecture_key", sa.ForeignKey("plan.architecture_key"), primary_key=True),
    sa.Column("verdict", sa.String, nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
)
_rounds = sa.Table(
    "rounds",
    _schema,
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("result", sa.JSON, nullable=False),
)

_departures = sa.Table(
    "departures",
    # Made when the first device of a group leaves: stores of single devices have no such table.
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("device", sa.String, nullable=False),
    sa.Column("left_at", sa.String, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
)
_company = sa.MetaData()
"""Tables made when the first block with the agent's reference models is stored. Other stores have
none of them, and programs that do not know them read the rest."""
_agent_references = sa.Table(
    "agent_references",
    _company,
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
_usual = sa.Table(
    "usual",
    _company,
    sa.Column("block_id", sa.String, primary_key=True),
    sa.Column("usual", sa.JSON, nullable=False),
)
_visits = sa.Table(
    "visits",
    _company,
    sa.Column("block_id", sa.String, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("runs_per_visit", sa.Integer, nullable=False),
    sa.Column("weight_bytes", sa.BigInteger, nullable=False),
    sa.Column("session_runs", sa.JSON, nullable=False),
    sa.Column("warming_ns", sa.JSON, nullable=False),
    sa.Column("warm_ns", sa.LargeBinary, nullable=False),
)
_values = sa.Table(
    "metrics",
    # Made when the first such value is stored: other stores have no such table, as older ones.
    sa.MetaData(),
    sa.Column("block_id", sa.String, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("metrics", sa.JSON, nullable=False),
)


@dataclass(frozen=True)
class StoredBlock:
    """A measured block, with its judgement if it has one yet.

    Attributes:
        round: ``REFERENCE_ROUND`` for blocks of the references alone, which tell the devices of a
            group apart.
        device: what users call the device that measured it.
    """

    number: int
    block_id: str
    round: int
    measured_at: str
    device: str
    hostname: str
    busy_ns: int
    running_ns: int
    bytes_sent: int
    wall_seconds: float
    passed: bool | None
    worst_deviation: float | None


@dataclass(frozen=True)
class Attempt:
    """One measuring of an architecture, without its samples."""

    architecture_key: str
    block_id: str
    failure_kind: FailureKind | None


@dataclass(frozen=True)
class Extent:
    """How far a campaign has come.

    Attributes:
        measured_models: architectures that were measured, references not counted.
        measured_at: when the last block was stored, as ISO 8601 in UTC, and the host name of the
            device that measured it; None where there is none.
    """

    measured_models: int
    measured_at: str | None
    hostname: str | None


@dataclass(frozen=True)
class Departure:
    """A device of a group was given up."""

    device: str
    left_at: str
    reason: str


@dataclass(frozen=True, eq=False)
class StoredMeasurement:
    """A measurement and where it belongs. ``measurement.model_id`` is the architecture's key."""

    block_id: str
    measurement: Measurement


@dataclass(frozen=True, eq=False)
class Company:
    """The agent's reference models in a block.

    Attributes:
        references: their measurements, by the agent's names for them.
        usual: what the agent remembered of them before the block; None where that was nothing.
    """

    references: tuple[Measurement, ...] = ()
    usual: Usual | None = None


class Store:
    """One campaign's records.

    Args:
        place: a SQLite file, or another database; its tables are made unless it has them.

    Raises:
        DatasetError: it is no store, is damaged, of another schema version, or out of reach.
        MismatchError: it is of another campaign than was asked for.
    """

    def __init__(self, place: Path | Database) -> None:
        self.database = SqliteFile(place) if isinstance(place, Path) else place
        self._engine = self.database.engine
        try:
            self._open()
        except DBAPIError as error:
            raise self.database.unreadable(error) from error

    def _open(self) -> None:
        database = self.database
        tables = sa.inspect(self._engine).get_table_names(database.schema)
        if tables and "facts" not in tables:
            raise database.unreadable("it is the database of another program")
        if not tables:
            with database.making() as connection:
                _schema.create_all(connection)
                facts = {"schema_version": SCHEMA_VERSION, **database.facts}
                rows = [{"key": key, "value": value} for key, value in facts.items()]
                connection.execute(_facts.insert(), rows)
        database.check()
        found = self.fact("schema_version")
        if not isinstance(found, int) or not 1 <= found <= SCHEMA_VERSION:
            raise DatasetError(
                f"{database.location} has schema version {found}, this program reads up to "
                f"{SCHEMA_VERSION}: use the esm-profiler that wrote it"
            )
        if found < SCHEMA_VERSION:
            with database.migrating() as connection:
                migrate(connection, found, SCHEMA_VERSION)
        if any(self.fact(key) != value for key, value in database.facts.items()):
            raise MismatchError(
                f"{database.location} is not the one that this folder is of, but another of its "
                f"name: give another {argument('run')}"
            )

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError as error:
            raise DatasetError(
                f"{self.database.location} cannot take this: {detail_of(error)}"
            ) from error
        except DBAPIError as error:
            raise self.database.unwritable(error) from error

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (DBAPIError, zlib.error) as error:
            raise self.database.unreadable(error) from error

    def close(self) -> None:
        self.database.close()

    # Facts, written once

    def fact(self, key: str) -> Any:
        """A fact, or None."""
        with self._reading() as connection:
            return connection.scalar(sa.select(_facts.c.value).where(_facts.c.key == key))

    def add_fact(self, key: str, value: Any) -> None:
        with self._writing() as connection:
            connection.execute(_facts.insert(), {"key": key, "value": value})

    # The plan

    def add_plan(self, round_number: int, architectures: Sequence[Architecture]) -> None:
        """Writes down a round's architectures before any of them is measured."""
        rows = [
            {
                "architecture_key": architecture.key,
                "round": round_number,
                "position": position,
                "architecture": architecture.to_json(),
            }
            for position, architecture in enumerate(architectures)
        ]
        with self._writing() as connection:
            connection.execute(_plan.insert(), rows)

    def plan(self) -> dict[int, list[Architecture]]:
        """Architectures by round, in order; references under REFERENCE_ROUND."""
        query = sa.select(_plan).order_by(_plan.c.round, _plan.c.position)
        rounds: dict[int, list[Architecture]] = {}
        with self._reading() as connection:
            for row in connection.execute(query):
                rounds.setdefault(row.round, []).append(Architecture.from_json(row.architecture))
        return rounds

    # Blocks

    def add_block(
        self,
        round_number: int,
        block: Block,
        result: BlockResult,
        device: DeviceInfo,
        bytes_sent: int,
        wall_seconds: float,
        name: str = "",
    ) -> None:
        """Keeps a measured block whole. Model ids are architecture keys.

        Args:
            name: what users call the device; its hostname unless given.

        Raises:
            DatasetError: the block is there already, or a model is not in the plan.
        """
        rows = [
            {
                "block_id": block.block_id,
                "position": position,
                "architecture_key": measurement.model_id,
                "latency_ns": _pack(measurement.latency_ns),
                "start_ns": _pack(measurement.start_ns),
                "load_ns": measurement.load_ns,
                "first_run_ns": measurement.first_run_ns,
                "copy_in_ns": _pack(measurement.copy_in_ns),
                "copy_out_ns": _pack(measurement.copy_out_ns),
                "ran_on": measurement.ran_on,
                "fallback": measurement.fallback,
                **_failure_of(measurement),
            }
            for position, measurement in enumerate(result.measurements)
        ]
        with self._writing() as connection:
            connection.execute(
                _blocks.insert(),
                {
                    "block_id": block.block_id,
                    "round": round_number,
                    "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "spec": block.spec.to_json(),
                    "device": {"name": name or device.hostname, **asdict(device)},
                    "states": [state.to_json() for state in result.states],
                    "busy_ns": result.busy_ns,
                    "running_ns": result.running_ns,
                    "bytes_sent": bytes_sent,
                    "wall_seconds": wall_seconds,
                },
            )
            connection.execute(_measurements.insert(), rows)
            self._add_values(connection, result)
            if result.references or result.usual is not None:
                self._add_company(connection, result)

    def _add_values(self, connection: sa.Connection, result: BlockResult) -> None:
        rows = [
            {"block_id": result.block_id, "position": position, "metrics": dict(measured.metrics)}
            for position, measured in enumerate(result.measurements)
            if measured.metrics
        ]
        if rows:
            _values.create(connection, checkfirst=True)
            connection.execute(_values.insert(), rows)

    def _add_company(self, connection: sa.Connection, result: BlockResult) -> None:
        _company.create_all(connection)
        block_id = result.block_id
        references = [
            {
                "block_id": block_id,
                "position": position,
                "name": reference.model_id.replace("\0", ""),
                "latency_ns": _pack(reference.latency_ns),
                "start_ns": _pack(reference.start_ns),
                "load_ns": reference.load_ns,
                "first_run_ns": reference.first_run_ns,
                **_visits_of(reference),
                **_failure_of(reference),
            }
            for position, reference in enumerate(result.references)
        ]
        visits = [
            {
                "block_id": block_id,
                "position": position,
                "warming_ns": list(measurement.warming_ns),
                "warm_ns": _pack(measurement.warm_ns),
                **_visits_of(measurement),
            }
            for position, measurement in enumerate(result.measurements)
        ]
        if references:
            connection.execute(_agent_references.insert(), references)
        if visits:
            connection.execute(_visits.insert(), visits)
        if result.usual is not None:
            usual = {"block_id": block_id, "usual": result.usual.to_json()}
            connection.execute(_usual.insert(), usual)

    def _has(self, connection: sa.Connection, table: sa.Table) -> bool:
        return sa.inspect(connection).has_table(table.name, self.database.schema)

    def blocks(self) -> list[StoredBlock]:
        """All blocks in the order in which they were measured."""
        columns = [getattr(_blocks.c, name) for name in _BLOCK_COLUMNS]
        hostname = _blocks.c.device["hostname"].as_string()
        # Older stores have no names.
        name = sa.func.coalesce(_blocks.c.device["name"].as_string(), hostname)
        query = (
            sa.select(
                *columns,
                name.label("device"),
                hostname.label("hostname"),
                _judgements.c.passed,
                _judgements.c.worst_deviation,
            )
            .select_from(_blocks.outerjoin(_judgements))
            .order_by(_blocks.c.number)
        )
        with self._reading() as connection:
            return [StoredBlock(**row) for row in connection.execute(query).mappings()]

    def extent(self) -> Extent:
        """What there is, without reading it all."""
        count = (
            sa.select(sa.func.count(_measurements.c.architecture_key.distinct()))
            .join(_plan, _measurements.c.architecture_key == _plan.c.architecture_key)
            .where(_plan.c.round != REFERENCE_ROUND, _measurements.c.failure_kind.is_(None))
        )
        last = (
            sa.select(_blocks.c.measured_at, _blocks.c.device["hostname"].as_string())
            .order_by(_blocks.c.number.desc())
            .limit(1)
        )
        with self._reading() as connection:
            measured_at, hostname = connection.execute(last).one_or_none() or (None, None)
            return Extent(connection.execute(count).scalar_one(), measured_at, hostname)

    def attempts(self, round_number: int) -> list[Attempt]:
        """Every measuring of a round's architectures so far, in the order of their blocks."""
        query = (
            sa.select(
                _measurements.c.architecture_key,
                _measurements.c.block_id,
                _measurements.c.failure_kind,
            )
            .join(_blocks, _measurements.c.block_id == _blocks.c.block_id)
            .join(_plan, _measurements.c.architecture_key == _plan.c.architecture_key)
            .where(_plan.c.round == round_number)
            .order_by(_blocks.c.number, _measurements.c.position)
        )
        with self._reading() as connection:
            return [
                Attempt(key, block_id, FailureKind(kind) if kind else None)
                for key, block_id, kind in connection.execute(query)
            ]

    def measurements(self, after: int = 0) -> list[StoredMeasurement]:
        """Measurements of the blocks whose number exceeds ``after``, in their order."""
        query = (
            sa.select(_measurements)
            .join(_blocks)
            .where(_blocks.c.number > after)
            .order_by(_blocks.c.number, _measurements.c.position)
        )
        with self._reading() as connection:
            visits = {
                (row["block_id"], row["position"]): row
                for row in self._since(connection, _visits, after)
            }
            values = {
                (row["block_id"], row["position"]): row["metrics"]
                for row in self._since(connection, _values, after)
            }
            found = []
            for row in connection.execute(query).mappings():
                place = row["block_id"], row["position"]
                measurement = _measurement(row, visits.get(place), values.get(place, {}))
                found.append(StoredMeasurement(row["block_id"], measurement))
            return found

    def companies(self, after: int = 0) -> dict[str, Company]:
        """Return the agent's reference models by block id, of the blocks whose number exceeds
        ``after``; blocks without any are absent."""
        references: dict[str, list[Measurement]] = {}
        with self._reading() as connection:
            for row in self._since(connection, _agent_references, after):
                references.setdefault(row["block_id"], []).append(_reference(row))
            usual = {
                row["block_id"]: Usual.from_json(row["usual"])
                for row in self._since(connection, _usual, after)
            }
        return {
            block_id: Company(tuple(references.get(block_id, ())), usual.get(block_id))
            for block_id in references.keys() | usual.keys()
        }

    def _since(
        self, connection: sa.Connection, table: sa.Table, after: int
    ) -> Sequence[sa.RowMapping]:
        """Rows of the blocks whose number exceeds ``after``; none where there is no such table."""
        if not self._has(connection, table):
            return []
        query = (
            sa.select(table)
            .join(_blocks, _blocks.c.block_id == table.c.block_id)
            .where(_blocks.c.number > after)
        )
        if "position" in table.c:
            query = query.order_by(_blocks.c.number, table.c.position)
        return connection.execute(query).mappings().all()

    def states(self, block_id: str) -> tuple[DeviceState, ...]:
        """Of the device before, during and after a block."""
        query = sa.select(_blocks.c.states).where(_blocks.c.block_id == block_id)
        with self._reading() as connection:
            states = connection.execute(query).scalar_one()
            return tuple(DeviceState.from_json(state) for state in states)

    def last_device(self) -> dict[str, Any]:
        """Return the device that measured the last block, as it told of itself; the store has
        one."""
        query = sa.select(_blocks.c.device).order_by(_blocks.c.number.desc()).limit(1)
        with self._reading() as connection:
            device: dict[str, Any] = connection.execute(query).scalar_one()
        return {key: value for key, value in device.items() if key != "name"}

    def processors(self, block_id: str) -> float:
        """Return the processors that a block's models could use at a time."""
        query = sa.select(_blocks.c.device).where(_blocks.c.block_id == block_id)
        with self._reading() as connection:
            device = connection.execute(query).scalar_one()
        # Blocks of older versions know of no quota.
        return float(min(device["cpu_count"], device.get("cpu_quota") or math.inf))

    def add_judgement(
        self,
        block_id: str,
        passed: bool,
        worst_deviation: float,
        verdicts: Mapping[str, Judgement],
    ) -> None:
        """Keeps what quality control says of a block, and the verdict on each of its models."""
        row = {"block_id": block_id, "passed": passed, "worst_deviation": worst_deviation}
        rows = [
            {
                "block_id": block_id,
                "architecture_key": key,
                "verdict": judgement.verdict.value,
                "reasons": list(judgement.reasons),
            }
            for key, judgement in verdicts.items()
        ]
        with self._writing() as connection:
            connection.execute(_judgements.insert(), row)
            if rows:
                connection.execute(_verdicts.insert(), rows)

    def verdicts(self) -> dict[tuple[str, str], Judgement]:
        """Judgements by block id and architecture key."""
        with self._reading() as connection:
            return {
                (row.block_id, row.architecture_key): Judgement(
                    Verdict(row.verdict), tuple(row.reasons)
                )
                for row in connection.execute(sa.select(_verdicts))
            }

    # Devices that left

    def add_departure(self, device: str, reason: str) -> None:
        left_at = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"device": device, "left_at": left_at, "reason": reason}
        with self._writing() as connection:
            _departures.create(connection, checkfirst=True)
            connection.execute(_departures.insert(), row)

    def departures(self) -> list[Departure]:
        """Of devices of a group, in order; a device that came back may be among them."""
        query = sa.select(_departures.c.device, _departures.c.left_at, _departures.c.reason)
        with self._reading() as connection:
            if not self._has(connection, _departures):
                return []
            return [Departure(*row) for row in connection.execute(query.order_by("number"))]

    # Rounds

    def keep_round(self, round_number: int, result: Mapping[str, Any]) -> None:
        """Keeps what a finished round came to, in place of what it had come to before."""
        with self._writing() as connection:
            connection.execute(_rounds.delete().where(_rounds.c.round == round_number))
            connection.execute(_rounds.insert(), {"round": round_number, "result": dict(result)})

    def rounds(self) -> list[dict[str, Any]]:
        """Results of the finished rounds, in order."""
        query = sa.select(_rounds.c.result).order_by(_rounds.c.round)
        with self._reading() as connection:
            return list(connection.scalars(query))


_BLOCK_COLUMNS = (
    "number",
    "block_id",
    "round",
    "measured_at",
    "busy_ns",
    "running_ns",
    "bytes_sent",
    "wall_seconds",
)


def _measurement(
    row: sa.RowMapping, visits: sa.RowMapping | None, values: Mapping[str, float]
) -> Measurement:
    """A measurement of a block's own model.

    Args:
        visits: of blocks with the agent's reference models.
        values: of metrics that have no column of their own, by key.
    """
    measurement = Measurement(
        row["architecture_key"],
        _unpack(row["latency_ns"]),
        _unpack(row["start_ns"]),
        row["load_ns"],
        row["first_run_ns"],
        _failure(row),
        _unpack(row["copy_in_ns"]),
        _unpack(row["copy_out_ns"]),
        tuple((provider, nodes) for provider, nodes in row["ran_on"]),
        tuple(row["fallback"]),
        metrics=values,
    )
    return measurement if visits is None else _with_visits(measurement, visits)


def _reference(row: sa.RowMapping) -> Measurement:
    measurement = Measurement(
        row["name"],
        _unpack(row["latency_ns"]),
        _unpack(row["start_ns"]),
        row["load_ns"],
        row["first_run_ns"],
        _failure(row),
    )
    return _with_visits(measurement, row)


def _with_visits(measurement: Measurement, row: sa.RowMapping) -> Measurement:
    return replace(
        measurement,
        runs_per_visit=row["runs_per_visit"],
        weight_bytes=row["weight_bytes"],
        session_runs=tuple(row["session_runs"]),
        warming_ns=tuple(row.get("warming_ns", ())),
        warm_ns=_unpack(row["warm_ns"]) if "warm_ns" in row else measurement.warm_ns,
    )


def _visits_of(measurement: Measurement) -> dict[str, Any]:
    return {
        "runs_per_visit": measurement.runs_per_visit,
        "weight_bytes": measurement.weight_bytes,
        "session_runs": list(measurement.session_runs),
    }


def _failure(row: sa.RowMapping) -> Failure | None:
    kind = row["failure_kind"]
    return Failure(FailureKind(kind), row["failure_message"]) if kind else None


def _failure_of(measurement: Measurement) -> dict[str, str | None]:
    failure = measurement.failure
    if failure is None:
        return {"failure_kind": None, "failure_message": None}
    # PostgreSQL's text has no NUL.
    return {
        "failure_kind": failure.kind.value,
        "failure_message": failure.message.replace("\0", ""),
    }


def _pack(samples: Nanoseconds) -> bytes:
    return zlib.compress(samples.astype("<i8").tobytes())


def _unpack(data: bytes) -> Nanoseconds:
    return np.frombuffer(zlib.decompress(data), dtype="<i8").astype(np.int64)
