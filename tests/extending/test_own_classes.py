"""Classes in a user's file, wherever a plug-in has a name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from esm_host.campaign.run import load_run
from esm_host.cli.app import app
from esm_host.dataset.benchmarks import LatencyTable, write_table
from esm_host.encoding import make_encoder
from esm_host.errors import UsageError
from esm_host.extension.settings import Settings
from esm_host.predictors import encoding_for, entry
from esm_host.sampling import make_sampler
from esm_host.transfer import method_of
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from tests.helpers import depth_bins, told_elsewhere, undraw
from tests.host.fake_campaign import SPACE, latency

OWN = '''
import numpy as np

from esm_host.encoding.base import Encoder
from esm_host.predictors.base import Predictor
from esm_host.sampling.random import RandomSampler
from esm_host.search.genes import GeneEncoding
from esm_host.search.method import SearchMethod
from esm_host.transfer.base import FewShotPredictor


class Depth(Encoder):
    """The number of blocks."""

    name = "own-depth"

    def _columns(self):
        return ["blocks"]

    def _encode(self, codes, resolution):
        return (codes >= 0).sum(axis=(1, 2))[:, None]


class Line(Predictor):
    """A straight line through the first column."""

    encoding = f"{__file__}:Depth"

    def _fit(self, encodings, latency_ms, weights):
        self.line_ = np.polyfit(encodings[:, 0], latency_ms, 1, w=np.sqrt(weights))

    def _predict(self, encodings):
        return np.polyval(self.line_, encodings[:, 0])


class Chance(RandomSampler):
    """Chance."""


class Blocks(FewShotPredictor):
    """A straight line through numbers of blocks."""

    absolute = True
    sampler = "parameters"
    per_source = 20

    def __init__(self, degree=1):
        self.degree = degree

    def _learn(self, sources):
        assert max(map(len, sources)) <= self.per_source

    def _adapt(self, codes, latency_ms):
        self.line_ = np.polyfit((codes >= 0).sum(axis=(1, 2)), latency_ms, self.degree)

    def _predict(self, codes):
        return np.polyval(self.line_, (codes >= 0).sum(axis=(1, 2)))


class Draws(SearchMethod):
    """The best of a few draws."""

    def __init__(self, seed=0):
        self.seed = seed

    def _run(self, problem, evaluate, start):
        genes = GeneEncoding(problem.space)
        evaluate(genes.to_codes(genes.random(100, np.random.default_rng(self.seed))))


class Failing(Line):
    """A constructor that fails."""

    def __init__(self):
        raise KeyError("weights")


class Short(Depth):
    """Two columns, one value."""

    def _columns(self):
        return ["blocks", "more"]
'''

SMALL = ["--resolution", 32, "--width-mult", 0.25]
FEW = ["--initial", 15, "--max-models", 15, "--bins", 1, "--block-size", 5, "--runs", 3]
FEW += ["--verify", 0]


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file and a campaign of it, begun with a relative path."""
    folder, profiler = tmp_path_factory.mktemp("own"), FakeProfiler(latency, noise=0.01)
    (folder / "own.py").write_text(OWN)
    own = ["--predictor", "own.py:Line", "--sampling", "own.py:Chance"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(devices, "connect", lambda device: profiler)
        undraw(patch)
        result = esm_host("profile", *SMALL, *FEW, *own, "--judge", "overall", "--run", "run")
        assert result.exit_code in (0, 3), result.output
    return folder


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    profiler = FakeProfiler(latency, noise=0.01)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    undraw(monkeypatch)
    return profiler


def test_a_campaign_finds_its_classes_from_any_folder(
    folder: Path, tmp_path: Path, device: FakeProfiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = json.loads((folder / "run" / "settings.json").read_text())
    assert stored["predictor"] == f"{folder / 'own.py'}:Line"
    assert stored["sampling"] == f"{folder / 'own.py'}:Chance"
    monkeypatch.chdir(tmp_path)
    run = folder / "run"
    assert esm_host("predict", run, "--sample", 2).exit_code == 0
    assert esm_host("report", run, "--output", "report.html").exit_code == 0
    # The same classes by another path are no other setting.
    same = ["--sampling", f"{os.path.relpath(folder)}/own.py:Chance", "--target-accuracy", 1]
    resumed = esm_host("profile", "--run", run, "--resume", *same)
    assert resumed.exit_code == 0, resumed.output
    other = esm_host("profile", "--run", run, "--resume", "--sampling", "random")
    assert other.exit_code == 2
    assert "was measured with --sampling" in other.stderr


def test_another_process_has_the_latency_function(folder: Path) -> None:
    run = load_run(folder / "run")
    architectures = run.sample(3, "random")
    told = told_elsewhere(pickle.dumps(run.latency()), architectures)
    np.testing.assert_allclose(told, run.predict(architectures))


def test_a_search_by_a_method_of_ones_own(folder: Path) -> None:
    method = f"{folder / 'own.py'}:Draws"
    found = esm_host(
        *("search", folder / "run", "--method", method, "--measure", 0),
        *("--output", folder / "search"),
    )
    assert found.exit_code == 0, found.output
    assert json.loads((folder / "search" / "settings.json").read_text())["method"] == method
    front = json.loads((folder / "search" / "front.json").read_text())
    assert front["results"]


def test_a_transfer_by_a_method_of_ones_own(
    folder: Path, tmp_path: Path, device: FakeProfiler
) -> None:
    drawn = make_sampler("random", SPACE, depth_bins(SPACE, 1)).sample(60, np.random.default_rng(0))
    codes = SPACE.encode(drawn)
    blocks = (codes >= 0).sum(axis=(1, 2))
    known = LatencyTable("known", SPACE, codes, {"slow": 1.0 + blocks, "fast": 2.0 + blocks}, {})
    write_table(known, tmp_path / "known.parquet")
    method = f"{folder / 'own.py'}:Blocks"
    run = tmp_path / "run"
    result = esm_host(
        *("transfer", *SMALL, "--run", run, "--source", tmp_path / "known.parquet"),
        *("--samples", 10, "--held-out", 6, "--method", method, "--option", "degree=2"),
    )
    assert result.exit_code == 0, result.output
    figures = json.loads((run / "result.json").read_text())["transfer"]
    assert (figures["method"], figures["sampler"]) == (method, "parameters")
    assert len(load_run(run).predict(load_run(run).sample(3, "random"))) == 3


def test_what_is_known_of_a_class_is_on_the_class(folder: Path) -> None:
    own = f"{folder / 'own.py'}:"
    assert entry(own + "Line").about == "A straight line through the first column"
    assert encoding_for(own + "Line", SPACE) == own + "Depth"
    assert method_of(own + "Blocks").per_source == 20


def test_an_edited_predictor_is_computed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "study.toml").write_text(
        '[study]\npredictors = ["own.py:Line"]\nsizes = [8]\nseeds = 1\ntest = 5\n'
        f'[[data]]\nrun = "{folder / "run"}"\n'
    )
    study = ["study", tmp_path / "study.toml", "--results", tmp_path / "results"]
    study += ["--parallel", 1]

    def tasks() -> set[str]:
        result = esm_host(*study)
        assert result.exit_code == 0, result.output
        return {path.stem for path in (tmp_path / "results").rglob("*Line*")}

    first = tasks()
    assert first
    assert tasks() == first
    (tmp_path / "own.py").write_text(OWN.replace("latency_ms, 1,", "latency_ms, 0,"))
    assert tasks() - first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--predictor", "absent.py:Line"], ["there is no file 'absent.py'"]),
        (
            ["--predictor", "own.py:Lines"],
            ["unknown predictor class 'Lines'", "did you mean 'Line'?"],
        ),
        (["--predictor", "own.py:Depth"], ["unknown predictor class 'Depth'"]),
        (["--predictor", "own.py:Failing"], ["cannot be built", "KeyError", "line "]),
        (["--encoding", "own.py:Short", "--predictor", "ridge"], ["names 2 columns"]),
        (["--sampling", "own.py:Line"], ["unknown sampler class 'Line'"]),
        (["--sampling", "ballanced"], ["unknown sampler", "did you mean 'balanced'"]),
    ],
)
def test_what_is_wrong_is_one_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(folder)
    result = esm_host("profile", *SMALL, *options, "--run", tmp_path / "run")
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for word in words:
        assert word in line.replace(f"{folder}/", "")


def test_an_encoder_whose_rows_are_wrong_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(UsageError, match="names 2 columns"):
        make_encoder(f"{folder / 'own.py'}:Short", SPACE)


def test_settings_say_no_to_bins_of_a_sampler_without_them(folder: Path) -> None:
    with pytest.raises(UsageError, match="extends bins"):
        Settings("any", sampling=f"{folder / 'own.py'}:Chance", extension="cost-aware")
