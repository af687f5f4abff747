"""``esm_host`` as a notebook meets it: the documentation's code, values and errors."""

import ast
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

import esm_host.devices
from esm_agent.serving.server import AgentServer
from esm_host.cli.app import app
from esm_host.extension.campaign_loop import CampaignLoop
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Holder, Progress
from tests.host.fake_campaign import latency

ROOT = Path(__file__).parents[2]
SMALL = esm_host.Settings(
    "fake",
    resolution=32,
    width_mult=0.25,
    initial=20,
    step=10,
    max_models=30,
    bins=2,
    block_size=5,
    target_accuracy_percent=1,
    verify=0,
    predictor="ridge",
    spec=esm_host.MeasureSpec(runs=5),
    sampling="balanced",
)

pytestmark = pytest.mark.usefixtures("undrawn")


def scaled(depth: int) -> onnx.ModelProto:
    """Multiplies ``x`` (Nx3x16x16) by ``scale``, and squashes it so many times."""
    names = ["x", *(f"h{n}" for n in range(depth)), "y"]
    nodes = [helper.make_node("Mul", ["x", "scale"], [names[1]])]
    nodes += [helper.make_node("Sigmoid", [a], [b]) for a, b in pairwise(names[1:])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 16, 16]) for n in "xy")
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "scaled", [x, scale], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two models."""
    path = tmp_path_factory.mktemp("notebook")
    onnx.save(scaled(1), path / "small.onnx")
    onnx.save(scaled(8), path / "large.onnx")
    return path


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this host keeps its devices; not there yet."""
    path = tmp_path / "devices.toml"
    monkeypatch.setenv("ESM_CONFIG", str(path))
    monkeypatch.delenv("ESM_TOKEN", raising=False)
    return path


@pytest.fixture
def agent() -> Iterator[AgentServer]:
    server = AgentServer("127.0.0.1", 0)
    yield server
    server.stop()


def test_the_documentations_code_runs_and_prints_nothing(
    folder: Path,
    agent: AgentServer,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    docs = ROOT / "docs" / "python.md"
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", docs.read_text(), re.M | re.S))
    assert "esm_host.profile(" in code
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code.replace("127.0.0.1:7343", f"127.0.0.1:{agent.port}"), docs, "exec"), names)
    assert capfd.readouterr() == ("", "")
    results = names["timing"].results()
    assert results["trimmed_mean_ms"].gt(0).all()
    assert results["model"].tolist() == ["small.onnx", "large.onnx"]
    assert names["sweep"].results()[["model", "batch"]].values.tolist() == [
        *(["before", 1], ["before", 4], ["after", 1], ["after", 4])
    ]
    assert len(names["comparison"].changes) == 2
    run = names["run"]
    assert run.result["measured_models"] == len(run.measurements())
    assert names["Progress"].accuracies == [r["accuracy_percent"] for r in run.result["rounds"]]
    assert names["diagnosis"].findings
    assert "lab" not in config.read_text()
    assert "nobody" in names["message"]
    assert (folder / "times.html").read_text().startswith("<!doctype html>")


# The package


def test_importing_is_instant_and_every_name_is_there() -> None:
    code = (
        "import sys, esm_host; heavy = {'numpy', 'grpc', 'pandas', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(esm_host.__all__) <= set(dir(esm_host))"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    assert all(hasattr(esm_host, name) for name in esm_host.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        esm_host.nothing  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "host/esm_host/__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = [a.asname for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert sorted(filter(None, seen)) == esm_host.__all__
    for package in ("host/esm_host", "protos/esm_protos", "models_export/esm_models"):
        assert (ROOT / package / "py.typed").exists()


# Timing


def test_torch_modules_are_exported_and_timed() -> None:
    """Through a real agent: what torch writes runs, in evaluation mode."""
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.5), torch.nn.ReLU()
    )
    timing = esm_host.time(
        {"mine": module}, "local", example_inputs=torch.zeros(2, 3, 16, 16), runs=10
    )
    (row,) = timing.results().to_dict("records")
    assert (row["model"], row["status"]) == ("mine", "success")
    assert "2x3x16x16" in str(row["fed"])
    assert module.training, "left as it was"
    with pytest.raises(esm_host.UsageError, match="model-1 is a torch module: give example_inputs"):
        esm_host.time(module)
    with pytest.raises(esm_host.UsageError, match="model-1 cannot be exported"):
        esm_host.time(module, example_inputs=torch.zeros(3))


def test_a_notebook_shows_timings_and_campaigns(
    fake: FakeProfiler, folder: Path, tmp_path: Path
) -> None:
    html = esm_host.time({"<b>": folder / "small.onnx"}, "any", runs=8)._repr_html_()
    assert "&lt;b&gt;" in html
    assert "verdict" in html
    run = esm_host.profile(replace(SMALL, device="a<b"), tmp_path / "run")
    assert "a&lt;b: 20 measured, converged" in run._repr_html_()


def test_models_from_memory_are_timed_as_their_files_are(fake: FakeProfiler, folder: Path) -> None:
    path = folder / "small.onnx"
    models = [path, path.read_bytes(), onnx.load(path), scaled(1)]
    timing = esm_host.time([*models[:3]], "any", runs=8)
    assert timing.results()["model"].tolist() == [str(path), "model-2", "model-3"]
    (block,) = fake.blocks
    assert len({model.data for model in block.models}) == 1
    for model in models:
        assert len(esm_host.time(model, "any", runs=8).results()) == 1
    named = esm_host.time({"old": path, "new": scaled(8)}, "any", runs=8)
    assert named.labels == ["old", "new"]


def test_cases_reach_the_device(fake: FakeProfiler, folder: Path) -> None:
    scale = np.array([2], dtype=np.float32)
    given = [{"scale": scale}, {"scale": scale}, folder / "scale.npz"]
    np.savez(folder / "scale.npz", scale=scale)
    for inputs in given:
        esm_host.time(
            folder / "small.onnx",
            "any",
            batch=np.arange(1, 3),
            shapes={"x": [None, 3, 16, 16]},
            threads=(1, 2),
            inputs=inputs,
            runs=8,
            seed=7,
        )
    cases = [[model.case for model in block.models] for block in fake.blocks]
    assert cases[0][0].shapes == (("x", (1, 3, 16, 16)),)
    assert [(dict(c.shapes)["x"][0], c.threads) for c in cases[0]] == [
        *((1, 1), (1, 2), (2, 1), (2, 2))
    ]
    hashes = [case.inputs.sha256 for (case, *_) in cases if case.inputs]
    assert hashes[0] == hashes[1]  # else timings of the same arrays would not compare
    assert fake.blocks[0].spec.seed == 7
    assert fake.blocks[0].spec.runs == 8


def test_sizes_by_name_are_cases_and_assumed_ones_warn(fake: FakeProfiler, folder: Path) -> None:
    path = folder / "small.onnx"
    results = esm_host.time(path, "any", dims={"N": [1, 4]}, runs=100).results()
    assert results["dims"].tolist() == ["N=1", "N=4"]
    assert results["label"].tolist() == ["small.onnx · N=1", "small.onnx · N=4"]
    assert results["fed"][1].startswith("x 4x3x16x16 float32")
    assert not any("no size" in text for texts in results["warnings"] for text in texts)
    (warnings,) = esm_host.time(path, "any", runs=100).results()["warnings"]
    assert warnings[-1] == "no size is given for N of x:Nx3x16x16: taken as 1; set N by batch"


def test_a_timing_is_the_same_measured_saved_and_read(
    fake: FakeProfiler, folder: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, Progress]] = []
    models = [folder / "small.onnx", folder / "large.onnx"]
    timing = esm_host.time(
        models, ["a", "b"], runs=100, on_progress=lambda *news: told.append(news)
    )
    assert {device for device, _ in told} == {"a", "b"}
    path = timing.save(tmp_path / "t.json")
    read = esm_host.load_timing(path)
    assert read.data == timing.data
    pd.testing.assert_frame_equal(read.results(), timing.results())
    assert "samples_ms" not in repr(timing)
    same = esm_host.compare(path, timing)
    assert [change.change_percent for change in same.changes] == pytest.approx([0] * 4)
    # The command reads it too.
    copy = path.with_name("copy.json")
    copy.write_bytes(path.read_bytes())
    assert CliRunner().invoke(app, ["compare", str(path), str(copy)]).exit_code == 0
    with pytest.raises(esm_host.UsageError, match="cannot write"):
        timing.save(tmp_path / "none" / "t.json")


def test_one_device_of_several_may_fail(
    monkeypatch: pytest.MonkeyPatch, fake: FakeProfiler, folder: Path
) -> None:
    def connect(device: str) -> FakeProfiler:
        if device == "gone":
            raise esm_host.UnreachableError("no agent answers")
        return fake

    monkeypatch.setattr(devices, "connect", connect)
    timing = esm_host.time(folder / "small.onnx", ["here", "gone"], runs=8)
    assert timing.devices["gone"]["error"] == "no agent answers"
    assert timing.results()["device"].tolist() == ["here"]
    with pytest.raises(esm_host.DeviceError):
        esm_host.time(folder / "small.onnx", "gone", runs=8)


def test_waiting_may_be_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    busy = FakeProfiler(latency, holder=Holder("ada", "profile resnet", "ada", 1.0))
    monkeypatch.setattr(devices, "connect", lambda device: busy)
    with pytest.raises(esm_host.BusyError, match=r"ada .*omit wait=False to wait"):
        esm_host.time(folder / "small.onnx", "any", wait=False)
    with pytest.raises(esm_host.BusyError, match="ada"):
        esm_host.devices.doctor("any", wait=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"models": []}, "empty list of models"),
        ({"models": {}}, "empty list of models"),
        ({"device": []}, "empty list of devices"),
        ({"device": ["a", "a"]}, "each device once"),
        ({"threads": []}, "empty list"),
        ({"batch": 0}, "^batch 0 is outside"),
        ({"protocol": "both"}, "choose"),
        ({"profile_runs": 1001}, "outside 0 to 1000"),
        ({"energy_time_s": 0}, "^energy_time_s 0 is outside 1 to 86400"),
        ({"runs": 5, "max_runs": 5}, "^runs takes .* leave max_runs out"),
        ({"tf32": True}, "^tf32 needs provider cuda"),
        ({"provider": "cpu,npu"}, r"^provider 'cpu,npu': give a list, \['cpu', 'npu'\]$"),
        ({"provider": "cuda"}, "^provider: unknown execution provider 'cuda' on the"),
        ({"max_time_s": 0}, "^max_time_s 0: give seconds"),
        ({"precision_percent": 200}, "^precision_percent 200: give percent"),
        ({"timeout_s": 0}, "^timeout_s 0 is not above 0"),
        ({"protocol": "sequential"}, "^protocol sequential .* give runs$"),
        ({"dims": {"H": 2}}, "^dims: unknown dimension 'H': the inputs name 'N'"),
        ({"dims": {"N": []}}, "^dims N=: give NAME=SIZE"),
        ({"dims": {"N": 2}, "batch": 3}, "^batch 3 sets nothing .*: dims N=2 gives 'x' 2"),
        ({"shapes": {"x": [1, 4, 16, 16]}}, "^shapes x:1x4x16x16: dimension 1"),
        ({"inputs": {"z": np.zeros(1)}}, "^inputs: unknown input 'z': the model takes 'x'"),
        ({"inputs": {"x": np.array([object()])}}, "pickled"),
        ({"shapes": {"x": []}}, "^shapes x:"),
    ],
)
def test_impossible_requests_measure_nothing(
    fake: FakeProfiler, folder: Path, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(esm_host.UsageError, match=words):
        esm_host.time(**{"models": folder / "small.onnx", "device": "any", **arguments})
    assert not fake.blocks


def test_bytes_that_lack_their_weights_say_so(fake: FakeProfiler, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros(1024, np.float32), "w")
    model = scaled(1)
    model.graph.initializer.append(weight)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin")
    alone = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    with pytest.raises(esm_host.UsageError, match=r"model-1 keeps weights in 'w\.bin'"):
        esm_host.time(alone, "any", runs=8)
    assert len(esm_host.time(onnx.load(tmp_path / "m.onnx"), "any", runs=8).results()) == 1


# Comparing, reports


def test_timings_that_differ_are_refused_unless_allowed(fake: FakeProfiler, folder: Path) -> None:
    one, other = (esm_host.time(folder / "small.onnx", "any", runs=60, seed=s) for s in (0, 1))
    with pytest.raises(esm_host.DifferentError, match="seed differs"):
        esm_host.compare(one, other)
    assert esm_host.compare(one, other, allow=["seed"]).allowed
    assert esm_host.compare([one, other], one, allow=["seed"]).timings == (2, 1)
    with pytest.raises(esm_host.UsageError, match="no new timing"):
        esm_host.compare(one, [])


def test_arguments_of_comparisons_are_named(fake: FakeProfiler, folder: Path) -> None:
    timing = esm_host.time(folder / "small.onnx", "any", runs=100)
    with pytest.raises(esm_host.UsageError, match=r"^confidence 95: give a share"):
        esm_host.compare(timing, timing, confidence=95)
    with pytest.raises(esm_host.UsageError, match=r"^tolerance_percent -1: give a percentage"):
        esm_host.compare(timing, timing, tolerance_percent=-1)


def test_arguments_of_campaigns_and_searches_are_named() -> None:
    for arguments, words in (
        ({"max_models": 1}, "^max_models 1 is less than initial 20$"),
        ({"judge": "one"}, "^unknown judge 'one': choose bins, overall"),
        ({"reference_tolerance_percent": -1}, "^reference_tolerance_percent -1 is outside"),
    ):
        with pytest.raises(esm_host.UsageError, match=words):
            esm_host.Settings("any", **arguments)
    with pytest.raises(esm_host.UsageError, match=r"^probability 95: give a share"):
        esm_host.SearchSettings(("runs/a",), probability=95)
    with pytest.raises(esm_host.UsageError, match=r"^max_latency_ms -1: give milliseconds"):
        esm_host.SearchSettings(("runs/a",), max_latency_ms=(-1,))


def test_reports_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(esm_host.UsageError, match="there is no"):
        esm_host.write_report(tmp_path / "none", tmp_path / "r.html")
    with pytest.raises(esm_host.UsageError, match="folder that exists"):
        esm_host.write_report(tmp_path, tmp_path / "none" / "r.html")


# Campaigns


class Heard(esm_host.Watcher):
    def __init__(self) -> None:
        self.rounds: list[int] = []

    def on_round(self, number: int, architectures: int) -> None:
        self.rounds.append(number)


class Impatient(esm_host.Watcher):
    def on_block(self, block_id: str, models: int, pending: int) -> None:
        raise KeyboardInterrupt


class Counter:
    """Derived from nothing, with the one method that it cares for."""

    blocks = 0

    def on_block(self, block_id: str, models: int, pending: int) -> None:
        self.blocks += 1


def test_a_watcher_has_the_methods_that_it_cares_for(fake: FakeProfiler, tmp_path: Path) -> None:
    counter = Counter()
    esm_host.profile(SMALL, tmp_path / "run", watcher=counter)
    assert counter.blocks == len(fake.blocks) == 4
    with pytest.raises(
        esm_host.UsageError, match=r"^watcher int has none of the methods on_estimate, on_round"
    ):
        esm_host.profile(SMALL, tmp_path / "other", watcher=3)


def test_an_interrupted_campaign_goes_on(fake: FakeProfiler, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        esm_host.profile(SMALL, path, watcher=Impatient())
    assert not esm_host.load_run(path).converged
    before = len(fake.blocks)
    heard = Heard()
    run = esm_host.resume(path, target_accuracy_percent=2, watcher=heard)
    assert heard.rounds == [0]
    assert len(fake.blocks) - before == 3  # of four
    assert run.converged
    assert run.settings.target_accuracy_percent == 2
    assert len(run.measurements()) == 20
    with pytest.raises(esm_host.RunExistsError):
        esm_host.profile(SMALL, path)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured."""

    def run(self: CampaignLoop) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CampaignLoop, "run", run)


@pytest.mark.usefixtures("fake", "interrupted")
def test_the_defaults_are_the_commands(tmp_path: Path) -> None:
    path = tmp_path / "run"
    command = CliRunner().invoke(app, ["profile", "--device", "any", "--run", str(path), "-q"])
    assert command.exit_code == 130, command.output
    assert esm_host.load_run(path).settings == esm_host.Settings("any")


@pytest.mark.usefixtures("fake", "interrupted")
def test_what_speaks_against_a_campaign_is_a_warning(tmp_path: Path) -> None:
    own = f"{Path(__file__).parent / 'own_spaces.py'}:Tiny"
    settings = esm_host.Settings("any", space=own, initial=10, bins=1, sampling="balanced")
    with (
        pytest.warns(UserWarning, match="fewer than three blocks"),
        pytest.raises(KeyboardInterrupt),
    ):
        esm_host.profile(settings, tmp_path / "run")


@pytest.mark.usefixtures("fake", "interrupted")
@pytest.mark.parametrize(("name", "warns"), [("Tiny", True), ("Scoped", False)])
def test_a_space_without_scopes_of_blocks_is_a_warning(
    name: str, warns: bool, tmp_path: Path
) -> None:
    own = f"{Path(__file__).parent / 'own_spaces.py'}:{name}"
    settings = esm_host.Settings("any", space=own, initial=10, bins=1, verify=0)
    with (
        warnings.catch_warnings(record=True, action="always") as caught,
        pytest.raises(KeyboardInterrupt),
    ):
        esm_host.profile(settings, tmp_path / "run")
    said = f"{own} has no operator in a scope like unit1.block1, so predictors cannot tell"
    assert any(str(each.message).startswith(said) for each in caught) == warns


def test_impossible_campaigns_leave_no_folder(fake: FakeProfiler, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(esm_host.UsageError, match="unknown encoding"):
        esm_host.profile(replace(SMALL, encoding="fccc"), path)
    with pytest.raises(esm_host.UsageError, match=r"^patience_s -1"):
        esm_host.profile(SMALL, path, patience_s=-1)
    with pytest.raises(esm_host.ModelsError):
        esm_host.profile(esm_host.Settings("any", space="resnett"), path)
    spec = esm_host.MeasureSpec(provider_options={"cuda_graph": "1"})
    with pytest.raises(
        esm_host.UsageError, match=r"^ep_options cuda_graph=1: .*unknown option 'cuda_graph'"
    ):
        esm_host.profile(esm_host.Settings("any", spec=spec), path)
    with pytest.raises(esm_host.UsageError, match="is not a campaign"):
        esm_host.resume(path)
    assert not path.exists()


# Devices


def test_devices_are_the_commands(agent: AgentServer) -> None:
    address = f"127.0.0.1:{agent.port}"
    added = esm_host.devices.add("lab", address)
    assert added.info.runtime.startswith("onnxruntime")
    assert [(row.name, row.state) for row in esm_host.devices.list()] == [("lab", "free")]
    assert esm_host.devices.info(address).hostname == added.info.hostname
    esm_host.devices.group("all", ["lab"])
    assert esm_host.devices.groups() == {"all": ("lab",)}
    assert "group all: lab" in CliRunner().invoke(app, ["devices", "list"]).stdout
    with pytest.raises(esm_host.UsageError, match="already"):
        esm_host.devices.add("lab", address)
    assert esm_host.devices.remove("lab", force=True) == ("all",)
    assert esm_host.devices.list() == ()


def test_plain_text_to_another_machine_is_warned_of(config: Path) -> None:
    with (
        pytest.warns(UserWarning, match="is another machine") as caught,
        pytest.raises(esm_host.UnreachableError),
    ):
        esm_host.devices.add("there", "127.unknown.invalid:7343")
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(esm_host.UsageError, match="a token needs a fingerprint"):
            esm_host.devices.add("there", "127.unknown.invalid:7343", token="esm_abcdefgh")
    assert not config.exists()
