"""``esm-host`` as users meet it: a campaign from start to end, and every kind of wrong input."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import onnxruntime
import pytest
import typer
from typer.testing import CliRunner, Result

from esm_agent.cli import app as agent_app
from esm_host import load_run
from esm_host.cli import errors
from esm_host.cli import options as shared
from esm_host.cli.app import COMMANDS, app, load
from esm_host.dataset.database import SqliteFile
from esm_host.dataset.store import Store
from esm_host.encoding import ENCODERS, make_encoder
from esm_host.errors import DatasetError
from esm_host.evaluation.verdict import Verdict
from esm_host.predictors import PREDICTORS
from esm_host.sampling import SAMPLERS
from esm_host.search.methods import METHODS
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_models.graph import DTYPES
from esm_models.spaces import SPACES, load_space
from esm_protos import convert
from esm_protos.messages import PROTOCOL_VERSION
from esm_protos.older_peers import provider_table
from esm_protos.v1 import profiler_pb2_grpc
from tests.helpers import read_only, smallest
from tests.host.fake_campaign import SPACE, latency

SMALL = ["--resolution", "32", "--width-mult", "0.25", "--initial", "20", "--step", "10"]
OWN_SPACE = f"{Path(__file__).parents[1] / 'own_spaces.py'}:Tiny"
SMALL += ["--bins", "2", "--block-size", "10", "--runs", "5", "--max-models", "30"]
SMALL += ["--sampling", "balanced", "--verify", "0"]
QUICK = [*SMALL, "--predictor", "ridge"]
"""Options for tests of something else than the predictor."""

pytestmark = pytest.mark.usefixtures("undrawn")


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One line on stderr, the right exit code, and no traceback."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.output
    assert result.stderr.splitlines()[-1] == lines[0]
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., None]) -> Path:
    """A campaign on this machine, through a real agent, with its plots."""
    run = tmp_path_factory.mktemp("campaign") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esm_host.workflows.profile._draw", draw)
        result = esm_host("profile", *SMALL, "--run", run, "--target-accuracy", 1)
    assert result.exit_code == 0, result.output
    return run


# A campaign that works


def test_a_campaigns_folder_may_have_any_name(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "it's a%2Fb 100% c#d&mode=ro?x=1")
    before = {path.name for path in run.iterdir()}
    assert esm_host("predict", run, "--sample", 2).exit_code == 0
    result = esm_host("profile", "--run", run, "--resume", "--predictor", "ridge")
    assert result.exit_code == 0, result.output
    left = {path.name for path in run.iterdir()}
    assert before - {"predictor.onnx"} <= left <= before
    assert list(tmp_path.iterdir()) == [run]


def test_a_campaign_that_may_only_be_read_is_read(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    expected = esm_host("predict", finished, "--sample", 3).stdout
    with read_only(run):
        assert esm_host("predict", run, "--sample", 3).stdout == expected
        assert esm_host("predict", run, "--sample", 3, "--interval", 90).exit_code == 0
        page = tmp_path / "report.html"
        assert esm_host("report", run, "-o", page).exit_code == 0
        assert page.exists()
        found = esm_host("search", run, "-o", tmp_path / "search", "--measure", 0)
        assert found.exit_code == 0, found.output
        refused = esm_host("profile", "--run", run, "--resume", "--predictor", "ridge")
        assert refused.exit_code == 1
        assert len([line for line in refused.stderr.splitlines() if "error: " in line]) == 1


def test_what_is_in_the_write_ahead_log_alone_is_read_as_well(
    finished: Path, tmp_path: Path
) -> None:
    """As of a colleague's campaign that was killed, or that goes on."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    with closing(sqlite3.connect(copy / "store.sqlite")) as connection:
        connection.execute("INSERT INTO facts (key, value) VALUES ('late', '7')")
        connection.commit()
        run = shutil.copytree(copy, tmp_path / "run")
    assert (run / "store.sqlite-wal").stat().st_size
    with read_only(run), closing(Store(SqliteFile(run / "store.sqlite"))) as store:
        assert store.fact("late") == 7
        with pytest.raises(DatasetError):
            store.add_fact("later", 8)


def test_leaves_everything_in_its_folder(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"settings.json", "store.sqlite", "predictor.onnx"} <= names
    assert {"result.json", "predictions.csv", "predicted_against_measured.png"} <= names
    assert {"accuracy_by_round.png", "reference_stability.png"} <= names


def test_result_json_has_the_documented_shape(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["schema_version"] == 1
    assert result["converged"] is True
    assert result["measured_models"] == 20
    (entry,) = result["rounds"]
    assert entry["measured_models"] == 20
    assert isinstance(entry["accuracy_percent"], float)
    for part in entry["bins"]:
        assert {"depth_min", "depth_max", "accuracy_percent"} <= part.keys()
    assert {"passed", "worst_reference_deviation_percent", "remeasured_blocks"} <= entry[
        "qc"
    ].keys()
    assert 0 < result["device_busy_seconds"] < result["wall_seconds"]
    assert result["bytes_sent"] > 20 * 1_000
    assert result["device"]["runtime"].startswith("onnxruntime")
    assert result["settings"]["space"] == "resnet"


def test_predictor_onnx_takes_encodings_and_gives_milliseconds(finished: Path) -> None:
    session = onnxruntime.InferenceSession(
        finished / "predictor.onnx", providers=["CPUExecutionProvider"]
    )
    encodings = make_encoder("views", SPACE).encode([smallest(SPACE)])
    (got,) = session.run(["latency_ms"], {"encoding": encodings})
    assert got.shape == (1,)
    assert 0 < got[0] < 1000


def test_predicts_given_and_sampled_architectures(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.json"
    assert esm_host("predict", finished, "--sample", 4, "--json", out).exit_code == 0
    drawn = json.loads(out.read_text())
    assert drawn["schema_version"] == 1
    assert len(drawn["results"]) == 4
    given = tmp_path / "given.json"
    given.write_text(out.read_text())
    result = esm_host("predict", finished, "--architectures", given, "--json", "-")
    assert json.loads(result.stdout)["results"] == drawn["results"]
    given.write_text(json.dumps(smallest(SPACE).to_json()))
    lines = esm_host("predict", finished, "-a", given).stdout.splitlines()
    assert len(lines) == 2
    assert float(lines[1].split()[0]) > 0


def test_intervals_of_predictions(finished: Path) -> None:
    result = esm_host("predict", finished, "--sample", 4, "--interval", 80, "--json", "-")
    for entry in json.loads(result.stdout)["results"]:
        low_ms, high_ms = entry["interval_ms"]
        assert 0 < low_ms < entry["latency_ms"] < high_ms
    lines = esm_host("predict", finished, "--sample", 4, "--interval", 80).stdout.splitlines()
    assert lines[0].split()[:3] == ["latency_ms", "from_ms", "to_ms"]
    refused = esm_host("predict", finished, "--sample", 4, "--interval", 100)
    assert_refused(refused, 2, "--interval 100", "below 100")


def test_no_report_of_another_source_is_overwritten(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert esm_host("report", finished).exit_code == 0
    page = (tmp_path / "report.html").read_text()
    assert str(finished.parent) not in page.partition("</head>")[0], "no folder of its writer"
    other = shutil.copytree(finished, tmp_path / "other")
    assert_refused(esm_host("report", other), 2, "report.html exists", "--output")
    assert (tmp_path / "report.html").read_text() == page
    assert esm_host("report", other, "-o", "report.html").exit_code == 0


def test_a_predictor_is_tried_on_another_device(
    finished: Path, fake: FakeProfiler, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    small = [*QUICK, "--device", "pi4", "--seed", 7, "--target-accuracy", 1]
    assert esm_host("profile", *small, "--run", other).exit_code == 0
    shown = esm_host("predict", finished, "--against", other)
    assert shown.exit_code == 0, shown.output
    assert "rank correlation" in shown.stdout
    esm_host("predict", finished, "--against", other, "--json", tmp_path / "against.json")
    found = json.loads((tmp_path / "against.json").read_text())
    assert found["samples"] == 20
    assert found["scaled_percent"] >= found["accuracy_percent"]
    assert sum(entry["samples"] for entry in found["bins"]) == 20
    own = load_run(other).against(load_run(other))
    assert (own.samples, own.seen) == (20, 20)
    assert own.spearman > 0.9
    both = esm_host("predict", finished, "--against", other, "--sample", 3)
    assert_refused(both, 2, "give one of")


@pytest.mark.parametrize("name", ["ridge", "mlp"])
def test_another_predictor_learns_from_what_was_measured(
    finished: Path, name: str, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    result = esm_host("profile", "--run", run, "--resume", "--predictor", name)
    assert result.exit_code == 0, result.output
    written = json.loads((run / "result.json").read_text())
    assert written["settings"]["predictor"] == name
    assert written["measured_models"] == 20
    assert (run / "predictor.onnx").exists() == (name == "mlp")  # a ridge has no such form here
    lines = esm_host("predict", run, "--sample", 2).stdout.splitlines()
    assert all(float(line.split()[0]) > 0 for line in lines[1:])
    asked = esm_host("predict", run, "--sample", 2, "--interval", 90)
    for line in asked.stdout.splitlines()[1:]:
        latency_ms, from_ms, to_ms = map(float, line.split()[:3])
        assert from_ms < latency_ms < to_ms
        assert to_ms / latency_ms == pytest.approx(latency_ms / from_ms, rel=0.01)
    assert_refused(esm_host("predict", run, "--sample", 2, "--interval", 100), 2, "--interval")


def test_resuming_a_finished_campaign_measures_nothing(finished: Path) -> None:
    before = json.loads((finished / "result.json").read_text())
    assert esm_host("profile", "--run", finished, "--resume").exit_code == 0
    after = json.loads((finished / "result.json").read_text())
    assert after["measured_models"] == before["measured_models"]
    assert after["bytes_sent"] == before["bytes_sent"]


def test_an_unreached_target_is_exit_code_3(fake: FakeProfiler, tmp_path: Path) -> None:
    result = esm_host("profile", *QUICK, "--run", tmp_path / "r", "--target-accuracy", 100)
    assert result.exit_code == 3
    assert "not converged" in result.stdout
    assert json.loads((tmp_path / "r/result.json").read_text())["measured_models"] == 30


def test_a_raised_target_may_be_resumed_but_other_settings_not(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    assert esm_host("profile", *QUICK, "--run", run, "--target-accuracy", 1).exit_code == 0
    more = ("profile", "--run", run, "--resume", "--target-accuracy", 100)
    assert esm_host(*more, "--load-timeout", 900).exit_code == 3
    assert json.loads((run / "result.json").read_text())["measured_models"] == 30
    assert fake.blocks[0].spec.load_timeout_s == 600
    assert fake.blocks[-1].spec.load_timeout_s == 900
    for flag, value in (("--space", "densenet"), ("--runs", 7), ("--extension", "cost-aware")):
        result = esm_host("profile", "--run", run, "--resume", flag, value)
        assert_refused(result, 2, f"measured with {flag}", "another --run")


def test_an_exact_number_of_runs_and_a_precision_exclude_each_other(tmp_path: Path) -> None:
    for option in (("--precision", 1), ("--max-runs", 9)):
        refused = esm_host("profile", *QUICK, "--run", tmp_path / "r", *option)
        assert_refused(refused, 2, "--runs cannot be combined", "leave them out")


def test_a_precision_and_a_number_of_runs_are_named_as_they_were_given(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    tight = [*QUICK, "--run", tmp_path / "r"]
    tight[tight.index("--runs")] = "--max-runs"
    assert_refused(esm_host("profile", *tight, "--max-runs", 0), 2, "--max-runs 0 is outside")
    assert_refused(esm_host("profile", *tight, "--precision", 100), 2, "--precision 100:")
    esm_host("profile", *tight, "--target-accuracy", 1)
    again = ("profile", "--run", tmp_path / "r", "--resume")
    for options, words in (
        (("--runs", 7), "--max-runs 5, not --runs 7"),
        (("--runs", 5), "--precision 2, not --runs 5"),
        (("--precision", 3), "--precision 2, not --precision 3"),
    ):
        assert_refused(esm_host(*again, *options), 2, f"measured with {words}")


def test_a_warning_names_its_option_as_it_is_typed(fake: FakeProfiler, tmp_path: Path) -> None:
    shown = esm_host("profile", *QUICK, "--run", tmp_path / "r", "--target-accuracy", 1)
    assert "give a smaller --block-size" in shown.stderr
    assert "\0" not in shown.output


def test_the_cost_aware_extension_needs_bins(fake: FakeProfiler, tmp_path: Path) -> None:
    asked = ("profile", *QUICK, "--run", tmp_path / "r", "--extension", "cost-aware")
    assert_refused(esm_host(*asked, "--sampling", "random"), 2, "--sampling balanced")
    assert esm_host(*asked, "--target-accuracy", 100).exit_code == 3
    result = json.loads((tmp_path / "r/result.json").read_text())
    assert result["settings"]["extension"] == "cost-aware"
    assert result["measured_models"] == 30


def test_interrupted_in_its_first_block_it_offers_to_continue_only(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fake.answer

    def interrupted(*arguments):
        if len(fake.blocks) == 1:  # the probe
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(fake, "answer", interrupted)
    result = esm_host("profile", *QUICK, "--run", tmp_path / "r")
    assert result.exit_code == 130
    assert f"no model was measured yet: esm-host profile --run {tmp_path / 'r'} --resume" in (
        result.stderr
    )
    assert "--finish" not in result.stderr


def test_interrupted_it_keeps_what_it_has_and_resumes(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "r"
    answer = fake.answer

    def interrupted(*arguments):
        if len(fake.blocks) == 2:  # the probe and one block
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(fake, "answer", interrupted)
    result = esm_host("profile", *QUICK, "--run", run, "--target-accuracy", 1)
    assert result.exit_code == 130
    assert "--resume --finish" in result.stderr
    frame = load_run(run).measurements()
    assert len(frame) == 10
    assert set(frame["verdict"]) <= set(Verdict)
    page = tmp_path / "report.html"
    assert esm_host("report", run, "-o", page).exit_code == 0
    assert "10 architectures of" in page.read_text()

    def nobody(device: str) -> FakeProfiler:
        raise AssertionError("no device is needed")

    monkeypatch.setattr(devices, "connect", nobody)
    assert esm_host("profile", "--run", run, "--finish").exit_code == 2
    result = esm_host("profile", "--run", run, "--resume", "--finish", "--target-accuracy", 100)
    assert result.exit_code == 3, result.output
    assert "finished with 10 of 20 planned" in result.output
    assert json.loads((run / "result.json").read_text())["measured_models"] == 10
    assert esm_host("predict", run, "--sample", 2, "--interval", 90).exit_code == 0
    monkeypatch.undo()
    monkeypatch.setattr(devices, "connect", lambda device: fake)
    assert esm_host("profile", "--run", run, "--resume", "--target-accuracy", 1).exit_code == 0
    assert json.loads((run / "result.json").read_text())["measured_models"] == 20
    _probe, *blocks = fake.blocks
    keys = [model.model_id for block in blocks for model in block.models]
    assert len(keys) == 28
    assert len(set(keys)) == 24, "twenty models once, four references twice"


def test_an_own_space_from_a_file(fake: FakeProfiler, tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "own_spaces.py"
    run = tmp_path / "r"
    own = ["profile", "--space", f"{path}:PlainNet", "--run", run, *QUICK, "--target-accuracy", 1]
    assert esm_host(*own).exit_code == 0
    assert esm_host("predict", run, "--sample", 2).exit_code == 0


# Wrong input


def test_an_error_in_a_users_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("import esm_models\n\nwidth = 1 / 0\n")
    asked = ("profile", "--run", tmp_path / "r", "--space")
    assert_refused(esm_host(*asked, f"{path}:Own"), 2, "ZeroDivisionError", f"line 3 of {path}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "_debug", False)
        shown = esm_host("--debug", *asked, f"{path}:Own")
    assert "width = 1 / 0" in shown.stderr
    assert shown.stderr.splitlines()[-1].startswith("error: ")
    path = Path(__file__).parents[1] / "own_spaces.py"
    assert_refused(esm_host(*asked, path), 2, "name a class", f"{path}:Tiny")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--space", "resnett"], ["unknown search space", "did you mean 'resnet'"]),
        (["--space", "no/such/file.py:Space"], ["no file"]),
        (["--encoding", "fccc"], ["unknown encoding", "did you mean 'fcc'"]),
        (["--predictor", "rigde"], ["unknown predictor", "did you mean 'ridge'"]),
        (["--predictor", "lookup-bias"], ["needs a lookup table", "esm-host study"]),
        (["--predictor", "gcn", "--encoding", "fcc"], ["gcn", "encoding", "graph"]),
        (["--encoding", "path"], ["path", "resnet", "operation-one-hot"]),
        (["--bins", "26"], ["--bins 26", "1 to 25"]),
        (["--bins", "0"], ["--bins 0"]),
        (["--resolution", "8"], ["--resolution 8", "32"]),
        (["--width-mult", "0"], ["--width-mult"]),
        (["--batch", "0"], ["--batch"]),
        (["--dtype", "int4"], ["unknown dtype 'int4': did you mean 'int8'? choose float32, int8"]),
        (["--runs", "0"], ["--runs 0"]),
        (["--trim", "0.5"], ["--trim"]),
        (["--threads", "0"], ["--threads"]),
        (["--timeout", "0"], ["--timeout 0"]),
        (["--runs-per-visit", "0"], ["--runs-per-visit 0"]),
        (["--patience", "nan"], ["--patience"]),
        (["--ep", "cuda"], ["--ep: unknown execution provider 'cuda'", "cpu"]),
        (["--tf32"], ["--tf32 needs --ep cuda"]),
        (["--cuda-graph"], ["--cuda-graph needs --ep cuda"]),
        (["--block-size", "400"], ["--block-size 400", "256"]),
        (["--space", OWN_SPACE.replace("Tiny", "Broken")], ["cannot be built", "NameError"]),
        (["--space", OWN_SPACE.replace("Tiny", "Gaps"), "--bins", "4"], ["--bins 4", "fewer"]),
        (["--initial", "3"], ["--initial 3"]),
        (["--max-models", "5"], ["--max-models 5", "--initial"]),
        (["--target-accuracy", "101"], ["--target-accuracy 101"]),
        (["--weight-below", "0"], ["--weight-below"]),
        (["--initial", "30", "--bins", "1", "--space", OWN_SPACE], ["exceed the space's 27"]),
        (
            [
                *("--initial", "30", "--references", "30", "--bins", "1"),
                *("--space", OWN_SPACE, "--context", "batch=1,2"),
            ],
            ["exceed the space's 27 architectures in 2 contexts: give fewer"],
        ),
    ],
)
def test_impossible_requests_measure_nothing_and_make_no_folder(
    fake: FakeProfiler, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = esm_host("profile", *QUICK, *options, "--run", tmp_path / "r")
    assert_refused(result, 2, *words)
    assert fake.blocks == []
    assert not (tmp_path / "r").exists()


def test_an_unknown_device_names_the_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "devices.toml"
    monkeypatch.setenv("ESM_CONFIG", str(config))
    result = esm_host("profile", "--device", "pi5", "--run", tmp_path / "r")
    assert_refused(result, 2, "unknown device 'pi5'", str(config))
    config.write_text('[devices.pi4]\naddress = "127.0.0.1:1"\n')
    result = esm_host("profile", "--device", "pi5", "--run", tmp_path / "r")
    assert_refused(result, 2, "did you mean 'pi4'")
    result = esm_host("profile", "--device", "pi4", "--run", tmp_path / "r")
    assert_refused(result, 69, "127.0.0.1:1 (pi4)", "esm-agent serve")
    config.write_text("[devices\n")
    result = esm_host("profile", "--device", "pi4", "--run", tmp_path / "r")
    assert_refused(result, 2, f"ESM_CONFIG: {config} cannot be read")


@pytest.mark.parametrize(
    ("variable", "value", "arguments", "words"),
    [
        ("ESM_DEVICE", "pi5", ["time", "--example", "resnet18"], "unknown device 'pi5'"),
        ("ESM_DEVICE", "pi4,pi5", ["time", "--example", "resnet18"], "unknown device 'pi5'"),
        ("ESM_DEVICE", "pi5:0x7", ["profile"], "invalid address 'pi5:0x7'"),
        ("ESM_STORE", "nope", ["campaigns", "list"], "is not a URL"),
        ("ESM_STORE", "nope", ["profile"], "is not a URL"),
        ("ESM_AGENT_PROVIDERS", "x.py:Npu", ["devices", "info", "local"], "there is no file"),
    ],
)
def test_a_value_of_the_environment_is_named_by_its_variable(
    variable: str,
    value: str,
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tmp_path / "devices.toml"
    config.write_text('[devices.pi4]\naddress = "127.0.0.1:1"\n')
    monkeypatch.setenv("ESM_CONFIG", str(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    result = esm_host(*arguments)
    assert_refused(result, 2, variable, words)
    assert "--" not in result.stderr


def test_an_option_beside_a_variable_is_named_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESM_STORE", "postgresql://a@b/c")
    result = esm_host("campaigns", "list", "--store", "nope")
    assert_refused(result, 2, "--store is not a URL")


def test_an_agent_that_is_not_there_is_exit_code_69(tmp_path: Path) -> None:
    result = esm_host("profile", "--device", "127.0.0.1:1", "--run", tmp_path / "r")
    assert_refused(result, 69, "no agent answers at 127.0.0.1:1")
    assert not (tmp_path / "r").exists()


@contextmanager
def serving(servicer: profiler_pb2_grpc.ProfilerServicer | None) -> Iterator[str]:
    """The address of a gRPC server with that profiler, or with no service at all."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    if servicer is not None:
        profiler_pb2_grpc.add_ProfilerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


@pytest.mark.parametrize(
    ("version", "older"), [(PROTOCOL_VERSION + 1, "workstation"), (PROTOCOL_VERSION - 1, "device")]
)
def test_an_agent_of_another_version_says_what_to_upgrade(
    tmp_path: Path, version: int, older: str
) -> None:
    class Other(profiler_pb2_grpc.ProfilerServicer):
        def GetDeviceInfo(self, request, context):
            info = convert.device_info_to_pb(FakeProfiler(latency).device_info())
            info.protocol_version = version
            return info

    with serving(Other()) as address:
        result = esm_host("profile", "--device", address, "--run", tmp_path / "r")
    assert_refused(result, 1, f"upgrade esm-profiler on the {older}")


def test_a_service_that_is_no_agent_is_named_so(tmp_path: Path) -> None:
    with serving(None) as address:
        result = esm_host("profile", "--device", address, "--run", tmp_path / "r")
    assert_refused(result, 1, "is not an esm-agent of this version")


def test_a_folder_in_use_or_full_is_left_alone(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert esm_host("profile", *QUICK, "--run", run, "--target-accuracy", 1).exit_code == 0
    blocks = len(fake.blocks)
    assert_refused(esm_host("profile", *QUICK, "--run", run), 2, "--resume")
    from esm_host.campaign.folder import RunFolder

    with RunFolder(run).locked():
        result = esm_host("profile", "--run", run, "--resume", "--target-accuracy", 100)
        assert_refused(result, 75, "another esm-host is using")
    assert_refused(esm_host("profile", "--run", tmp_path / "no", "--resume"), 2, "no campaign")
    fake._hostname = "another"
    result = esm_host("profile", "--run", run, "--resume", "--target-accuracy", 100)
    assert_refused(result, 2, "measurements of another device", "another --run")
    assert len(fake.blocks) == blocks


def test_a_campaign_on_a_gpu_keeps_its_settings_and_its_gpu(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    fake.providers = provider_table(["cpu", "cuda"], ["H100"])
    run = tmp_path / "r"
    options = ["--ep", "cuda", "--tf32", "--target-accuracy", 1]
    assert esm_host("profile", *QUICK, *options, "--run", run).exit_code == 0
    assert {b.spec.execution for b in fake.blocks} == {("cuda", (("tf32", "1"),))}
    blocks = len(fake.blocks)
    resume = ["profile", "--run", run, "--resume"]
    assert esm_host(*resume, "--tf32").exit_code == 0
    result = esm_host(*resume, "--cuda-graph")
    words = "measured with --ep-option tf32=1, not --ep-option cuda_graph=1"
    assert_refused(result, 2, words, "another --run")
    assert esm_host(*resume, "--ep-option", "tf32=1").exit_code == 0
    assert_refused(esm_host(*resume, "--ep", "cpu"), 2, "--ep cuda, not --ep cpu")
    fake.providers = provider_table(["cpu", "cuda"], ["T4"])
    result = esm_host(*resume, "--target-accuracy", 100)
    assert_refused(result, 2, "another device (gpu H100 -> T4)")
    assert len(fake.blocks) == blocks


def test_a_campaign_from_before_visits_varied_goes_on(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert esm_host("profile", *QUICK, "--target-accuracy", 1, "--run", run).exit_code == 0
    settings = run / "settings.json"
    later = {"min_rounds", "short_visits"}

    def older(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: older(v) for k, v in value.items() if k not in later}
        return value

    settings.write_text(json.dumps(older(json.loads(settings.read_text()))))
    with closing(sqlite3.connect(run / "store.sqlite")) as store, store:
        for table, key, column in (("facts", "key", "value"), ("blocks", "block_id", "spec")):
            for name, text in store.execute(f"select {key}, {column} from {table}").fetchall():
                if not isinstance(text, str):
                    continue  # a number, as SQLite keeps it
                kept = json.dumps(older(json.loads(text)))
                store.execute(f"update {table} set {column} = ? where {key} = ?", (kept, name))
    again = esm_host("profile", "--run", run, "--resume", "--target-accuracy", 1)
    assert again.exit_code == 0, again.stderr


def test_a_campaign_from_before_providers_had_options_goes_on(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    fake.providers = provider_table(["cpu", "cuda"], ["H100"])
    run = tmp_path / "r"
    options = ["--ep", "cuda", "--tf32", "--target-accuracy", 1, "--run", run]
    assert esm_host("profile", *QUICK, *options).exit_code == 0
    settings = run / "settings.json"

    def older(value: dict) -> dict:
        own = value.pop("provider_options")
        return {**value, "tf32": own == {"tf32": "1"}, "cuda_graph": False}

    data = json.loads(settings.read_text())
    settings.write_text(json.dumps({**data, "spec": older(data["spec"])}))
    with closing(sqlite3.connect(run / "store.sqlite")) as store, store:
        ((text,),) = store.execute("select value from facts where key = 'campaign'").fetchall()
        kept = json.dumps(older(json.loads(text)))
        store.execute("update facts set value = ? where key = 'campaign'", (kept,))
    again = esm_host("profile", "--run", run, "--resume", "--target-accuracy", 1)
    assert again.exit_code == 0, again.stderr
    refused = esm_host("profile", "--run", run, "--resume", "--ep-option", "tf32=0")
    assert_refused(refused, 2, "measured with --ep-option tf32=1, not --ep-option tf32=0")


def test_a_campaign_keeps_its_session_settings(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    entry = ["--session-option", "session.set_denormal_as_zero=1"]
    options = ["--opt-level", "basic", *entry, "--target-accuracy", 1, "--run", run]
    assert esm_host("profile", *QUICK, *options).exit_code == 0
    told = {(b.spec.session.opt_level, *b.spec.session.session_options) for b in fake.blocks}
    assert told == {("basic", "session.set_denormal_as_zero")}
    again = ["profile", "--run", run, "--resume", "--target-accuracy", 1]
    assert esm_host(*again).exit_code == 0
    assert esm_host(*again, "--opt-level", "basic").exit_code == 0
    refused = esm_host(*again, "--opt-level", "all")
    assert_refused(refused, 2, "measured with --opt-level basic, not --opt-level all")
    refused = esm_host(*again, "--session-option", "session.x=1")
    assert_refused(refused, 2, "--session-option session.set_denormal_as_zero=1, not")


def test_a_campaign_from_before_session_settings_has_the_defaults(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    assert esm_host("profile", *QUICK, "--target-accuracy", 1, "--run", run).exit_code == 0
    names = ("opt_level", "execution_mode", "inter_op", "session_options", "free_dims")

    def older(value: dict) -> dict:
        return {name: each for name, each in value.items() if name not in names}

    settings = run / "settings.json"
    data = json.loads(settings.read_text())
    settings.write_text(json.dumps({**data, "spec": older(data["spec"])}))
    with closing(sqlite3.connect(run / "store.sqlite")) as store, store:
        ((text,),) = store.execute("select value from facts where key = 'campaign'").fetchall()
        assert older(json.loads(text)) != json.loads(text)
        kept = json.dumps(older(json.loads(text)))
        store.execute("update facts set value = ? where key = 'campaign'", (kept,))
    again = ["profile", "--run", run, "--resume", "--target-accuracy", 1]
    assert esm_host(*again).exit_code == 0
    refused = esm_host(*again, "--opt-level", "basic")
    assert_refused(refused, 2, "measured with --opt-level all, not --opt-level basic")


def test_a_store_refuses_other_session_settings(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    assert esm_host("profile", *QUICK, "--target-accuracy", 1, "--run", run).exit_code == 0
    settings = run / "settings.json"
    data = json.loads(settings.read_text())
    data["spec"]["opt_level"] = "basic"
    settings.write_text(json.dumps(data))
    resumed = esm_host("profile", "--run", run, "--resume", "--target-accuracy", 1)
    assert_refused(resumed, 2, "measured with other settings (opt_level)")


def test_a_dimension_that_the_space_lacks_is_refused(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    refused = esm_host("profile", *QUICK, "--free-dim", "N=1", "--run", run)
    assert_refused(refused, 2, "--free-dim: unknown dimension 'N'", "the inputs name none")
    assert fake.blocks == []


def test_numbers_of_more_threads_than_processors_say_so(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    options = ["--threads", 2, "--target-accuracy", 1, "--run", run]
    assert esm_host("profile", *QUICK, *options).exit_code == 0
    with closing(sqlite3.connect(run / "store.sqlite")) as store:
        reasons = {text for (text,) in store.execute("select reasons from verdicts")}
    assert reasons
    assert all("2 threads on 1 processor: give at most 1" in text for text in reasons)


def test_an_edited_own_space_is_noticed(fake: FakeProfiler, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(Path(OWN_SPACE.rpartition(":")[0]).read_text())
    run = tmp_path / "r"
    options = ["--initial", "10", "--max-models", "14", "--bins", "1", "--target-accuracy", "100"]
    options += ["--block-size", "4", "--runs", "5", "--resolution", "32", "--step", "4"]
    assert esm_host("profile", "--space", f"{path}:Tiny", *options, "--run", run).exit_code == 3
    path.write_text(path.read_text().replace("net.conv(x, 8", "net.conv(x, 16"))
    result = esm_host("profile", "--run", run, "--resume", "--max-models", 18)
    assert_refused(result, 2, "measured with other settings (graph)", "another --run")


def test_a_refused_resume_changes_nothing(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    esm_host("profile", *QUICK, "--run", run, "--target-accuracy", 1)
    before = (run / "settings.json").read_bytes()
    fake._hostname = "another"
    result = esm_host("profile", "--run", run, "--resume", "--device", "a:1", "--max-models", 40)
    assert_refused(result, 2, "measurements of another device")
    assert (run / "settings.json").read_bytes() == before


def test_a_missing_settings_file_does_not_open_the_store_to_others(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    run = tmp_path / "r"
    esm_host("profile", *QUICK, "--run", run, "--target-accuracy", 1)
    (run / "settings.json").unlink()
    assert_refused(esm_host("profile", *QUICK, "--run", run, "--resolution", 64), 2, "--run")


def test_a_raised_budget_alone_may_be_given(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    esm_host("profile", *QUICK, "--run", run, "--target-accuracy", 100)
    assert esm_host("profile", "--run", run, "--resume", "--max-models", 40).exit_code == 3
    assert json.loads((run / "result.json").read_text())["measured_models"] == 40


def test_a_corrupt_store_is_named_and_left_as_it_is(fake: FakeProfiler, tmp_path: Path) -> None:
    run = tmp_path / "r"
    esm_host("profile", *QUICK, "--run", run, "--target-accuracy", 1)
    (run / "store.sqlite").write_bytes(b"no database " * 1000)
    result = esm_host("profile", "--run", run, "--resume")
    assert_refused(result, 1, "not a usable store", "restore it from a copy")
    assert (run / "store.sqlite").read_bytes() == b"no database " * 1000


def test_a_space_that_no_runtime_takes_ends_with_the_runtimes_words(tmp_path: Path) -> None:
    space = OWN_SPACE.replace("Tiny", "Unknown")
    result = esm_host("profile", "--space", space, *QUICK, "--run", tmp_path / "r")
    assert_refused(result, 1, "unsupported_op", "NoSuchOperator")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            [],
            2,
            ["give one of ARCHITECTURE..., --architectures FILE, --sample N and --against DIR"],
        ),
        (["--sample", "2", "-a", "x.json"], 2, ["give one of"]),
        (["--sample", "2", "k3e1"], 2, ["give one of"]),
        (["k3e1 | k5e1 | k3e1 | k4e1"], 2, ["unit 4 has a block 'k4e1'"]),
        (["k3e1 | k5e1"], 2, ["4 units; the architecture has 2"]),
        (["k3e1 |: k5e1"], 2, ["short form", "k3e1 |: k5e1"]),
        (["-a", "missing.json"], 2, ["cannot read missing.json"]),
    ],
)
def test_predict_says_what_it_needs(
    finished: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    assert_refused(esm_host("predict", finished, *arguments), code, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["is not JSON"]),
        ("17", ["an architecture is written"]),
        ("[]", ["no architecture"]),
        ("[" * 100_000, ["is not JSON"]),
        ('{"space": "resnet"}', ["an architecture is written"]),
        (json.dumps(smallest(load_space("densenet")).to_json()), ["of space 'densenet'"]),
        (json.dumps(Architecture("resnet", (("k3e1",),) * 3).to_json()), ["4 units"]),
        (json.dumps(Architecture("resnet", (("k3e1",) * 9,) * 4).to_json()), ["9 blocks"]),
        (json.dumps(Architecture("resnet", (("k4e1",),) * 4).to_json()), ["'k4e1'", "k3e1/2"]),
    ],
)
def test_predict_refuses_architectures_outside_the_space(
    finished: Path, tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert_refused(esm_host("predict", finished, "-a", path), 2, *words)


def test_predict_without_a_campaign_or_predictor(finished: Path, tmp_path: Path) -> None:
    assert_refused(esm_host("predict", tmp_path, "--sample", 1), 2, "is not a campaign")
    (tmp_path / "settings.json").write_text((finished / "settings.json").read_text())
    assert_refused(esm_host("predict", tmp_path, "--sample", 1), 1, "no predictor yet")
    (tmp_path / "result.json").write_text((finished / "result.json").read_text())
    (tmp_path / "predictor.onnx").write_bytes(b"damaged")
    assert_refused(esm_host("predict", tmp_path, "--sample", 1), 1, "damaged", "--resume")
    (tmp_path / "settings.json").write_text("{")
    assert_refused(esm_host("predict", tmp_path, "--sample", 1), 1, "settings.json is damaged")


# Starting up


HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "grpc", "sqlalchemy", "rich"}
HEAVY |= {"zeroconf", "tomlkit", "pandas", "altair"}


def program(*arguments: str, **environment: str) -> tuple[list[str], set[str], int]:
    """esm-host as a process: lines of stdout, the modules that it loaded, and its exit code."""
    code = (
        "import sys; sys.argv[0] = 'esm-host'\n"
        "from esm_host.cli import main\n"
        "try: main()\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    env = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    return done.stdout.splitlines(), set(done.stderr.splitlines()[-1].split()), done.returncode


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("profile", "--help"),
        ("devices", "info", "--help"),
        ("import", "--help"),
        ("sources", "correlation", "--help"),
        ("campaigns", "list", "--help"),
    ],
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    lines, modules, code = program(*arguments)
    assert (code, modules & HEAVY) == (0, set())
    assert lines


def test_help_lists_all_commands_and_loads_none() -> None:
    lines, modules, _ = program("--help")
    shown = " ".join(" ".join(lines).split())
    for name, section, text in COMMANDS:
        assert f"{section}:" in lines
        assert f"{name} {text}" in shown
        assert f"esm_host.cli.{name}" not in modules


def test_the_listed_help_is_the_commands_own() -> None:
    for name, _, text in COMMANDS:
        assert load(name).get_short_help_str(limit=200) == text


@pytest.mark.parametrize("program_app", [app, agent_app], ids=["esm-host", "esm-agent"])
def test_every_command_shows_an_example(program_app: typer.Typer) -> None:
    group = typer.main.get_command(program_app)
    program_name = str(program_app.info.name)

    def without(command: Any, path: str) -> list[str]:
        if not hasattr(command, "commands"):
            return [] if f"Example: {path} " in " ".join(command.help.split()) + " " else [path]
        names = list(command.commands)
        each = [without(command.get_command(None, name), f"{path} {name}") for name in names]
        return [name for found in each for name in found]

    assert without(group, program_name) == []


@pytest.mark.parametrize("program_app", [app, agent_app])
def test_help_has_no_word_that_only_other_pages_define(program_app: typer.Typer) -> None:
    def texts(command: Any) -> Iterator[str]:
        yield command.help or ""
        yield from (getattr(param, "help", None) or "" for param in command.params)
        for name in getattr(command, "commands", ()):
            yield from texts(command.get_command(None, name))

    assert [text for text in texts(typer.main.get_command(program_app)) if "visit" in text] == []


def test_version_is_told() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("esm-host 0")
    assert CliRunner().invoke(agent_app, ["--version"]).stdout.startswith("esm-agent 0")


def test_without_arguments_it_shows_the_help() -> None:
    result = esm_host()
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "error:" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiem"], ["no such command 'tiem': did you mean 'time'?", "--help"]),
        (["devices", "doctr"], ["did you mean 'doctor'?", "devices --help"]),
        (
            ["time", "a.onnx", "--devise", "x"],
            ["no such option: --devise: did you mean '--device'"],
        ),
        (
            ["time", "a.onnx", "--cache", "cold"],
            ["no such option: --cache: it is an option of profile; see esm-host time --help"],
        ),
        (
            ["time", "a.onnx", "--protocol", "seqential"],
            ["--protocol", "did you mean 'sequential'"],
        ),
        (
            ["time", "a.onnx", "--protocol", "zzz"],
            ["is not one of 'interleaved', 'sequential': see"],
        ),
        (["time"], ["missing argument 'MODEL.onnx'", "time --help"]),
        (
            ["predict", "runs/z", "- | k3"],
            ["'- | k3' is read as an option: put -- before it, esm-host predict ... -- '- | k3'"],
        ),
        (
            ["time", "a.onnx", "--runs", "many"],
            ["--runs many: give a whole number: see", "time --help"],
        ),
        (["time", "a.onnx", "--trim=x"], ["--trim x: give a number: see"]),
        (["time", "a.onnx", "--profile-runs", "0"], ["--profile-runs 0: give 1 or more: see"]),
        (["time", "a.onnx", "--profile-runs", "9999"], ["--profile-runs 9999: give 1000 or less"]),
        (["time", "a.onnx", "--device", ""], ["--device '': give 'local', host:port or a name"]),
        (["time", "--example", "resnet18", "--device", "pi4,"], ["--device 'pi4,': give"]),
        (["time", "a.onnx", "--runs"], ["--runs", "requires an argument"]),
        (["report", "x", "y"], ["unexpected extra argument"]),
        (["profile", "--train-on", "stabel"], ["--train-on", "did you mean 'stable'"]),
        (["time", "--example", "resnt18"], ["unknown example 'resnt18': did you mean 'resnet18'?"]),
        (["profile", "--preset", "ems"], ["unknown preset 'ems': did you mean 'esm'?"]),
        (["profile", "--dtype", "int88"], ["unknown dtype 'int88': did you mean 'int8'?"]),
        (
            ["profile", "--space", OWN_SPACE + "y"],
            ["unknown search space class 'Tinyy'", "did you mean 'Tiny'?"],
        ),
        (
            ["export", "resnt", "-a", "[]", "-o", "x"],
            ["search space 'resnt': did you mean 'resnet'?"],
        ),
        (
            ["time", "--example", "resnet18", "--device", "127.0.0.1:1,pi5"],
            ["unknown device 'pi5'"],
        ),
    ],
)
def test_wrong_usage_is_one_line_with_the_nearest_right_word(
    arguments: list[str], words: list[str]
) -> None:
    result = esm_host(*arguments)
    assert_refused(result, 2, *words)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serv"], "did you mean 'serve'?"),
        (["serve", "--prot", "1"], "did you mean '--port'?"),
        (["serve", "--log-format", "jsn"], "did you mean 'json'?"),
        (["install-service", "--", "--prot", "1"], "did you mean '--port'?"),
        (["tokens", "revoke"], "missing argument 'name'"),
    ],
)
def test_the_agents_wrong_usage_likewise(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(agent_app, arguments)
    assert_refused(result, 2, words)
    assert len(result.stderr.splitlines()) == 1


# Completion, by the protocol that the shells' scripts speak


def completed(line: str, **environment: str) -> tuple[list[str], set[str]]:
    """What Bash offers at the end of this line, and the modules that it took."""
    words = line.split(" ")
    lines, modules, _ = program(
        _ESM_HOST_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        **environment,
    )
    return lines, modules


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("esm-host pr", ["profile", "predict"]),
        ("esm-host devices re", ["remove", "rename"]),
        ("esm-host time --device ", ["local", "pi-1", "pi-2"]),
        ("esm-host devices rename r", ["rack"]),
        ("esm-host devices group rack ", ["pi-1", "pi-2"]),
        ("esm-host profile --space m", ["mobilenetv3", "mobilenetv4"]),
        ("esm-host profile --encoding f", ["fcc", "fc", "feature"]),
        ("esm-host profile --predictor ml", ["mlp", "mlp-esm", "mlp-small", "mlp-large"]),
        (
            "esm-host profile --train-on stable,",
            ["stable,noisy", "stable,unresolved", "stable,throttled"],
        ),
        ("esm-host profile --judge ", ["bins", "overall"]),
        ("esm-host sources remove b", ["bench", "boards"]),
        ("esm-host sources correlation bench --target bo", ["boards"]),
        ("esm-host import x.csv --format h", ["help", "hw-nas-bench"]),
    ],
)
def test_shells_complete_names(line: str, offered: list[str], tmp_path: Path) -> None:
    config = tmp_path / "devices.toml"
    config.write_text(
        '[devices.pi-1]\naddress = "127.0.0.1:1"\n[devices.pi-2]\naddress = "127.0.0.1:2"\n'
        '[groups]\nrack = ["pi-1", "pi-2"]\n'
    )
    for name in ("boards", "bench"):
        (tmp_path / f"{name}.parquet").touch()
    lines, modules = completed(line, ESM_CONFIG=str(config), ESM_SOURCES=str(tmp_path))
    assert lines == offered
    assert modules & HEAVY == set()


def test_a_damaged_configuration_does_not_disturb_the_shell(tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text("[devices\n")
    lines, _ = completed("esm-host time --device ", ESM_CONFIG=str(tmp_path / "devices.toml"))
    assert lines == ["local"]


def test_what_shells_complete_is_what_there_is() -> None:
    assert set(SPACES) <= set(shared.space_names(""))
    assert set(ENCODERS) <= set(shared.encoding_names(""))
    assert set(SAMPLERS) <= set(shared.sampler_names(""))
    assert set(PREDICTORS) <= set(shared.predictor_names(""))
    assert set(METHODS) <= set(shared.search_methods(""))
    assert set(shared.VERDICTS) == set(Verdict)
    assert shared.DTYPES == DTYPES
