"""Store of a campaign: plan, measured blocks, results of quality control and of rounds.

The store is a SQLite file, or a PostgreSQL schema for a team, through SQLAlchemy Core. A block
and its measurements are written in one transaction. Plan, blocks and results of quality control
are append-only; the result of a round can be replaced. The store keeps raw samples; latencies are
derived from them.
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from esm_host.arguments import argument
from esm_host.dataset.database import Database, SqliteFile, detail_of
from esm_host.dataset.migrations import migrate
from esm_host.dataset.rows import all_metrics, energy_of, from_row, plain, to_row
from esm_host.dataset.schema import (
    AGENT_REFERENCES,
    BLOCKS,
    DEPARTURES,
    ENERGIES,
    FACTS,
    JUDGEMENTS,
    MEASUREMENTS,
    PLAN,
    ROUNDS,
    SCHEMA,
    SCHEMA_VERSION,
    USUAL,
    VALUES,
    VERDICTS,
    VISITS,
    WITH_REFERENCES,
)
from esm_host.errors import DatasetError, MismatchError
from esm_host.evaluation.verdict import Judgement, Verdict
from esm_models.architecture import Architecture
from esm_protos.messages import (
    Block,
    BlockResult,
    DeviceInfo,
    DeviceState,
    FailureKind,
    Measurement,
    UsualLatencies,
)

REFERENCE_ROUND = -1
"""Round of the plan that holds the campaign's own reference architectures. The agent's built-in
reference models are stored with each block."""
CHECK_FACT = "check of round "
"""Begin of the facts that mark rounds as checks."""
GROUP_FACT = "group"
"""Fact with the names of a group's devices; a campaign on a single device lacks it."""


@dataclass(frozen=True)
class StoredBlock:
    """Measured block with the result of its quality control, which is None before it.

    Attributes:
        number: Number of the block in the store.
        block_id: Id of the block.
        round: Round of the plan; ``REFERENCE_ROUND`` for blocks of references alone, which
            compare the devices of a group.
        measured_at: Time of storage, ISO 8601 in UTC.
        device: Name of the device.
        hostname: Host name of the device.
        busy_ns: Time that the device spent on the block, ns.
        running_ns: Time of the runs alone, ns.
        bytes_sent: Bytes sent to the device.
        wall_seconds: Time between the previous block and this one, s.
        passed: Whether the block passed; None before it is judged.
        worst_deviation: Largest reference deviation, as a share; None before the block is judged.
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
    """One attempt to measure an architecture, without its samples."""

    architecture_key: str
    block_id: str
    failure_kind: FailureKind | None


@dataclass(frozen=True)
class Extent:
    """Progress of a campaign.

    Attributes:
        measured_models: Number of measured architectures, references not counted.
        measured_at: Time of the last block, ISO 8601 in UTC; None without blocks.
        hostname: Host name of the device that measured the last block; None without blocks.
    """

    measured_models: int
    measured_at: str | None
    hostname: str | None


@dataclass(frozen=True)
class Departure:
    """Departure of a device from a group."""

    device: str
    left_at: str
    reason: str


class Store:
    """Append-only store of one campaign.

    Args:
        place: SQLite file or other database; missing tables are created.

    Raises:
        DatasetError: the place is not a store, is damaged, unreachable, or of a later schema
            version.
        MismatchError: the store belongs to another campaign.
    """

    def __init__(self, place: Path | Database) -> None:
        self.database = SqliteFile(place) if isinstance(place, Path) else place
        self._engine = self.database.engine
        self._plan: dict[int, list[Architecture]] = {}
        self._snapshot: sa.Connection | None = None
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
                SCHEMA.create_all(connection)
                facts = {"schema_version": SCHEMA_VERSION, **database.facts}
                rows = [{"key": key, "value": value} for key, value in facts.items()]
                connection.execute(FACTS.insert(), rows)
        database.check()
        found = self.fact("schema_version")
        if not isinstance(found, int) or not 1 <= found <= SCHEMA_VERSION:
            raise DatasetError(
                f"{database.location} has schema version {found}, this program reads up to "
                f"{SCHEMA_VERSION}: use the version of esm-profiler that wrote it"
            )
        if found < SCHEMA_VERSION:
            with database.migrating() as connection:
                migrate(connection, found, SCHEMA_VERSION)
        if any(self.fact(key) != value for key, value in database.facts.items()):
            raise MismatchError(
                f"{database.location} is another campaign of the same name, not the one of this "
                f"folder: give another {argument('run')}"
            )

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except sa.exc.IntegrityError as error:
            raise DatasetError(
                f"{self.database.location} cannot store this: {detail_of(error)}"
            ) from error
        except DBAPIError as error:
            raise self.database.unwritable(error) from error

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        try:
            if self._snapshot is not None:
                yield self._snapshot
                return
            with self._engine.connect() as connection:
                yield connection
        except (DBAPIError, zlib.error) as error:
            raise self.database.unreadable(error) from error

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one state of the store until the context ends, whatever a campaign adds to it."""
        try:
            with self.database.snapshot() as self._snapshot:
                yield
        except DBAPIError as error:
            raise self.database.unreadable(error) from error
        finally:
            self._snapshot = None

    def close(self) -> None:
        self.database.close()

    # Facts, written once

    def fact(self, key: str) -> Any:
        """Return a fact, or None."""
        with self._reading() as connection:
            return connection.scalar(sa.select(FACTS.c.value).where(FACTS.c.key == key))

    def add_fact(self, key: str, value: Any) -> None:
        with self._writing() as connection:
            connection.execute(FACTS.insert(), {"key": key, "value": value})

    # The plan

    def add_plan(
        self, round_number: int, architectures: Sequence[Architecture], is_check: bool = False
    ) -> None:
        """Store a round's architectures before they are measured.

        Args:
            round_number: Number of the round.
            architectures: Architectures of the round.
            is_check: Whether the round checks the predictor on random architectures.
        """
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
            connection.execute(PLAN.insert(), rows)
            if is_check:
                fact = {"key": f"{CHECK_FACT}{round_number}", "value": True}
                connection.execute(FACTS.insert(), fact)
        self._plan[round_number] = list(architectures)

    def plan(self) -> dict[int, list[Architecture]]:
        """Return the architectures by round, in order; references under REFERENCE_ROUND.

        A round is written whole and never changes, so each is read once. All calls return the
        same architecture objects.
        """
        unread = PLAN.c.round.not_in(list(self._plan))
        query = sa.select(PLAN).where(unread).order_by(PLAN.c.round, PLAN.c.position)
        read: defaultdict[int, list[Architecture]] = defaultdict(list)
        with self._reading() as connection:
            for row in connection.execute(query):
                read[row.round].append(Architecture.from_json(row.architecture))
        self._plan.update(read)
        return {number: list(self._plan[number]) for number in sorted(self._plan)}

    def checks(self) -> set[int]:
        """Return the numbers of the rounds that are checks."""
        query = sa.select(FACTS.c.key).where(FACTS.c.key.startswith(CHECK_FACT))
        with self._reading() as connection:
            return {int(key.removeprefix(CHECK_FACT)) for key in connection.scalars(query)}

    def held_out(self) -> set[str]:
        """Return the keys of the models that no predictor is trained on.

        They are those of the last check, unless another round followed because it failed. A check
        that was enlarged has several rounds.
        """
        plan, checks = self.plan(), self.checks()
        last = max(plan, default=REFERENCE_ROUND)
        held_out: set[str] = set()
        while last in checks:
            held_out |= {a.key for a in plan[last]}
            last -= 1
        return held_out

    def references(self) -> list[Architecture]:
        """Return the campaign's own reference architectures; empty before they are planned."""
        return self.plan().get(REFERENCE_ROUND, [])

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
        """Store a measured block. Model ids are architecture keys.

        Args:
            round_number: Round of the plan.
            block: Block as it was sent.
            result: Result of the block.
            device: Device that measured the block.
            bytes_sent: Bytes sent to the device.
            wall_seconds: Time between the previous block and this one, s.
            name: Name of the device; empty for its host name.

        Raises:
            DatasetError: the store already holds the block, or a model is not in the plan.
        """
        rows = [
            {
                "block_id": block.block_id,
                "position": position,
                "architecture_key": measurement.model_id,
                **to_row(measurement, MEASUREMENTS),
            }
            for position, measurement in enumerate(result.measurements)
        ]
        with self._writing() as connection:
            connection.execute(
                BLOCKS.insert(),
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
            connection.execute(MEASUREMENTS.insert(), rows)
            measured = result.measurements
            self._add_json(connection, VALUES, result.block_id, map(all_metrics, measured))
            energies = (asdict(each.energy) if each.energy else None for each in measured)
            self._add_json(connection, ENERGIES, result.block_id, energies)
            if result.references or result.usual is not None:
                self._add_references(connection, result)

    def _add_json(
        self,
        connection: sa.Connection,
        table: sa.Table,
        block_id: str,
        values: Iterable[Mapping[str, Any] | None],
    ) -> None:
        """Store what some measurements of a block have, in a table that the first one makes.

        Args:
            connection: Connection of the transaction.
            table: Table with a column of JSON after those of the place.
            block_id: Id of the block.
            values: Value of each measurement; None or empty where it has none.
        """
        *_, column = table.c
        rows = [
            {"block_id": block_id, "position": position, column.name: value}
            for position, value in enumerate(values)
            if value
        ]
        if rows:
            table.create(connection, checkfirst=True)
            connection.execute(table.insert(), rows)

    def _add_references(self, connection: sa.Connection, result: BlockResult) -> None:
        WITH_REFERENCES.create_all(connection)
        block_id = result.block_id
        references = [
            {
                "block_id": block_id,
                "position": position,
                "name": plain(reference.model_id),
                **to_row(reference, AGENT_REFERENCES),
            }
            for position, reference in enumerate(result.references)
        ]
        visits = [
            {"block_id": block_id, "position": position, **to_row(measurement, VISITS)}
            for position, measurement in enumerate(result.measurements)
        ]
        if references:
            connection.execute(AGENT_REFERENCES.insert(), references)
        if visits:
            connection.execute(VISITS.insert(), visits)
        if result.usual is not None:
            usual = {"block_id": block_id, "usual": result.usual.to_json()}
            connection.execute(USUAL.insert(), usual)

    def _has(self, connection: sa.Connection, table: sa.Table) -> bool:
        return sa.inspect(connection).has_table(table.name, self.database.schema)

    def blocks(self) -> list[StoredBlock]:
        """Return all blocks in the order of measurement."""
        columns = [getattr(BLOCKS.c, name) for name in _BLOCK_COLUMNS]
        hostname = BLOCKS.c.device["hostname"].as_string()
        # Older stores have no names.
        name = sa.func.coalesce(BLOCKS.c.device["name"].as_string(), hostname)
        query = (
            sa.select(
                *columns,
                name.label("device"),
                hostname.label("hostname"),
                JUDGEMENTS.c.passed,
                JUDGEMENTS.c.worst_deviation,
            )
            .select_from(BLOCKS.outerjoin(JUDGEMENTS))
            .order_by(BLOCKS.c.number)
        )
        with self._reading() as connection:
            return [StoredBlock(**row) for row in connection.execute(query).mappings()]

    def extent(self) -> Extent:
        """Return the progress of the campaign without reading all of it."""
        count = (
            sa.select(sa.func.count(MEASUREMENTS.c.architecture_key.distinct()))
            .join(PLAN, MEASUREMENTS.c.architecture_key == PLAN.c.architecture_key)
            .where(PLAN.c.round != REFERENCE_ROUND, MEASUREMENTS.c.failure_kind.is_(None))
        )
        last = (
            sa.select(BLOCKS.c.measured_at, BLOCKS.c.device["hostname"].as_string())
            .order_by(BLOCKS.c.number.desc())
            .limit(1)
        )
        with self._reading() as connection:
            measured_at, hostname = connection.execute(last).one_or_none() or (None, None)
            return Extent(connection.execute(count).scalar_one(), measured_at, hostname)

    def attempts(self, round_number: int) -> list[Attempt]:
        """Return all attempts to measure a round's architectures, in the order of their blocks."""
        query = (
            sa.select(
                MEASUREMENTS.c.architecture_key,
                MEASUREMENTS.c.block_id,
                MEASUREMENTS.c.failure_kind,
            )
            .join(BLOCKS, MEASUREMENTS.c.block_id == BLOCKS.c.block_id)
            .join(PLAN, MEASUREMENTS.c.architecture_key == PLAN.c.architecture_key)
            .where(PLAN.c.round == round_number)
            .order_by(BLOCKS.c.number, MEASUREMENTS.c.position)
        )
        with self._reading() as connection:
            return [
                Attempt(key, block_id, FailureKind(kind) if kind else None)
                for key, block_id, kind in connection.execute(query)
            ]

    def results(self, after: int = 0) -> list[BlockResult]:
        """Return the results of the blocks whose number exceeds ``after``, in order.

        Model ids are architecture keys. The agent's reference models keep the agent's names.
        Fields that the store does not hold have their defaults.
        """
        blocks = (
            sa.select(BLOCKS.c.block_id, BLOCKS.c.busy_ns, BLOCKS.c.running_ns, BLOCKS.c.states)
            .where(BLOCKS.c.number > after)
            .order_by(BLOCKS.c.number)
        )
        measurements: defaultdict[str, list[Measurement]] = defaultdict(list)
        references: defaultdict[str, list[Measurement]] = defaultdict(list)
        with self._reading() as connection:
            visits = {
                (row["block_id"], row["position"]): row
                for row in self._since(connection, VISITS, after)
            }
            values = {
                (row["block_id"], row["position"]): row
                for row in self._since(connection, VALUES, after)
            }
            energies = {
                (row["block_id"], row["position"]): energy_of(row["energy"])
                for row in self._since(connection, ENERGIES, after)
            }
            for row in self._since(connection, MEASUREMENTS, after):
                place = row["block_id"], row["position"]
                more: dict[str, Any] = {**visits.get(place, {}), **values.get(place, {})}
                if place in energies:
                    more["energy"] = energies[place]
                measurements[row["block_id"]].append(from_row(row["architecture_key"], row, more))
            for row in self._since(connection, AGENT_REFERENCES, after):
                references[row["block_id"]].append(from_row(row["name"], row))
            usual = {
                row["block_id"]: UsualLatencies.from_json(row["usual"])
                for row in self._since(connection, USUAL, after)
            }
            return [
                BlockResult(
                    block_id,
                    tuple(measurements[block_id]),
                    busy_ns,
                    running_ns,
                    tuple(map(DeviceState.from_json, states)),
                    tuple(references[block_id]),
                    usual.get(block_id),
                )
                for block_id, busy_ns, running_ns, states in connection.execute(blocks)
            ]

    def measurements(self) -> list[Measurement]:
        """Return all measurements of the blocks' models, in the order of the blocks."""
        return [each for result in self.results() for each in result.measurements]

    def _since(
        self, connection: sa.Connection, table: sa.Table, after: int
    ) -> Sequence[sa.RowMapping]:
        """Return the rows of blocks whose number exceeds ``after``; empty without the table."""
        if not self._has(connection, table):
            return []
        query = (
            sa.select(table)
            .join(BLOCKS, BLOCKS.c.block_id == table.c.block_id)
            .where(BLOCKS.c.number > after)
        )
        if "position" in table.c:
            query = query.order_by(BLOCKS.c.number, table.c.position)
        return connection.execute(query).mappings().all()

    def last_device(self) -> dict[str, Any]:
        """Return the self-description of the device that measured the last block.

        The store must hold a block.
        """
        query = sa.select(BLOCKS.c.device).order_by(BLOCKS.c.number.desc()).limit(1)
        with self._reading() as connection:
            device: dict[str, Any] = connection.execute(query).scalar_one()
        return {key: value for key, value in device.items() if key != "name"}

    def processors(self, block_id: str) -> float:
        """Return the number of processors that a block's models could use at a time."""
        query = sa.select(BLOCKS.c.device).where(BLOCKS.c.block_id == block_id)
        with self._reading() as connection:
            device = connection.execute(query).scalar_one()
        # Blocks of older versions have no quota.
        return float(min(device["cpu_count"], device.get("cpu_quota") or math.inf))

    def add_judgement(
        self,
        block_id: str,
        passed: bool,
        worst_deviation: float,
        verdicts: Mapping[str, Judgement],
    ) -> None:
        """Store the result of a block's quality control and the judgements of its models."""
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
            connection.execute(JUDGEMENTS.insert(), row)
            if rows:
                connection.execute(VERDICTS.insert(), rows)

    def verdicts(self) -> dict[tuple[str, str], Judgement]:
        """Return the judgements of models by block id and architecture key."""
        with self._reading() as connection:
            return {
                (row.block_id, row.architecture_key): Judgement(
                    Verdict(row.verdict), tuple(row.reasons)
                )
                for row in connection.execute(sa.select(VERDICTS))
            }

    # Devices that left

    def add_departure(self, device: str, reason: str) -> None:
        left_at = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"device": device, "left_at": left_at, "reason": reason}
        with self._writing() as connection:
            DEPARTURES.create(connection, checkfirst=True)
            connection.execute(DEPARTURES.insert(), row)

    def departures(self) -> list[Departure]:
        """Return the departures from a group in order, also of devices that returned later."""
        query = sa.select(DEPARTURES.c.device, DEPARTURES.c.left_at, DEPARTURES.c.reason)
        with self._reading() as connection:
            if not self._has(connection, DEPARTURES):
                return []
            return [Departure(*row) for row in connection.execute(query.order_by("number"))]

    # Rounds

    def keep_round(self, round_number: int, result: Mapping[str, Any]) -> None:
        """Store the result of a finished round; it replaces the round's previous result."""
        with self._writing() as connection:
            connection.execute(ROUNDS.delete().where(ROUNDS.c.round == round_number))
            connection.execute(ROUNDS.insert(), {"round": round_number, "result": dict(result)})

    def rounds(self) -> list[dict[str, Any]]:
        """Return the results of the finished rounds, in order."""
        query = sa.select(ROUNDS.c.result).order_by(ROUNDS.c.round)
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
