"""The store keeps what it is given, once, and says so when it cannot, whatever it is kept in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from esm_host.dataset.database import Database, PostgresSchema, SqliteFile
from esm_host.dataset.store import REFERENCE_ROUND, Attempt, Extent, Store
from esm_host.errors import DatasetError
from esm_host.evaluation.verdict import Judgement, Verdict
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.messages import (
    Block,
    BlockResult,
    Energy,
    FailureKind,
    Measurement,
    MeasureSpec,
    Model,
    UsualLatencies,
)

PLAN = [Architecture("s", (("a",), ("b",) * n)) for n in range(1, 6)]
DEVICE = FakeProfiler(lambda model: 1.0).device_info()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Where a store may be; nothing is there yet."""
    if request.param == "sqlite":
        return SqliteFile(tmp_path / "store.sqlite")
    return PostgresSchema(request.getfixturevalue("shared_store"), "pi4-resnet.2", "an id")


@pytest.fixture
def store(place: Database) -> Store:
    store = Store(place)
    store.add_plan(REFERENCE_ROUND, PLAN[:1])
    store.add_plan(0, PLAN[1:])
    return store


def add(store: Store, block_id: str, measurements: list[Measurement]) -> None:
    block = Block(block_id, MeasureSpec(), tuple(Model(m.model_id, b"") for m in measurements))
    store.add_block(0, block, BlockResult(block_id, tuple(measurements), 9, 7), DEVICE, 11, 1.5)


def samples(architecture: Architecture) -> Measurement:
    return Measurement(
        architecture.key,
        np.array([5, 3, 2**61]),
        np.array([0, 10, 20]),
        4,
        6,
        copy_in_ns=np.array([2, 1]),
        copy_out_ns=np.array([3]),
        ran_on=(("CUDAExecutionProvider", 7), ("CPUExecutionProvider", 1)),
        fallback=("resize",),
    )


def test_a_snapshot_does_not_see_what_another_program_adds(store: Store, place: Database) -> None:
    if isinstance(place, PostgresSchema):
        writer = Store(PostgresSchema(place.url, place.name, "an id"))
    else:
        writer = Store(Path(place.location))
    add(store, "one", [samples(PLAN[1])])
    with store.snapshot():
        assert len(store.blocks()) == 1
        add(writer, "two", [samples(PLAN[2])])
        writer.keep_round(0, {"n": 1})
        assert [block.block_id for block in store.blocks()] == ["one"]
        assert len(store.measurements()) == 1
        assert store.rounds() == []
    assert [block.block_id for block in store.blocks()] == ["one", "two"]
    assert store.rounds() == [{"n": 1}]
    writer.close()


def test_metrics_are_kept_where_there_are_any(store: Store, place: Database) -> None:
    add(store, "none", [samples(PLAN[1])])
    assert not sa.inspect(place.engine).has_table("metrics", place.schema), "as in older stores"
    assert [stored.metrics for stored in store.measurements()] == [{}]
    told = {"peak_rss_bytes": 2**40, "energy_mj": -1.5}
    add(store, "some", [samples(PLAN[1]), replace(samples(PLAN[2]), metrics=told)])
    kept = list(Store(store.database).measurements())
    assert [measured.metrics for measured in kept] == [{}, {}, told]
    assert kept[-1].peak_rss_bytes == 2**40


def test_energies_are_kept_where_there_are_any(store: Store, place: Database) -> None:
    add(store, "none", [samples(PLAN[1])])
    assert not sa.inspect(place.engine).has_table("energies", place.schema), "as in older stores"
    energy = Energy("RAPL", "package", (2.5, 3.0), (1.0, 1.0), "too wide", 80.0)
    add(store, "some", [samples(PLAN[1]), replace(samples(PLAN[2]), energy=energy)])
    kept = Store(store.database).measurements()
    assert [measured.energy for measured in kept] == [None, None, energy]


def test_what_goes_in_comes_out(store: Store) -> None:
    failed = Measurement.failed(PLAN[2].key, FailureKind.CRASH, "it crashed")
    add(store, "one", [samples(PLAN[1]), failed])
    store.close()
    again = Store(store.database)
    assert again.plan() == {REFERENCE_ROUND: PLAN[:1], 0: PLAN[1:]}
    (block,) = again.blocks()
    assert (block.block_id, block.busy_ns, block.running_ns) == ("one", 9, 7)
    assert (block.bytes_sent, block.wall_seconds, block.passed) == (11, 1.5, None)
    first, second = again.measurements()
    np.testing.assert_array_equal(first.latency_ns, [5, 3, 2**61])
    np.testing.assert_array_equal(first.start_ns, [0, 10, 20])
    assert (first.model_id, first.load_ns, first.first_run_ns) == (PLAN[1].key, 4, 6)
    np.testing.assert_array_equal(first.copy_in_ns, [2, 1])
    np.testing.assert_array_equal(first.copy_out_ns, [3])
    assert first.ran_on == (("CUDAExecutionProvider", 7), ("CPUExecutionProvider", 1))
    assert first.fallback == ("resize",)
    assert second.failure == failed.failure
    assert (second.copy_in_ns.size, second.ran_on, second.fallback) == (0, (), ())
    assert again.attempts(0) == [
        Attempt(PLAN[1].key, "one", None),
        Attempt(PLAN[2].key, "one", FailureKind.CRASH),
    ]
    assert again.attempts(1) == []


def test_the_plan_is_read_once_and_extended(store: Store) -> None:
    other = Store(store.database)
    first = other.plan()
    first.pop(REFERENCE_ROUND)
    first[0].clear()
    assert other.plan() == {REFERENCE_ROUND: PLAN[:1], 0: PLAN[1:]}, "callers have copies"
    more = Architecture("s", (("z",),))
    store.add_plan(-2, [more])
    plan = other.plan()
    assert list(plan) == [-2, REFERENCE_ROUND, 0]
    assert plan[-2] == [more]
    assert all(a is b for a, b in zip(plan[0], other.plan()[0], strict=True))
    assert store.plan()[-2][0] is more
    assert other.references() == PLAN[:1]


def test_the_agents_reference_models_are_kept_beside_a_block(store: Store) -> None:
    add(store, "one", [samples(PLAN[1])])
    (alone,) = store.results()
    assert (alone.references, alone.usual) == ((), None)
    own = replace(samples(PLAN[2]), runs_per_visit=3, weight_bytes=2**40, session_runs=(1, 2))
    large = replace(own, model_id="large", copy_in_ns=np.zeros(0), copy_out_ns=np.zeros(0))
    failed = Measurement.failed("beyond", FailureKind.OUT_OF_MEMORY, "no\0 room")
    usual = UsualLatencies(
        ("large", "beyond"), np.array([1e6, 2.5e6]), np.array([[0, 1], [1, 0.5]]), 7, 9.5
    )
    block = Block("two", MeasureSpec(), (Model(own.model_id, b""),))
    done = BlockResult("two", (own,), 9, 7, references=(large, failed), usual=usual)
    store.add_block(0, block, done, DEVICE, 11, 1.5)
    store.close()
    again = Store(store.database)
    numbers = [block.number for block in again.blocks()]
    assert again.results(after=numbers[1]) == []
    assert [result.block_id for result in again.results()] == ["one", "two"]
    (result,) = again.results(after=numbers[0])
    assert (result.block_id, result.busy_ns, result.running_ns) == ("two", 9, 7)
    assert result.usual is not None
    assert result.usual.to_json() == usual.to_json()
    first, second = result.references
    np.testing.assert_array_equal(first.latency_ns, large.latency_ns)
    np.testing.assert_array_equal(first.start_ns, large.start_ns)
    assert (first.model_id, first.load_ns, first.first_run_ns) == ("large", 4, 6)
    assert (first.runs_per_visit, first.weight_bytes, first.session_runs) == (3, 2**40, (1, 2))
    assert second.failure is not None
    assert (second.model_id, second.failure.message) == ("beyond", "no room")
    before, kept = again.measurements()
    assert (before.runs_per_visit, before.weight_bytes, before.session_runs) == (0, 0, ())
    assert (kept.runs_per_visit, kept.weight_bytes, kept.session_runs) == (3, 2**40, (1, 2))


def test_a_store_without_them_has_no_tables_for_them(store: Store) -> None:
    """Programs that do not know these tables read what they know."""
    add(store, "one", [samples(PLAN[1])])
    tables = sa.inspect(store._engine).get_table_names(store.database.schema)
    assert not {"agent_references", "usual", "visits"} & set(tables)


def test_judgements_and_rounds(store: Store) -> None:
    add(store, "one", [samples(PLAN[1])])
    judgement = Judgement(Verdict.NOISY, ("because",))
    store.add_judgement("one", False, 0.07, {PLAN[1].key: judgement})
    store.keep_round(0, {"accuracy_percent": 90.5})
    store.close()
    again = Store(store.database)
    assert (again.blocks()[0].passed, again.blocks()[0].worst_deviation) == (False, 0.07)
    assert again.verdicts() == {("one", PLAN[1].key): judgement}
    assert again.rounds() == [{"accuracy_percent": 90.5}]


def test_how_far_it_has_come_is_told_without_the_samples(store: Store) -> None:
    assert store.extent() == Extent(0, None, None)
    failed = Measurement.failed(PLAN[2].key, FailureKind.CRASH, "it crashed")
    add(store, "one", [samples(PLAN[0]), samples(PLAN[1]), failed])
    add(store, "two", [samples(PLAN[0]), samples(PLAN[1])])
    extent = store.extent()
    assert (extent.measured_models, extent.hostname) == (1, DEVICE.hostname)
    assert extent.measured_at == store.blocks()[-1].measured_at


def test_devices_that_left_are_kept_in_order(store: Store) -> None:
    assert store.departures() == []
    for name in ("pi-2", "pi-1"):
        store.add_departure(name, "it is off")
    assert [departure.device for departure in store.departures()] == ["pi-2", "pi-1"]


def test_words_of_a_device_may_hold_what_a_database_does_not(store: Store) -> None:
    failed = Measurement.failed(PLAN[1].key, FailureKind.CRASH, "a\0b \u2028 'c'")
    add(store, "one", [failed])
    (stored,) = store.measurements()
    assert stored.failure is not None
    assert stored.failure.message == "ab \u2028 'c'"


def test_a_block_is_stored_once(store: Store) -> None:
    add(store, "one", [samples(PLAN[1])])
    with pytest.raises(DatasetError, match=r"cannot store this: (UNIQUE|duplicate key)"):
        add(store, "one", [samples(PLAN[2])])
    assert len(store.measurements()) == 1


def test_a_block_is_stored_whole_or_not_at_all(store: Store) -> None:
    stranger = Architecture("s", (("z",),))
    with pytest.raises(DatasetError, match=r"cannot store this: .*(?i:foreign key)"):
        add(store, "one", [samples(PLAN[1]), samples(stranger)])
    assert store.blocks() == []
    assert store.measurements() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"this is a letter to my aunt" * 100,
        lambda data: data[: len(data) // 2],
        lambda data: data[:4096] + bytes(len(data) - 4096),
    ],
    ids=["not a database", "truncated", "zeroed"],
)
@pytest.mark.parametrize("place", ["sqlite"], indirect=True)
def test_a_damaged_file_is_one_line_with_the_cure(
    store: Store, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store.close()
    path = tmp_path / "store.sqlite"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"not a usable store.*another run") as caught:
        Store(path)
    assert "\n" not in str(caught.value)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE aunts (name)"))
    before = path.read_bytes()
    with pytest.raises(DatasetError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_damaged_samples_are_named(store: Store) -> None:
    add(store, "one", [samples(PLAN[1])])
    with store._engine.begin() as connection:
        table = sa.table("measurements", sa.column("latency_ns"), schema=store.database.schema)
        connection.execute(table.update().values(latency_ns=b"zz"))
    with pytest.raises(DatasetError, match=r"(not a usable store|cannot be read) \(Error -3"):
        store.measurements()


@pytest.mark.parametrize("version", [0, 99])
def test_another_schema_version_is_refused(store: Store, version: int) -> None:
    with store._engine.begin() as connection:
        table = sa.table(
            "facts", sa.column("key"), sa.column("value", sa.JSON), schema=store.database.schema
        )
        at = table.c.key == "schema_version"
        connection.execute(table.update().where(at).values(value=version))
    store.close()
    cure = f"schema version {version}, .* use the version of esm-profiler that wrote it"
    with pytest.raises(DatasetError, match=cure) as caught:
        Store(store.database)
    assert "\n" not in str(caught.value)
