"""Studies on a cluster that loses a worker or its scheduler, or is not fit for them."""

from __future__ import annotations

import ipaddress
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cryptography import x509

from esm_host.errors import ClusterError, EsmError
from esm_host.parallel import map_unordered, parallel
from esm_host.research.study.results import Study, load_study
from esm_host.research.study.run import run_study
from tests.certificates import Authority
from tests.host.cluster import After, Cluster, Task, done, refused, with_other_code

pytestmark = pytest.mark.faults

STUDY = """
[study]
predictors = ["mlp", "ridge", "forest", "auto"]
sizes = [20, 60]
seeds = 2
test = 200
keep_predictions = true
[[data]]
table = "table.parquet"
"""
TASKS = 4 * 2 * 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of made-up latencies of FBNet."""
    path = tmp_path_factory.mktemp("cluster") / "study.toml"
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 9, (400, 22))
    slow = 5 + blocks @ rng.uniform(0, 0.5, 22)
    arch = ["_".join(map(str, row)) for row in blocks.tolist()]
    table = {"arch": arch, "lat_ms_slow": slow, "lat_ms_fast": slow + rng.uniform(0, 1, 400)}
    pd.DataFrame(table).to_parquet(path.with_name("table.parquet"))
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def alone(file: Path) -> Study:
    """What two processes of this machine make of it."""
    with parallel(2):
        return run_study(file, file.with_name("alone"))


def assert_same(study: Study, other: Study) -> None:
    """Bit for bit, but for how long it took."""
    assert not len(other.failures())
    for name, columns in (("results", ["fit_s", "query_s"]), ("predictions", [])):
        frames = (getattr(each, name)().drop(columns=columns) for each in (study, other))
        pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_a_worker_killed_changes_nothing(file: Path, alone: Study, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, parallel(cluster.spec):
        study = run_study(file, tmp_path / "results", After(4, cluster.workers[0].kill))
        assert cluster.workers[0].wait() < 0
    assert_same(study, alone)


def test_a_study_goes_on_after_its_scheduler_died(file: Path, alone: Study, tmp_path: Path) -> None:
    results = tmp_path / "results"
    with (
        Cluster(tmp_path) as cluster,
        pytest.raises(ClusterError, match=r"unreachable: .*; finished results are kept$") as caught,
        parallel(cluster.spec),
    ):
        run_study(file, results, After(4, cluster.scheduler.kill))
    assert "\n" not in str(caught.value)
    kept = TASKS - load_study(results).missing
    assert 4 <= kept < TASKS
    again = After(0, None)
    (tmp_path / "again").mkdir()
    with Cluster(tmp_path / "again", workers=1) as cluster, parallel(cluster.spec):
        study = run_study(file, results, again)
    assert again.there == kept
    assert_same(study, alone)


def test_a_task_that_ends_every_worker_is_given_up(tmp_path: Path) -> None:
    fatal = Task(0, np.zeros(1), fatal=True)
    once = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with (
        Cluster(tmp_path, **once) as cluster,
        parallel(cluster.spec),
        pytest.raises(ClusterError, match="several workers died of the same task, probably"),
    ):
        list(map_unordered(done, [fatal]))


def test_a_worker_that_hangs_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esm_host.parallel._CHECK_S", 3)
    with Cluster(tmp_path) as cluster:
        cluster.workers[1].send_signal(signal.SIGSTOP)
        refused(cluster.spec, "or one of its workers does not answer: restart them$")


def test_workers_that_are_not_fit(tmp_path: Path) -> None:
    without = tmp_path / "without" / "esm_host"
    without.mkdir(parents=True)
    (without / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'esm_host'\", name='esm_host')"
    )
    with Cluster(tmp_path, workers=1) as cluster:
        with cluster.with_worker(threads=2):
            refused(cluster.spec, r"computes 2 tasks at a time .*--nthreads 1, .*--nworkers -1")
        with cluster.with_worker(path=without.parent):
            refused(cluster.spec, r"^tcp://\S+ is unsuitable: .*'esm_host'.*: install the same")
        array = np.zeros(1)
        with (
            parallel(cluster.spec),
            cluster.with_worker(path=with_other_code(tmp_path)),
            pytest.raises(EsmError, match=r"is unsuitable: esm-profiler's code .*install the same"),
        ):
            list(map_unordered(done, [Task(number, array, 0.1) for number in range(20)]))


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path / "certificates", "ours")
    files = authority.issue("all", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    options = ("--tls-ca-file", authority.ca, "--tls-cert", files.certificate)
    settings = {"CA_FILE": authority.ca}
    settings |= {"CLIENT__CERT": files.certificate, "CLIENT__KEY": files.key}
    for name, path in settings.items():
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(path))
    import dask

    dask.config.refresh()
    try:
        flags = [str(option) for option in (*options, "--tls-key", files.key)]
        with Cluster(tmp_path, options=flags, protocol="tls") as cluster:
            assert cluster.spec.startswith("dask+tls://")
            with parallel(cluster.spec):
                found = list(map_unordered(done, [Task(1, np.ones(1000))]))
            refused(cluster.spec.replace("+tls", ""), "does not work as a Dask scheduler")
    finally:
        monkeypatch.undo()
        dask.config.refresh()
    assert found[0][:2] == (1, 1001)
