"""``esm-host transfer`` by every method and sampler, as users meet it, on a fake device."""

import json
import pickle
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import esm_host
from esm_host.campaign.run import load_run
from esm_host.cli.app import app
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark, write_table
from esm_host.extension.settings import Settings
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.search.methods import with_pymoo
from esm_host.transfer import METHODS, SAMPLERS
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_host.workflows.warm_start import FirstArchitectures, warm_start
from tests.host.fake_campaign import SPACE, latency

SMALL = ["--resolution", 32, "--width-mult", 0.25]
# What makes slow methods quick.
QUICK: dict[str, dict[str, Any]] = {
    "nasflat": {"epochs": 8, "transfer_epochs": 20},
    "brp-nas": {"params": {"min_steps": 60, "epochs": 1}},
    "help": {"episodes": 30, "learning_rate": 3e-3, "width": 32, "query": 30, "draws": 2},
    "multipredict": {"epochs": 10, "learning_rate": 3e-3, "joint": 100},
}

pytestmark = pytest.mark.usefixtures("undrawn")


def esm_host_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module", autouse=True)
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeProfiler]:
    """Every device is the fake one; nothing was ever imported."""
    profiler = FakeProfiler(latency, noise=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: profiler)
        patch.setenv("ESM_SOURCES", str(tmp_path_factory.mktemp("sources")))
        patch.delenv("ESM_DEVICE", raising=False)
        yield profiler


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of three devices that take their time by the block."""
    rng = np.random.default_rng(0)
    sampler = RandomSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 1))
    codes = SPACE.encode(sampler.sample(120, rng))
    blocks = (codes >= 0).sum(axis=(1, 2))
    latency_ms = {
        name: (1.0 + blocks) ** power * rng.normal(1, 0.01, len(codes))
        for name, power in (("slow", 1.2), ("middle", 1.0), ("fast", 0.8))
    }
    path = tmp_path_factory.mktemp("tables") / "known.parquet"
    write_table(LatencyTable("known", SPACE, codes, latency_ms, {}), path)
    return path


def transfer(run: Path, known: Path, *arguments: object) -> Result:
    options = ["--source", known, "--samples", 10, "--held-out", 6]
    return esm_host_command("transfer", *SMALL, "--run", run, *options, *arguments)


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line


def options_of(method: str) -> list[str]:
    given = QUICK.get(method, {})
    return [f"--option={name}={json.dumps(value)}" for name, value in given.items()]


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())["transfer"]
    return found


# A campaign takes seconds: all but one have a command of their own, make test-predictors.
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[pytest.mark.predictors] * (name != "adaproxy"))
        for name in (*METHODS, "ours")
    ],
)
def test_every_method_makes_a_campaign(known: Path, tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    result = transfer(run, known, "--method", method, *options_of(method))
    assert result.exit_code == 0, result.output
    own = "gaussian" if method == "ours" else method
    got, settings = figures(run), json.loads((run / "settings.json").read_text())
    assert got["method"] == settings["method"] == own
    assert got["sampler"] == METHODS[own].sampler
    assert (got["samples"], got["held_out"], len(got["sources"])) == (10, 6, 3)
    assert own == "gaussian" or f"by {own}" in result.stdout
    loaded = load_run(run)
    drawn = loaded.sample(20)
    predicted = loaded.predict(drawn)
    assert np.isfinite(predicted).all()
    assert (predicted > 0).all()
    depth = [architecture.depth for architecture in drawn]
    assert np.corrcoef(predicted, depth)[0, 1] > 0.5  # what the device takes depends on depth
    low, high = loaded.predict_interval(drawn)
    assert (low < predicted).all()
    assert (predicted < high).all()
    again = pickle.loads(pickle.dumps(loaded.latency()))
    np.testing.assert_allclose(again.many(drawn), predicted, rtol=1e-5)


@pytest.mark.research
def test_sources_are_learnt_once_and_may_go(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from esm_host.research.transfer.multipredict import MultiPredictPredictor

    run, table = tmp_path / "run", tmp_path / "table.parquet"
    table.write_bytes(known.read_bytes())
    asked = ["--method", "multipredict", "--sampler", "shared", *options_of("multipredict")]
    made = transfer(run, table, *asked)
    assert made.exit_code == 0, made.output
    assert "by multipredict, sampled by shared" in made.stdout
    table.unlink()
    monkeypatch.setattr(MultiPredictPredictor, "_learn", lambda *_: pytest.fail("learnt again"))
    assert esm_host_command("predict", run, "--sample", 3, "--interval", 90).exit_code == 0
    page = tmp_path / "page.html"
    assert esm_host_command("report", run, "--output", page).exit_code == 0
    assert "by multipredict" in page.read_text()
    resumed = ["--resume", "--max-models", 20, "--target-accuracy", 100]
    result = esm_host_command("profile", "--run", run, *resumed)
    assert result.exit_code == 3, result.output
    assert (figures(run)["method"], figures(run)["samples"]) == ("multipredict", 14)
    init = with_pymoo.PymooSearch.__init__
    small = {"population": 20, "generations": 3}
    monkeypatch.setattr(with_pymoo.PymooSearch, "__init__", partialmethod(init, **small))
    searched = esm_host_command("search", run, "--measure", 4)
    assert searched.exit_code == 0, searched.output


@pytest.mark.parametrize("sampler", [*SAMPLERS, "k-means:zcp"])
def test_every_sampler_chooses(known: Path, sampler: str) -> None:
    settings = Settings.for_transfer("local", 10, 6, [str(known)], sampler=sampler)
    start = warm_start(settings, SPACE, known.parent / "run")
    kept: list[str] = []
    drawn = FirstArchitectures(
        settings,
        start.expected,
        lambda: start.sources,
        RandomSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 1)),
        kept.extend,
    )(16, np.random.default_rng(0), None, set())
    assert len({architecture.key for architecture in drawn}) == 16
    assert [architecture.key for architecture in drawn[10:]] == kept
    shared = {architecture.key for architecture in SPACE.decode(start.sources[0].codes)}
    from_sources = sum(architecture.key in shared for architecture in drawn[:10])
    assert from_sources == (10 if sampler == "shared" else 0)


@pytest.mark.predictors
def test_help_is_given_its_references(known: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert transfer(run, known, "--method", "help", *options_of("help")).exit_code == 0
    learnt = load_run(run).predictor.method_
    measured = {a.key for a in load_run(run).dataset().architectures}
    assert {a.key for a in SPACE.decode(learnt.references_)} <= measured


def test_a_method_is_of_a_transfer() -> None:
    with pytest.raises(esm_host.UsageError, match="belongs to a transfer"):
        Settings("local", method="nasflat")


@pytest.mark.predictors
def test_the_same_from_python(known: Path, tmp_path: Path) -> None:
    settings = esm_host.Settings.for_transfer(
        "local", 10, 6, [str(known)], method="adaproxy", sampler="random",
        resolution=32, width_mult=0.25,
    )  # fmt: skip
    run = esm_host.profile(settings, tmp_path / "run")
    assert run.settings.method == "adaproxy"
    assert run.result is not None
    assert run.result["transfer"]["method"] == "adaproxy"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "nasflt"], ["unknown method 'nasflt'", "did you mean 'nasflat'", "adaproxy"]),
        (["--sampler", "kmeans"], ["unknown sampler 'kmeans'", "did you mean 'k-means'"]),
        (["--sampler", "cosine:zpc"], ["unknown encoding 'zpc'", "arch2vec"]),
        (["--sampler", "random:zcp"], ["'random' uses no encoding"]),
        (["--option", "epochs=3"], ["unknown option 'epochs' of method 'gaussian'"]),
        (["--option", "epochs"], ["'epochs'", "NAME=VALUE"]),
        (
            ["--method", "nasflat", "--option", "epoch=3"],
            ["unknown option 'epoch' of method 'nasflat'", "'epochs'"],
        ),
        (["--method", "nasflat", "--option", "epochs=many"], ["'epochs'", "int"]),
        (["--method", "nasflat", "--option", "layers=gcn"], ["'gcn'", "ensemble, dgf, gat"]),
        (["--method", "nasflat", "--option", "supplement=zc"], ["unknown encoding 'zc'"]),
        (["--method", "proxy", "--option", "proxy=pi9"], ["unknown source 'pi9'", "known/slow"]),
        (["--method", "adaproxy", "--option", "norm=l3"], ["'l3'", "l1, l2"]),
        (["--method", "brp-nas", "--option", "encoding=fcc"], ["needs graphs"]),
    ],
)
def test_wrong_names(
    known: Path,
    tmp_path: Path,
    fake: FakeProfiler,
    arguments: list[str],
    words: list[str],
) -> None:
    fake.blocks.clear()
    assert_refused(transfer(tmp_path / "run", known, *arguments), *words)
    assert not fake.blocks
    assert not (tmp_path / "run").exists()


def test_methods_that_cannot_work_say_so_before_anything_is_measured(
    known: Path, tmp_path: Path, fake: FakeProfiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.blocks.clear()
    table = read_benchmark(known)
    path = tmp_path / "single.parquet"
    single = {"slow": table.latency_of("slow")}
    write_table(LatencyTable("single", SPACE, table.codes, single, {}), path)
    arguments = ["--run", tmp_path / "run", "--source", path, "--method", "help"]
    refused = esm_host_command("transfer", *SMALL, *arguments)
    assert_refused(refused, "2 sources or more", "single/slow")
    monkeypatch.setitem(sys.modules, "esm_host.research.transfer.nasflat", None)
    refused = transfer(tmp_path / "run", known, "--method", "nasflat")
    assert_refused(refused, "method 'nasflat' needs", "pip install")
    assert not fake.blocks
    assert not (tmp_path / "run").exists()
