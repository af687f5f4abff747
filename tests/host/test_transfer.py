"""``esm-host transfer`` and a campaign's warm start as users meet them, on fake devices."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from esm_host.bins import DepthBins
from esm_host.cli.app import app
from esm_host.dataset.benchmarks import LatencyTable, write_table
from esm_host.run import load_run
from esm_host.sampling import RandomSampler
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from tests.host.campaign import SPACE, latency

SMALL = ["--resolution", "32", "--width-mult", "0.25"]


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeProfiler:
    """Every device is this one; nothing was ever imported."""
    profiler = FakeProfiler(latency, noise=0.01)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    monkeypatch.setenv("ESM_SOURCES", str(tmp_path / "sources"))
    monkeypatch.delenv("ESM_DEVICE", raising=False)
    return profiler


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A table of a device that takes its time by the block, and of one that nothing tells of."""
    rng = np.random.default_rng(0)
    sampler = RandomSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 1))
    codes = SPACE.encode(sampler.sample(200, rng))
    by_block = 1.0 + (codes >= 0).sum(axis=(1, 2))
    latency_ms = {"blocks": by_block * rng.normal(1, 0.01, 200), "chance": rng.uniform(1, 9, 200)}
    path = tmp_path / "known.parquet"
    write_table(LatencyTable("known", SPACE, codes, latency_ms, {}), path)
    return path


def transfer(run: Path, *arguments: object) -> Result:
    return esm_host("transfer", *SMALL, "--run", run, "--samples", 12, *arguments)


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())["transfer"]
    return found


def test_a_device_from_twelve_measurements(known: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = transfer(run, "--source", known, "--held-out", 6)
    assert result.exit_code == 0, result.output
    assert "6 held out: rank correlation" in result.stdout
    got = figures(run)
    assert got["sources"] == ["known/blocks", "known/chance"]
    assert (got["samples"], got["held_out"]) == (12, 6)
    assert got["spearman_low"] <= got["spearman"] <= got["spearman_high"]
    assert got["accuracy_percent"] > 90
    assert len(load_run(run).measurements()) == 18
    lines = esm_host("predict", run, "--sample", 3, "--interval", 90).stdout.splitlines()
    assert all(float(line.split()[0]) > 0 for line in lines[1:])
    assert esm_host("report", run, "--output", tmp_path / "report.html").exit_code == 0


def test_the_predictor_of_a_finished_transfer_is_the_one_in_its_file(
    known: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    transfer(run, "--source", known, "--held-out", 0)
    known.unlink()  # what was learnt of it is in the folder
    loaded = load_run(run)
    drawn = loaded.sample(20)
    encodings = loaded._encode(drawn)
    np.testing.assert_allclose(loaded.predict(drawn), loaded.predictor.predict(encodings), 1e-4)


def test_a_campaign_is_a_source_of_the_next(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = ["--initial", 20, "--max-models", 20, "--bins", 2, "--block-size", 10, "--runs", 5]
    esm_host("profile", *SMALL, *first, "--run", runs / "first", "--target-accuracy", 1)
    assert transfer(runs / "second", "--held-out", 4).exit_code == 0
    assert figures(runs / "second")["sources"] == [str(runs / "first")]


def test_measures_on_after_a_transfer(known: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    transfer(run, "--source", known, "--held-out", 4)
    resumed = ["--resume", "--max-models", 26, "--target-accuracy", 100]
    assert esm_host("profile", "--run", run, *resumed).exit_code == 3
    assert len(load_run(run).measurements()) == 26
    assert (figures(run)["samples"], figures(run)["held_out"]) == (22, 4)


def test_a_warm_start_measures_what_tells_most(known: Path, tmp_path: Path) -> None:
    options = ["--initial", 12, "--max-models", 12, "--bins", 2, "--block-size", 5]
    cold, warm = tmp_path / "cold", tmp_path / "warm"
    for run, more in ((cold, []), (warm, ["--warm-start", known])):
        result = esm_host("profile", *SMALL, *options, *more, "--run", run)
        assert result.exit_code in (0, 3), result.output
    assert set(load_run(warm).measurements()["architecture_key"]) != set(
        load_run(cold).measurements()["architecture_key"]
    )
    assert figures(warm)["samples"] == 12
    assert "held_out" not in figures(warm)


def test_wrong_input(known: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert_refused(transfer(run), "no latencies of resnet are known", "esm-host import")
    assert_refused(transfer(run, "--source", "nothing"), "no source 'nothing'")
    assert_refused(transfer(run, "--source", f"{tmp_path}/no.parquet"), "there is no")
    assert_refused(
        esm_host("transfer", "--space", "fbnet", "--run", run, "--source", known), "is of resnet"
    )
    assert_refused(transfer(run, "--source", known, "--held-out", 3), "4 or more")
    assert_refused(transfer(run, "--dtype", "int4"), "--dtype 'int4': choose float32 or int8")
    warm = ["profile", *SMALL, "--run", run, "--warm-start", known]
    assert_refused(esm_host(*warm, "--predictor", "mlp"), "--warm-start", "--predictor auto")
    assert not run.exists()
    assert transfer(run, "--source", known, "--held-out", 0).exit_code == 0
    assert_refused(transfer(run, "--source", known), "holds a campaign")
