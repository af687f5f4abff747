"""Tasks in processes of this machine, and on a real cluster of loopback that loses its parts."""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from esm_host import parallel as module
from esm_host.cli.app import app
from esm_host.errors import ClusterError, EsmError, UsageError
from esm_host.parallel import map_unordered, parallel
from esm_host.research.study.results import Study
from esm_host.research.study.run import run_study
from esm_models.spaces import load_space
from tests.host.cluster import After, Cluster, Task, done, refused, with_other_code

pytestmark = pytest.mark.programs

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
STUDY = """
[study]
predictors = ["ridge", "forest"]
sizes = [10, 20]
seeds = 2
test = 50
[[data]]
table = "cells.parquet"
"""
ARRAY = np.arange(1000.0)
OWN_SPACE = Path(__file__).parent / "own_spaces.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With made-up latencies and accuracies of 200 cells, and a study of them."""
    rng = np.random.default_rng(0)
    every = np.array(list(product(range(5), repeat=6)))
    cells = every[rng.choice(len(every), 200, replace=False)]
    costs = 1 + cells @ rng.uniform(0, 1, (6, 3))
    text = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
    table = {
        "arch": [text.format(*(OPS[op] for op in cell)) for cell in cells],
        "lat_ms_slow": costs[:, 0],
        "lat_ms_fast": costs[:, 1] / 4,
        "acc_toys": 90 - costs[:, 2],
    }
    pd.DataFrame(table).to_parquet(tmp_path / "cells.parquet")
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def tasks(count: int, takes_s: float = 0) -> list[Task]:
    return [Task(number, ARRAY, takes_s) for number in range(count)]


def sums(count: int) -> list[tuple[int, float]]:
    """What the tasks give."""
    return [(number, ARRAY.sum() + number) for number in range(count)]


def without_times(study: Study) -> pd.DataFrame:
    return study.results().drop(columns=["fit_s", "query_s"])


# This machine


@pytest.mark.parametrize(("spec", "most"), [(1, 1), ("2", 2), (None, None)])
def test_so_many_processes(spec: str | int | None, most: int | None) -> None:
    with parallel(spec):
        found = sorted(map_unordered(done, tasks(4, 0.2)))
        assert joblib.effective_n_jobs(None) == (most or joblib.cpu_count())
    assert [result[:2] for result in found] == sums(4)
    processes = {result[2] for result in found}
    assert len(processes) <= (most or 4)


def test_a_process_that_is_killed_is_one_line() -> None:
    fatal = [Task(0, ARRAY, fatal=True), *tasks(3)]
    with (
        parallel(2),
        pytest.raises(EsmError, match=r"a process was killed.* in parallel$"),
    ):
        list(map_unordered(done, fatal))


@pytest.mark.parametrize(
    "spec",
    [
        *("", "0", "-1", "2.5", "two", "ray://there", "dask", "dask://", "tcp://there:8786"),
        *("dask://there:port", "dask://there:99999", "dask://me@there", "dask://there/path"),
    ],
)
def test_what_is_no_spec_says_what_is(spec: str, folder: Path) -> None:
    arguments = ["study", str(folder / "study.toml"), f"--parallel={spec}"]
    result = CliRunner().invoke(app, [*arguments, "--results", str(folder / "results")])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    wanted = "give a number of processes on this machine, or the scheduler of a cluster, dask:"
    assert wanted in result.stderr
    assert not (folder / "results").exists()


# What travels


def test_arrays_go_to_a_cluster_once() -> None:
    shared, own = np.arange(10_000), [np.arange(n, n + 1000.0) for n in range(3)]
    arrays: dict[str, np.ndarray] = {}
    packed = module._packed([(n, shared, own[n], shared.copy()) for n in range(3)], arrays)
    assert sorted(array.nbytes for array in arrays.values()) == [8000, 8000, 8000, 80_000]
    assert max(map(len, packed)) < 500


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6000.0).reshape(60, 100).T,
        np.zeros((0, 5000), np.float32),
        np.array(["word", None] * 1000, dtype=object),
        np.array([(1, 2.0)] * 1000, dtype=[("a", "<i4"), ("b", ">f8")]),
        np.datetime64("2020-01-01") + np.arange(1000),
    ],
    ids=["transposed", "empty", "objects", "records", "dates"],
)
def test_arrays_come_out_as_they_went_in(array: np.ndarray) -> None:
    arrays: dict[str, np.ndarray] = {}
    packed = module._packed([array, np.ascontiguousarray(array)], arrays)
    first, second = (module._Unpickler(io.BytesIO(each), arrays).load() for each in packed)
    for found in (first, second):
        np.testing.assert_array_equal(found, array)
        assert (found.dtype, found.flags.writeable) == (array.dtype, True)
    assert first.flags.f_contiguous == array.flags.f_contiguous
    assert second.flags.c_contiguous
    assert not np.shares_memory(first, array)


# The cluster as it should be


def test_a_study_on_workers_that_have_none_of_its_files(cluster: Cluster, folder: Path) -> None:
    alone = run_study(folder / "study.toml", folder / "alone")

    class Without(After):
        def on_planned(self, tasks: int, there: int) -> None:
            (folder / "cells.parquet").unlink()

    with parallel(cluster.spec):
        study = run_study(folder / "study.toml", folder / "cluster", Without(0, None))
    assert not len(study.failures())
    pd.testing.assert_frame_equal(without_times(study), without_times(alone), check_exact=True)


def test_a_selection_is_the_same(cluster: Cluster, folder: Path) -> None:
    options = ("--sizes", "50", "--simulations", "20", "--predictor", "ridge:20")
    pairs = ("--pair", "slow:toys", "--pair", "fast:toys")
    arguments = ["selection", str(folder / "cells.parquet"), *pairs, *options, "--parallel"]
    alone, found = (CliRunner().invoke(app, [*arguments, spec]) for spec in ("1", cluster.spec))
    assert (alone.exit_code, found.exit_code) == (0, 0), found.output
    assert found.stdout == alone.stdout
    assert "[4/4] " in found.stderr


def test_nothing_to_do(cluster: Cluster) -> None:
    with parallel(cluster.spec):
        assert not list(map_unordered(done, []))


def test_what_a_task_raises_is_raised_here(cluster: Cluster) -> None:
    with parallel(cluster.spec), pytest.raises(ZeroDivisionError):
        list(map_unordered(partial(divmod, 1), [1, 0]))


def test_joblib_goes_there_as_well(cluster: Cluster) -> None:
    with parallel(cluster.spec):
        pids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(4))
        with parallel(1):
            assert [result[2] for result in map_unordered(done, tasks(1))] == [os.getpid()]
    assert set(pids) <= {worker.pid for worker in cluster.workers}


def test_tasks_know_a_search_space_of_the_users_own(cluster: Cluster) -> None:
    space = load_space(f"{OWN_SPACE}:PlainNet")
    with parallel(cluster.spec):
        (encoded,) = map_unordered(space.encode, [space.extremes()])
    np.testing.assert_array_equal(encoded, space.encode(space.extremes()))


# The cluster as it should not be


def test_a_worker_that_dies_is_done_without(cluster: Cluster) -> None:
    dead = cluster.add_worker()
    cluster.wait(3)
    found = []
    with parallel(cluster.spec):
        for result in map_unordered(done, tasks(20, 0.1)):
            found.append(result[:2])
            if len(found) == 6:
                dead.kill()
    assert sorted(found) == sums(20)


@pytest.mark.faults
def test_all_workers_gone_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.1)
    said: list[str] = []
    with Cluster(tmp_path, workers=1) as cluster:

        def warn(text: str) -> None:
            said.append(text)
            cluster.add_worker()

        found = []
        with parallel(cluster.spec, warn):
            for result in map_unordered(done, tasks(6, 0.1)):
                found.append(result[:2])
                if len(found) == 2:
                    cluster.workers[0].kill()
    assert sorted(found) == sums(6)
    assert said == [
        f"the scheduler {cluster.address} has lost all workers: tasks wait for new ones"
    ]


def test_a_scheduler_that_dies_is_one_line(tmp_path: Path) -> None:
    found = []

    def lose(cluster: Cluster) -> None:
        for result in map_unordered(done, tasks(20, 0.1)):
            found.append(result[:2])
            if len(found) == 3:
                cluster.scheduler.kill()

    with (
        Cluster(tmp_path, workers=1) as cluster,
        pytest.raises(ClusterError) as caught,
        parallel(cluster.spec),
    ):
        lose(cluster)
    assert str(caught.value) == (
        f"the scheduler {cluster.address} is unreachable: start scheduler and workers, "
        "and run it again"
    )
    assert 3 <= len(found) < 20


def test_a_scheduler_that_dies_while_a_result_comes_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Future
    from distributed.comm.core import CommClosedError

    def cut(self: object, timeout: object = None) -> None:
        raise CommClosedError("Connection reset by peer")

    with Cluster(tmp_path, workers=1) as cluster, parallel(cluster.spec):
        monkeypatch.setattr(Future, "result", cut)
        with pytest.raises(ClusterError, match="is unreachable: start scheduler and workers"):
            list(map_unordered(done, tasks(2)))


def test_nobody_there_or_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        refused(
            f"dask://127.0.0.1:{port}", r"does not work as a Dask scheduler \(it does not answer\)"
        )
        refused(f"dask+tls://127.0.0.1:{port}", r"^tls://.* \(TLS .*, or the certificates$")
    refused(f"dask://127.0.0.1:{port}", r"no Dask .* \(Connection refused\): start one there")
    result = CliRunner().invoke(app, ["study", "s.toml", "--parallel", f"dask://localhost:{port}"])
    assert (result.exit_code, result.stderr.count("\n")) == (69, 1)


def test_no_workers(tmp_path: Path) -> None:
    with Cluster(tmp_path, workers=0) as cluster:
        refused(
            cluster.spec, rf"has no workers: start one or more \(dask worker {cluster.address} "
        )


def test_a_worker_of_other_code(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.with_worker(path=with_other_code(tmp_path)):
        refused(
            cluster.spec,
            r"^tcp://\S+ is unsuitable: esm-profiler's code \w+ \(here \w+\): install the same",
        )
    with parallel(cluster.spec):
        pass


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(UsageError, match=r"needs distributed: pip install '\.\[cluster\]'"),
        parallel("dask://there"),
    ):
        pass


def test_no_thread_is_left(cluster: Cluster) -> None:
    before = set(threading.enumerate())
    with parallel(cluster.spec):
        list(map_unordered(done, tasks(2)))
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive() or thread.daemon, thread
