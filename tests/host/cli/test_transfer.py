"""``esm-host transfer`` and a campaign's warm start as users meet them, on fake devices."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from esm_host.campaign.run import load_run
from esm_host.cli.app import app
from esm_host.dataset.benchmarks import LatencyTable, write_table
from esm_host.extension.settings import Settings
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from tests.host.fake_campaign import SPACE, latency

SMALL = ["--resolution", "32", "--width-mult", "0.25"]


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


@pytest.fixture(scope="module", autouse=True)
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every device is a fake one; nothing was ever imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: FakeProfiler(latency, noise=0.01))
        patch.setenv("ESM_SOURCES", str(tmp_path_factory.mktemp("sources")))
        patch.delenv("ESM_DEVICE", raising=False)
        yield


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a device that takes its time by the block, and of one that nothing tells of."""
    rng = np.random.default_rng(0)
    sampler = RandomSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 1))
    codes = SPACE.encode(sampler.sample(200, rng))
    by_block = 1.0 + (codes >= 0).sum(axis=(1, 2))
    latency_ms = {"blocks": by_block * rng.normal(1, 0.01, 200), "chance": rng.uniform(1, 9, 200)}
    path = tmp_path_factory.mktemp("tables") / "known.parquet"
    write_table(LatencyTable("known", SPACE, codes, latency_ms, {}), path)
    return path


def transfer(run: Path, *arguments: object) -> Result:
    return esm_host("transfer", *SMALL, "--run", run, "--samples", 12, *arguments)


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())["transfer"]
    return found


@pytest.fixture(scope="module")
def finished(known: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a transfer from a copy of the table, which is gone since; what was said."""
    folder = tmp_path_factory.mktemp("finished")
    table = folder / "known.parquet"
    shutil.copy(known, table)
    result = transfer(folder / "run", "--source", table, "--held-out", 6)
    assert result.exit_code == 0, result.output
    table.unlink()
    return folder / "run", result.stdout


def test_a_device_from_twelve_measurements(finished: tuple[Path, str]) -> None:
    run, said = finished
    assert "6 held out: rank correlation" in said
    got = figures(run)
    assert got["sources"] == ["known/blocks", "known/chance"]
    assert (got["samples"], got["held_out"]) == (12, 6)
    assert got["spearman_low"] <= got["spearman"] <= got["spearman_high"]
    assert got["accuracy_percent"] > 90
    assert len(load_run(run).measurements()) == 18


def test_what_it_makes_is_a_campaign(finished: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = finished
    lines = esm_host("predict", run, "--sample", 3, "--interval", 90).stdout.splitlines()
    assert len(lines) == 4
    assert all(float(line.split()[0]) > 0 for line in lines[1:])
    assert esm_host("report", run, "--output", tmp_path / "report.html").exit_code == 0
    loaded = load_run(run)
    drawn = loaded.sample(20)
    fitted_again = loaded.predictor.predict(loaded.encoder.encode(drawn))
    np.testing.assert_allclose(loaded.predict(drawn), fitted_again, 1e-4)


def test_measures_on_after_a_transfer(finished: tuple[Path, str], tmp_path: Path) -> None:
    run = shutil.copytree(finished[0], tmp_path / "run")
    resumed = ["--resume", "--max-models", 26, "--target-accuracy", 100]
    result = esm_host("profile", "--run", run, *resumed)
    assert result.exit_code == 3, result.output
    assert "6 held out" in result.stdout
    assert len(load_run(run).measurements()) == 26
    assert (figures(run)["samples"], figures(run)["held_out"]) == (20, 6)


def test_a_campaign_is_a_source_of_the_next(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = ["--initial", 20, "--max-models", 20, "--bins", 2, "--block-size", 10, "--runs", 5]
    first += ["--predictor", "ridge"]
    esm_host("profile", *SMALL, *first, "--run", runs / "first", "--target-accuracy", 1)
    assert transfer(runs / "second", "--held-out", 4).exit_code == 0
    assert figures(runs / "second")["sources"] == [str(runs / "first")]


def test_sources_of_other_settings_are_taken_by_name_only(known: Path, tmp_path: Path) -> None:
    imported = esm_host("import", known, "--name", "others")
    assert imported.exit_code == 0, imported.output
    try:
        other = ["--batch", 2, "--held-out", 4]
        assert_refused(transfer(tmp_path / "run", *other), "no source matches resnet", "name")
        placed = ["--context", "batch=1,2"]
        assert_refused(transfer(tmp_path / "run", *placed), "no source matches resnet", "name")
        named = transfer(tmp_path / "run", *other, "--source", "others")
        assert named.exit_code == 0, named.output
    finally:
        esm_host("sources", "remove", "others")


@pytest.mark.parametrize(("samples", "size"), [(10, 4), (12, 4), (20, 7), (300, 20)])
def test_blocks_are_three_or_more_and_small(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int, size: int
) -> None:
    asked: list[Settings] = []

    def remember(settings: Settings, *_: object) -> int:
        asked.append(settings)
        return 0

    monkeypatch.setattr("esm_host.cli.campaign.run_campaign", remember)
    result = transfer(tmp_path / "run", "--samples", samples, "--held-out", 0)
    assert result.exit_code == 0, result.output
    assert asked[0].block_size == size
    assert asked[0].initial > 2 * size, "nothing to compare the blocks with"


def test_a_warm_start_measures_what_tells_most(known: Path, tmp_path: Path) -> None:
    options = ["--initial", 12, "--max-models", 12, "--bins", 2, "--block-size", 5]
    run = tmp_path / "run"
    result = esm_host("profile", *SMALL, *options, "--run", run, "--warm-start", known)
    assert result.exit_code in (0, 3), result.output
    loaded, expected = load_run(run), figures(run)
    assert (expected["samples"], "held_out" in expected) == (12, False)
    # Those that tell most of all are of all kinds.
    depth = loaded.measurements()["depth"]
    assert depth.max() - depth.min() > 10


def test_wrong_input(known: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert_refused(transfer(run), "no latencies of resnet from other devices", "esm-host import")
    assert_refused(transfer(run, "--source", "nothing"), "unknown source 'nothing'")
    assert_refused(transfer(run, "--source", f"{tmp_path}/no.parquet"), "there is no")
    assert_refused(
        esm_host("transfer", "--space", "fbnet", "--run", run, "--source", known), "is of resnet"
    )
    assert_refused(transfer(run, "--source", known, "--precision", 0), "--precision 0", "above 0")
    assert_refused(transfer(run, "--source", known, "--held-out", 3), "4 or more")
    few = ["--source", known, "--samples", 5]
    assert_refused(transfer(run, *few, "--held-out", 4), "--samples 5 and --held-out 4", "10")
    assert_refused(transfer(run, "--source", ""), "--source has an empty name")
    assert_refused(
        transfer(run, "--dtype", "int4"),
        "unknown dtype 'int4': did you mean 'int8'? choose float32, int8",
    )
    comma = ["profile", *SMALL, "--run", run, "--warm-start", ","]
    assert_refused(esm_host(*comma), "--warm-start ',' names no source")
    warm = ["profile", *SMALL, "--run", run, "--warm-start", known]
    assert_refused(esm_host(*warm, "--predictor", "mlp"), "--warm-start", "--predictor auto")
    assert not run.exists()
    run.mkdir()
    (run / "settings.json").write_text("{}")
    assert_refused(transfer(run, "--source", known), "holds a campaign")


def test_session_settings_are_the_campaigns(known: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = transfer(run, "--source", known, "--held-out", 6, "--opt-level", "extended")
    assert done.exit_code == 0, done.output
    assert load_run(run).settings.spec.session.opt_level == "extended"
    assert_refused(
        esm_host("profile", "--run", run, "--resume", "--max-models", 30, "--opt-level", "all"),
        "measured with --opt-level extended, not --opt-level all",
    )
