"""The store keeps what it is given, once, and says so when it cannot."""

from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from esm_host.dataset.store import REFERENCE_ROUND, Attempt, Store
from esm_host.errors import DatasetError
from esm_host.evaluation.verdict import Judgement, Verdict
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.messages import Block, BlockResult, FailureKind, Measurement, MeasureSpec, Model

PLAN = [Architecture("s", (("a",), ("b",) * n)) for n in range(1, 6)]
DEVICE = FakeProfiler(lambda model: 1.0).device_info()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store.sqlite")
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


def test_what_goes_in_comes_out(store: Store) -> None:
    failed = Measurement.failed(PLAN[2].key, FailureKind.CRASH, "it crashed")
    add(store, "one", [samples(PLAN[1]), failed])
    again = Store(store.path)
    assert again.plan() == {REFERENCE_ROUND: PLAN[:1], 0: PLAN[1:]}
    (block,) = again.blocks()
    assert (block.block_id, block.busy_ns, block.running_ns) == ("one", 9, 7)
    assert (block.bytes_sent, block.wall_seconds, block.passed) == (11, 1.5, None)
    first, second = (stored.measurement for stored in again.measurements())
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


def test_judgements_and_rounds(store: Store) -> None:
    add(store, "one", [samples(PLAN[1])])
    judgement = Judgement(Verdict.NOISY, ("because",))
    store.add_judgement("one", False, 0.07, {PLAN[1].key: judgement})
    store.keep_round(0, {"accuracy_percent": 90.5})
    again = Store(store.path)
    assert (again.blocks()[0].passed, again.blocks()[0].worst_deviation) == (False, 0.07)
    assert again.verdicts() == {("one", PLAN[1].key): judgement}
    assert again.rounds() == [{"accuracy_percent": 90.5}]


def test_a_block_is_stored_once(store: Store) -> None:
    add(store, "one", [samples(PLAN[1])])
    with pytest.raises(DatasetError, match="cannot take this: UNIQUE"):
        add(store, "one", [samples(PLAN[2])])
    assert len(store.measurements()) == 1


def test_a_block_is_stored_whole_or_not_at_all(store: Store) -> None:
    stranger = Architecture("s", (("z",),))
    with pytest.raises(DatasetError, match="cannot take this: FOREIGN"):
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
def test_a_damaged_file_is_one_line_with_the_cure(store: Store, damage) -> None:
    store.close()
    store.path.write_bytes(damage(store.path.read_bytes()))
    with pytest.raises(DatasetError, match=r"not a usable store.*--run") as caught:
        Store(store.path)
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
        connection.execute(sa.text("UPDATE measurements SET latency_ns = x'7a7a'"))
    with pytest.raises(DatasetError, match="not a usable store"):
        store.measurements()


@pytest.mark.parametrize("version", [2, 99])
def test_another_schema_version_is_refused(store: Store, version: int) -> None:
    """Version 2 knew no copies to a GPU and no nodes that fell back."""
    with store._engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE facts SET value = :v WHERE key = 'schema_version'"), {"v": str(version)}
        )
    store.close()
    cure = f"schema version {version}, .* use the esm-profiler that wrote it"
    with pytest.raises(DatasetError, match=cure) as caught:
        Store(store.path)
    assert "\n" not in str(caught.value)
