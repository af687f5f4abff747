"""A browser, and reports to open in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper
from playwright import sync_api as playwright
from typer.testing import CliRunner

from esm_host.atomic import write_json
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.result import campaign_result
from esm_host.cli.app import app
from esm_host.dataset.benchmarks import LatencyTable, write_table
from esm_host.dataset.campaign_metric import LATENCY
from esm_host.dataset.measurements import Measurements
from esm_host.encoding import make_encoder
from esm_host.research.study.run import run_study
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.search.methods.with_pymoo import PymooSearch
from esm_host.transport import devices
from esm_host.transport.base import Profiler
from esm_host.transport.fake import FakeProfiler
from esm_host.workflows import search as searching
from tests.host.fake_campaign import SETTINGS, SPACE, Log, assemble, latency
from tests.host.report.timings import STRANGE, timing

CHROMIUM = "/usr/bin/chromium"
_ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@dataclass
class Opened:
    """A page, what it asked for and what it complained of."""

    page: playwright.Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")  # its event loop is in the way of others' for as long as it lives
def browser() -> Iterator[playwright.Browser]:
    path = CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: make browser installs it")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(_ARGUMENTS))
        yield browser
        browser.close()


def opened(browser: playwright.Browser, path: Path, scheme: str = "light") -> Opened:
    """The file in a window of its own, when all its charts are drawn."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    opened = Opened(page)
    page.on("request", lambda request: opened.requests.append(request.url))
    page.on("console", lambda message: opened.complaints.append(message.text))
    page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    page.on("dialog", lambda dialog: opened.complaints.append(dialog.message))
    page.goto(path.as_uri())
    page.wait_for_selector(f"html[data-scheme={scheme}]", timeout=60_000)
    return opened


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished campaign on a made-up device with a name that is code."""
    path = tmp_path_factory.mktemp("reports") / "run <b>&"
    name = f"edge {STRANGE}"
    return finished(path, name, {name: FakeProfiler(latency, noise=0.01)})


def finished(path: Path, device: str, profilers: Mapping[str, Profiler]) -> Path:
    """The folder of a campaign of 60 models."""
    folder = RunFolder(path)
    folder.prepare(resume=False)
    store, _, loop = assemble(folder.path, profilers, Log(), max_models=60)
    outcome = loop.run()
    settings = replace(SETTINGS, device=device, max_models=60)
    write_json(folder.settings, settings.to_json())
    measurements = Measurements(store, settings.spec)
    info = next(iter(profilers.values())).device_info()
    result = campaign_result(store, measurements, settings, asdict(info), outcome.converged)
    write_json(folder.result, result)
    store.close()
    keys = [a.key for a in outcome.dataset.architectures]
    lines = [f"{key},{ms}" for key, ms in zip(keys, outcome.predicted_ms.tolist(), strict=True)]
    files = folder.files(LATENCY)
    files.predictions.write_text("\n".join(["architecture_key,predicted_ms", *lines]) + "\n")
    files.onnx.write_bytes(_counter(len(make_encoder("fcc", SPACE))))
    return folder.path


@pytest.fixture(scope="session")
def transferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transfer to a made-up device from one like it, one that tells nothing, and one whose name
    is code and that ranks the other way round."""
    rng = np.random.default_rng(0)
    sampler = RandomSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 1))
    codes = SPACE.encode(sampler.sample(200, rng))
    by_block = 1.0 + (codes >= 0).sum(axis=(1, 2))
    latency_ms = {"chance": rng.uniform(1, 9, 200), "blocks": by_block, STRANGE: 30 / by_block}
    folder = tmp_path_factory.mktemp("transferred")
    table = folder / "known.parquet"
    write_table(LatencyTable("known", SPACE, codes, latency_ms, {}), table)
    options = ["--resolution", 32, "--width-mult", 0.25, "--samples", 12, "--held-out", 6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: FakeProfiler(latency, noise=0.01))
        patch.setenv("ESM_SOURCES", str(folder / "none"))
        command = ["transfer", "--device", "edge", "--run", folder / "run", "--source", table]
        result = CliRunner().invoke(app, [str(word) for word in (*command, *options)])
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture(scope="session")
def searched(campaign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that ended when its measurements were spent, in a folder of its campaign."""
    run = shutil.copytree(campaign, tmp_path_factory.mktemp("searched") / "a")
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({**settings, "predictor": "ridge"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: FakeProfiler(latency, noise=0.01))
        patch.setattr(searching, "make_method", lambda *_: PymooSearch("nsga2", 60, 12))
        command = ["search", run, "--max-latency", 2.5, "--measure", 10, "--batch", 4]
        result = CliRunner().invoke(app, [str(word) for word in command])
    assert result.exit_code == 0, result.output
    return run / "search"


def _counter(width: int) -> bytes:
    """A predictor that takes a millisecond for every block."""
    node = helper.make_node("ReduceSum", ["encoding", "axes"], ["latency_ms"], keepdims=0)
    graph = helper.make_graph(
        [node],
        "counter",
        [helper.make_tensor_value_info("encoding", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("latency_ms", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    opset = helper.make_opsetid("", 18)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


@pytest.fixture(scope="session")
def timings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a timing with a model whose name is code."""
    path = tmp_path_factory.mktemp("reports") / "timing.json"
    path.write_text(json.dumps(timing((f"nets/{STRANGE}", "nets/large.onnx"))))
    return path


@pytest.fixture(scope="session")
def comparison(timings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What became of the timing: the same, slower, faster, and a model that still fails."""
    folder = tmp_path_factory.mktemp("compared")
    data = json.loads(timings.read_text())
    del data["context"]["devices"]["rack-2"]  # which did not answer
    (folder / "base.json").write_text(json.dumps(data))
    for result, factor in zip(data["results"], (1.3, 1, 0.8, 1.021), strict=False):
        result["trimmed_mean_ms"] *= factor
    (folder / "new.json").write_text(json.dumps(data))
    words = [
        "compare",
        folder / "base.json",
        folder / "new.json",
        "--json",
        folder / "comparison.json",
    ]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 3, result.output
    return folder / "comparison.json"


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two predictors on two devices, one of which has a name that is code."""
    folder = tmp_path_factory.mktemp("studied")
    blocks = np.random.default_rng(0).integers(0, 9, (120, 22))
    columns = {f"lat_ms_{name}": 5 + blocks @ np.linspace(0, top, 22) for name, top in _DEVICES}
    arch = ["_".join(map(str, row)) for row in blocks.tolist()]
    pd.DataFrame({"arch": arch, **columns}).to_parquet(folder / "fbnet.parquet")
    (folder / "study.toml").write_text(
        """
[study]
predictors = [{predictor = "ridge"}, {predictor = "xgboost", label = "boosted trees"}]
sizes = [60, 20]
seeds = 2
test = 50
metrics = ["tau", "accuracy_percent"]
[[data]]
table = "fbnet.parquet"
"""
    )
    run_study(folder / "study.toml", folder / "results")
    return folder / "results"


_DEVICES = (("raspberry_pi_4", 0.5), (STRANGE, 2))


def _report(source: str) -> Any:
    """Return a fixture that opens the report of what another fixture gives."""

    @pytest.fixture(scope="module")
    def report(request: pytest.FixtureRequest, browser: playwright.Browser) -> Opened:
        path = request.getfixturevalue(source)
        return opened(browser, written(path, path.parent / f"{source}.html"))

    return report


campaign_report = _report("campaign")
transfer_report = _report("transferred")
search_report = _report("searched")
timing_report = _report("timings")
comparison_report = _report("comparison")
study_report = _report("studied")


def written(source: Path, output: Path) -> Path:
    """What ``esm-host report`` writes."""
    result = CliRunner().invoke(app, ["report", str(source), "--output", str(output)])
    assert result.exit_code == 0, result.output
    return output
