"""Campaigns that older versions measured: read, and gone on with, wherever they lie."""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from esm_host import load_run, resume
from esm_host.dataset.database import SqliteFile
from esm_host.dataset.schema import SCHEMA_VERSION
from esm_host.dataset.store import Store
from esm_host.errors import DatasetError
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from tests.helpers import read_only

OLDER = sorted((Path(__file__).parents[1] / "older").glob("campaign-*.tar.xz"))


@pytest.fixture(params=OLDER, ids=lambda path: path.name.partition(".")[0])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


def test_there_is_one_of_every_version_of_the_schema() -> None:
    assert len(OLDER) == SCHEMA_VERSION


def test_it_is_read_and_gone_on_with(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = load_run(run)
    frame = old.measurements()
    assert len(frame) == 20
    assert frame["latency_ms"].between(0.1, 100).all()
    assert old.result is not None
    measured = [entry["measured_models"] for entry in old.result["rounds"]]
    assert measured == [20]
    profiler = FakeProfiler(lambda model: len(model.data) / 1e4, noise=0.01, references=())
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    new = resume(run, max_models=30, target_accuracy_percent=100, predictor="ridge")
    kept = new.measurements().set_index("architecture_key")["latency_ms"]
    assert len(kept) == 30
    before = frame.set_index("architecture_key")["latency_ms"]
    assert np.allclose(np.log(kept[before.index] / before), 0, atol=0.05)


def test_it_is_read_where_nothing_may_be_written(run: Path) -> None:
    with read_only(run):
        assert len(load_run(run).measurements()) == 20
        store = Store(SqliteFile(run / "store.sqlite"))
        with closing(store), pytest.raises(DatasetError):
            store.add_fact("new", 1)


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    Store(SqliteFile(path)).close()
    with closing(sqlite3.connect(path)) as connection:
        later = json.dumps(SCHEMA_VERSION + 1)
        connection.execute("UPDATE facts SET value = ? WHERE key = 'schema_version'", [later])
        connection.commit()
    with pytest.raises(DatasetError, match="use the version of esm-profiler that wrote it"):
        Store(SqliteFile(path))
