"""``esm-host time`` as users meet it: through a real agent, on a fake device, with wrong input."""

import csv
import gzip
import hashlib
import json
import lzma
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

import esm_host
from benchmarks.public_models import build
from esm_agent.serving.server import AgentServer
from esm_host.cli.app import app
from esm_host.cli.progress import DeviceLines
from esm_host.errors import UnreachableError
from esm_host.evaluation.verdict import missing_references_evidence
from esm_host.timing import timing_spec
from esm_host.transport import devices
from esm_host.transport.base import OnProgress
from esm_host.transport.fake import FakeProfiler
from esm_models.spaces import load_space
from esm_protos.messages import (
    Block,
    BlockResult,
    Case,
    DeviceInfo,
    DeviceState,
    Failure,
    FailureKind,
    File,
    Measurement,
    MeasureSpec,
    Model,
    Progress,
    RunOrder,
    State,
)
from esm_protos.older_peers import provider_table
from esm_protos.providers import ProviderInfo, ProviderOption
from esm_protos.session_settings import SessionSettings
from esm_protos.statistics import MIN_ROUNDS, trimmed_mean
from tests.helpers import smallest

LATENCY_MS = 2.0
((_, ALONE),) = missing_references_evidence(missing=True)
"""What is said of an agent of an older version, as the fake ones here are."""
BARE = b"\x08\x08\x3a\x00"
"""A model with an empty graph, for devices that do not look inside."""
OF_BAD = b"\x12\x03bad"
"""Makes a model one of a producer that the fake device refuses."""
ROOT = Path(__file__).parents[3]
KEY = re.compile(r"`(\w+)`")


def esm_host_time(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["time", *(str(argument) for argument in arguments)])


def rows_of(stdout: str) -> list[str]:
    """Without the lines under them: what was fed, and what was unusual."""
    return [line for line in stdout.splitlines() if not line.startswith("  ")]


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One line on stderr, the right exit code, nothing on stdout."""
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert result.stdout == ""


def fake_latency(model: Model) -> float | Failure:
    if isinstance(model.data, bytes) and model.data.endswith(b"bad"):
        return Failure(FailureKind.UNSUPPORTED_OP, "no such operator")
    batch = model.case.shapes[0][1][0] if model.case.shapes else 1
    return LATENCY_MS * batch / (model.case.threads or 1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    """Every device is this one."""
    profiler = FakeProfiler(fake_latency, noise=0.02, references=())
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    monkeypatch.delenv("ESM_DEVICE", raising=False)
    return profiler


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A real agent that several tests measure on."""
    server = AgentServer("127.0.0.1", 0)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture
def agent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real agent is the device of every timing that names none."""
    monkeypatch.setenv("ESM_DEVICE", address)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(BARE)
    return path


@pytest.fixture
def dynamic(tmp_path: Path) -> Path:
    """Takes ``x`` of Nx3xSxS."""
    path = tmp_path / "dynamic.onnx"
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, "S", "S"]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", values[:1], values[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), path)
    return path


# Through a real agent


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """With weights, without any, and none that a runtime takes."""
    folder = tmp_path_factory.mktemp("models")
    space = load_space("resnet", resolution=32, width_mult=0.25)
    contents = {
        "audio": build("audio"),
        "weightless": space.build(smallest(space)),
        "broken": BARE,
    }
    for name, data in contents.items():
        (folder / f"{name}.onnx").write_bytes(data)
    return [folder / f"{name}.onnx" for name in contents]


def documented(section: str) -> set[str]:
    """Keys of a table of docs/timing-json.md."""
    text = (ROOT / "docs" / "timing-json.md").read_text()
    table = text.partition(f"## {section}\n")[2].partition("\n#")[0]
    return {key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in KEY.findall(row)}


def test_json_has_the_documented_shape(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "timing.json"
    result = esm_host_time(*files, "--device", "local", "--runs", 41, "--json", out)
    assert result.exit_code == 1, "a model failed"
    lines = rows_of(result.stdout)
    assert lines[0].split()[:3] == ["model", "latency_ms", "p95_ms"]
    assert lines[3].split()[-1] == "invalid_model"
    assert f"all samples are in {out}" in result.stderr.splitlines()

    data = json.loads(out.read_text())
    assert (data["schema_version"], data["kind"]) == (3, "timing")
    assert (data["context"]["raw"], data["context"]["spread_s"]) == (False, 0)
    context = data["context"]
    assert context["spec"] == timing_spec(runs=41).to_json()
    assert context["created_at"].endswith("+00:00")
    device = context["devices"]["local"]
    assert device["info"]["runtime"].startswith("onnxruntime")
    assert device["busy_s"] > 0
    assert device["block_starts_s"] == [0]
    assert len(device["references"]) > 2
    for reference in device["references"]:
        assert len(reference["samples_ms"]) == len(reference["starts_ms"]) > 0
        assert min(reference["latency_ms"], reference["weight_bytes"]) > 0
    assert device["error"] is None
    audio, weightless, broken = data["results"]
    for entry in (audio, weightless):
        samples = np.array(entry["samples_ms"])
        assert len(samples) == len(entry["starts_ms"]) == entry["runs"] == 41
        latency_ms = entry["trimmed_mean_ms"]
        assert entry["raw_ms"] == pytest.approx(trimmed_mean(samples, 0.2))
        assert 0 < entry["block_ci95_percent"] < entry["ci95_percent"]
        assert sum(entry["session_runs"]) == 41
        assert entry["weight_bytes"] > 0
        (block,) = entry["blocks"]
        assert block.items() <= entry.items()
        assert entry["throughput_per_s"] == pytest.approx(1e3 / latency_ms)
        order = ("min_ms", "median_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
        assert [entry[name] for name in order] == sorted(entry[name] for name in order)
        low, high = entry["ci95_ms"]
        assert low < latency_ms < high
        assert math.log(high / latency_ms) == pytest.approx(entry["ci95_percent"] / 100)
        assert math.log(latency_ms / low) == pytest.approx(entry["ci95_percent"] / 100)
        assert min(entry["load_ms"], entry["first_run_ms"]) > 0
        assert (entry["status"], entry["failure"]) == ("success", None)
        assert entry["verdict"] in ("stable", "noisy", "unresolved", "throttled")
        assert bool(entry["warnings"]) == (entry["verdict"] != "stable")
    assert (broken["status"], broken["failure"]["kind"]) == ("failed", "invalid_model")
    assert broken["trimmed_mean_ms"] is broken["ci95_ms"] is broken["runs"] is None
    assert broken["samples_ms"] == broken["warnings"] == []
    (comparison,) = data["comparisons"]
    assert {comparison["of"], comparison["to"]} == {0, 1}
    slow, fast = (data["results"][comparison[end]]["trimmed_mean_ms"] for end in ("of", "to"))
    assert slow >= fast
    assert comparison["paired"]
    assert comparison["ci95"][0] < comparison["ratio"] < comparison["ci95"][1]

    assert data.keys() == documented("The whole")
    assert context.keys() == documented("`context`")
    assert device.keys() == documented("`context.devices`, by name")
    assert broken["blocks"] == []
    assert audio.keys() == broken.keys() == documented("`results`, one each")
    assert comparison.keys() == documented("`comparisons`, one each")


def test_an_unreachable_device_is_exit_code_69(model: Path) -> None:
    assert_refused(esm_host_time(model, "--device", "127.0.0.1:1"), 69, "esm-agent serve")


# On a fake device


def test_without_options_it_is_adaptive(fake: FakeProfiler, model: Path) -> None:
    assert esm_host_time(model).exit_code == 0
    (block,) = fake.blocks
    assert block.spec == timing_spec()
    assert block.spec == MeasureSpec(
        runs=100_000,
        runs_per_visit=4,
        warmup=10,
        precision=0.02,
        min_block_s=1.5,
        max_block_s=20.0,
        min_rounds=5,
        short_visits=True,
        references=True,
        sessions=2,
    )


def test_options_reach_the_device(fake: FakeProfiler, model: Path) -> None:
    options = "--runs 40 --protocol sequential --warmup 7 --trim 0.1 --threads 2 --timeout 9"
    options += " --load-timeout 900"
    assert esm_host_time(model, *options.split(), "--seed", 5).exit_code == 0
    assert fake.blocks[-1].spec == MeasureSpec(
        run_order=RunOrder.SEQUENTIAL,
        runs=40,
        runs_per_visit=4,
        warmup=7,
        trim=0.1,
        threads=2,
        model_timeout_s=9.0,
        load_timeout_s=900.0,
        seed=5,
    )
    limits = ["--precision", 5, "--max-runs", 500, "--max-time", 3]
    assert esm_host_time(model, *limits).exit_code == 0
    assert fake.blocks[-1].spec == timing_spec(None, 5, 500, 3)
    assert esm_host_time(model, "--sessions", 5).exit_code == 0
    assert fake.blocks[-1].spec == timing_spec(sessions=5)
    sequential = ("--protocol", "sequential", "--runs", 40, "--sessions")
    assert_refused(esm_host_time(model, *sequential, 2), 2, "sequential", "leave --sessions out")
    assert_refused(esm_host_time(model, "--runs", 4, "--sessions", 5), 2, "--sessions 5", "4 runs")
    assert_refused(esm_host_time(model, "--sessions", 101), 2, "--sessions 101", "1 to 100")
    assert esm_host_time(model, *sequential, 1).exit_code == 0


def test_too_wide_an_interval_is_exit_code_3(fake: FakeProfiler, model: Path) -> None:
    result = esm_host_time(model, "--precision", 0.001, "--max-runs", 60, "--json", "-")
    assert result.exit_code == 3
    assert f"{model}: unresolved: interval too wide" in result.stderr
    assert "requested ±0.001 %; more runs would help: give more --max-runs" in result.stderr
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["verdict"] == "unresolved"
    assert esm_host_time(model, "--precision", 90, "--max-runs", 60).exit_code == 0


@pytest.mark.parametrize("option", ["--runs", "--max-runs"])
@pytest.mark.parametrize(("count", "enough"), [(4, False), (5, True), (9, True), (20, True)])
def test_an_interval_takes_five_runs_exact_or_adaptive(
    fake: FakeProfiler, model: Path, option: str, count: int, enough: bool
) -> None:
    result = esm_host_time(model, option, count, "--precision", 50, "--json", "-")
    if option == "--runs":
        result = esm_host_time(model, option, count, "--json", "-")
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["runs"] == count
    assert (entry["ci95_percent"] is not None) is enough
    if not enough:
        assert entry["ci95_ms"] is None
        assert "too few runs for an interval, which needs 5 visits or more" in result.stderr
        assert result.exit_code == (3 if option == "--max-runs" else 0)


def test_more_threads_than_processors_are_a_warning_of_every_number(
    fake: FakeProfiler, model: Path
) -> None:
    result = esm_host_time(model, "--threads", "1,2", "--json", "-")
    one, two = json.loads(result.stdout)["results"]
    assert one["warnings"] == [ALONE]
    assert two["warnings"] == [ALONE, "2 threads on 1 processor: give at most 1"]
    assert two["verdict"] == "stable"
    assert "2 threads on 1 processor" in result.stderr
    assert result.exit_code == 0


def test_the_time_that_is_left_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("esm_host.cli.progress.time.monotonic", lambda: next(now))
    with DeviceLines(["pi4"], quiet=False) as told:
        for percent in (0, 10, 20, 30):
            told("pi4", Progress(State.MEASURING, percent / 100))
    assert capsys.readouterr().err.splitlines() == [
        "pi4: measuring",
        "pi4: measuring, at most 90 s left".replace("90 s", "2 min"),
    ]


def test_loading_that_takes_long_is_told_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 1000, 5))
    monkeypatch.setattr("esm_host.cli.progress.time.monotonic", lambda: next(now))
    with DeviceLines(["pi4"], quiet=False) as told:
        for _ in range(8):
            told("pi4", Progress(State.PREPARING, 0.0))
        told("pi4", Progress(State.MEASURING, 0.0))
    assert capsys.readouterr().err.splitlines() == [
        "pi4: preparing",
        "pi4: loading models, 30 s so far",
        "pi4: loading models, 60 s so far",
        "pi4: measuring",
    ]


@pytest.mark.parametrize(
    ("provider", "asked", "used", "why"),
    [
        (ProviderInfo("npu", chooses_threads=True), 1, 3.9, "see whether --ep-option can set it"),
        (ProviderInfo("npu", threads_option="cores"), 2, 2.6, "its option cores was set to 2"),
        (ProviderInfo("npu"), 2, 4.0, "it ignores the number that was asked for"),
        (ProviderInfo("npu", chooses_threads=True), 2, 2.4, ""),
        (ProviderInfo("npu"), 2, 0.0, ""),
    ],
)
def test_more_threads_than_asked_for_are_a_warning(
    fake: FakeProfiler,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    provider: ProviderInfo,
    asked: int,
    used: float,
    why: str,
) -> None:
    fake.providers = (ProviderInfo("cpu"), provider)
    answer = fake.answer

    def answered(*arguments: Any) -> BlockResult:
        block = answer(*arguments)
        measured = (replace(each, threads_used=used) for each in block.measurements)
        return replace(block, measurements=tuple(measured))

    monkeypatch.setattr(fake, "answer", answered)
    options = ("--runs", 30, "--ep", "npu", "--threads", asked)
    result = esm_host_time(model, *options, "--json", "-")
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["threads_used"] == (used or None)
    warned = f"npu used {used:.1f} threads, not {asked}: "
    assert (warned in result.stderr) is bool(why)
    assert why in result.stderr


def test_a_time_that_is_asked_for_is_kept(fake: FakeProfiler, model: Path) -> None:
    assert timing_spec().min_rounds == MIN_ROUNDS
    assert timing_spec(max_time_s=60).min_rounds == 0


def test_a_failed_model_does_not_hide_the_others(
    fake: FakeProfiler, model: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(BARE + OF_BAD)
    result = esm_host_time(bad, model, "--precision", 0.001)
    assert result.exit_code == 1
    assert f"warning: {bad}: unsupported_op: no such operator" in result.stderr
    _, first, second = rows_of(result.stdout)
    assert first.split() == [bad.name, "unsupported_op"] or first.split()[1:] == ["unsupported_op"]
    assert float(second.split()[1]) == pytest.approx(LATENCY_MS, rel=0.02)
    assert esm_host_time(bad, "-q").stdout.splitlines()[1].split()[1:] == ["unsupported_op"]


def test_models_whose_names_end_alike_are_told_apart(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [Path(name, *["folder"] * 12, "model.onnx") for name in ("before", "after")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(BARE)
    _, first, second = rows_of(esm_host_time(*paths, "--runs", 30).stdout)
    assert first.startswith("before/")
    assert second.startswith("after/")


def test_states_of_the_device_are_kept(
    fake: FakeProfiler, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    answer = fake.answer
    states = (DeviceState(at_ns=-1, clock_mhz=(1500.0,)), DeviceState(at_ns=5))
    monkeypatch.setattr(
        fake, "answer", lambda *arguments: replace(answer(*arguments), states=states)
    )
    data = json.loads(esm_host_time(model, "--runs", 30, "--json", "-").stdout)
    assert data["context"]["devices"]["local"]["states"] == [
        {"at_ns": -1, "clock_mhz": [1500.0]},
        {"at_ns": 5},
    ]


def test_models_enough_tell_the_pace_and_it_is_divided_out(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is three times as slow in the end; five models agree that it was the device."""
    from dataclasses import replace

    paths = [tmp_path / f"{index}.onnx" for index in range(5)]
    for path in paths:
        path.write_bytes(BARE)
    samples = np.where(np.arange(90) < 50, 1_000_000, 3_000_000).astype(np.int64)
    answer = fake.answer

    def measured(*arguments):
        result = answer(*arguments)
        starts = np.arange(90) * 10_000_000
        return replace(
            result,
            measurements=tuple(
                Measurement(m.model_id, samples, starts + index * 1_000)
                for index, m in enumerate(result.measurements)
            ),
        )

    monkeypatch.setattr(fake, "answer", measured)
    data = json.loads(esm_host_time(*paths, "--runs", 90, "--json", "-").stdout)
    for entry in data["results"]:
        assert entry["trimmed_mean_ms"] == pytest.approx(1.0)
        assert entry["verdict"] == "noisy"
        assert entry["warnings"] == ["the device became 200 % slower during the block", ALONE]
    said = esm_host_time(*paths, "--runs", 90, "--quiet").stderr
    (line,) = said.splitlines()
    assert line.startswith(
        f"warning: {paths[0]} and 4 more: noisy: the device became 200 % slower during the block"
    ), "what is true of all models is said once"
    assert ALONE in line


# Cases


def test_a_sweep_is_one_block_of_all_cases(fake: FakeProfiler, dynamic: Path) -> None:
    options = ["--batch", "1,8", "--threads", "1,2", "--shape", "Nx3x16x16", "--runs", 40]
    result = esm_host_time(dynamic, *options, "--json", "-")
    assert result.exit_code == 0, result.stderr
    (block,) = fake.blocks
    assert [(m.case.shapes, m.case.threads) for m in block.models] == [
        ((("x", (batch, 3, 16, 16)),), threads) for batch in (1, 8) for threads in (1, 2)
    ]
    assert len({m.model_id for m in block.models}) == 4
    assert (block.spec.threads, block.peak_memory, block.profile_runs) == (1, True, 0)
    data = json.loads(result.stdout)
    assert [entry["case"] for entry in data["results"]] == [
        {
            "batch": batch,
            "dims": {},
            "threads": threads,
            "provider": None,
            "shapes": {"x": [batch, 3, 16, 16]},
            "inputs_sha256": None,
        }
        for batch in (1, 8)
        for threads in (1, 2)
    ]
    of_8 = data["results"][2]
    assert of_8["inputs"] == [{"name": "x", "type": "float32", "dims": [8, 3, 16, 16]}]
    assert of_8["throughput_per_s"] == pytest.approx(8e3 / of_8["trimmed_mean_ms"])
    assert of_8["peak_rss_bytes"] > 0
    assert [(c["of"], c["to"], c["different"]) for c in data["comparisons"]] == [
        (number, 1, True) for number in (0, 2, 3)
    ]
    ratios = [c["ratio"] for c in data["comparisons"]]
    assert ratios == pytest.approx([2, 16, 8], rel=0.05)


def test_without_cases_nothing_is_said_of_them(fake: FakeProfiler, dynamic: Path) -> None:
    assert esm_host_time(dynamic, "--runs", 30, "--threads", 4).exit_code == 0
    (block,) = fake.blocks
    assert block.models[0].case == Case()
    assert block.models[0].model_id == str(dynamic)
    assert block.spec.threads == 4


def test_every_result_says_what_it_was_fed(agent: None, dynamic: Path, tmp_path: Path) -> None:
    """By a real agent: in the table, in JSON, in CSV; and what was assumed."""
    out, rows = tmp_path / "timing.json", tmp_path / "timing.csv"
    result = esm_host_time(dynamic, "--runs", 48, "--json", out, "--csv", rows)
    assert "\n  fed x 1x3x1x1 float32 · 1 thread · cpu\n" in result.stdout
    warning = (
        "no size is given for N and S of x:Nx3xSxS: taken as 1; set N by --batch, S by --dim S=SIZE"
    )
    assert f"warning: {dynamic}: {warning}" in result.stderr.splitlines()
    (entry,) = json.loads(out.read_text())["results"]
    assert entry["inputs"] == [{"name": "x", "type": "float32", "dims": [1, 3, 1, 1]}]
    assert [(each["axis"], each["symbol"]) for each in entry["assumed"]] == [
        (0, "N"),
        (2, "S"),
        (3, "S"),
    ]
    assert entry["warnings"][-1] == warning
    (row,) = csv.DictReader(rows.read_text().splitlines())
    assert (row["inputs"], row["input_types"]) == ("x:1x3x1x1", "x:float32")
    assert row["assumed"] == "x:0 x:2 x:3"
    result = esm_host_time(dynamic, "--runs", 48, "--dim", "N=2", "--shape", "x:Nx3x8x4")
    assert "fed x 2x3x8x4 float32" in result.stdout
    assert "no size is given" not in result.stderr


def test_sizes_of_a_symbol_make_cases(fake: FakeProfiler, dynamic: Path, tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.onnx"
    fixed.write_bytes(BARE)
    options = ["--dim", "S=8,16", "--dim", "N=1,4", "--runs", 40]
    result = esm_host_time(dynamic, fixed, *options, "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert "no size is given" not in result.stderr
    data = json.loads(result.stdout)
    sweep = [{"S": size, "N": batch} for size in (8, 16) for batch in (1, 4)]
    assert [entry["case"]["dims"] for entry in data["results"]] == [*sweep, {}]
    assert [entry["case"]["shapes"] for entry in data["results"]][:-1] == [
        {"x": [dims["N"], 3, dims["S"], dims["S"]]} for dims in sweep
    ]
    of_4 = data["results"][1]
    assert of_4["items_per_inference"] == 4
    assert of_4["throughput_per_s"] == pytest.approx(4e3 / of_4["trimmed_mean_ms"])
    heading, first, *_ = rows_of(esm_host_time(dynamic, *options).stdout)
    assert heading.split()[:2] == ["model", "dims"]
    assert first.split()[1:3] == ["S=8", "N=1"]


def test_symbols_that_nothing_has_are_refused(fake: FakeProfiler, dynamic: Path) -> None:
    refused = [
        (["--dim", "s=8"], "did you mean 'S'? the inputs name 'N', 'S'"),
        (["--dim", "S"], "--dim S: give NAME=SIZE"),
        (["--dim", "S=8", "--dim", "S=9"], "has a size already"),
        (["--dim", "N=2", "--batch", "4"], "--batch 4 sets nothing"),
        (["--dim", "S=2", "--shape", "1x3x8x8"], "--dim S=2 sets nothing"),
    ]
    for options, words in refused:
        assert_refused(esm_host_time(dynamic, *options), 2, words)
    assert fake.blocks == []


def test_dimensions_of_one_symbol_may_differ(agent: None, dynamic: Path) -> None:
    """As published classifiers declare it and ONNX Runtime runs it, through a real agent."""
    result = esm_host_time(dynamic, "--shape", "1x3x48x192", "--runs", 48, "-q")
    assert result.exit_code == 0, result.stderr
    assert "fed x 1x3x48x192 float32" in result.stdout


def test_a_failure_with_a_batch_keeps_the_advice(fake: FakeProfiler, dynamic: Path) -> None:
    dynamic.write_bytes(dynamic.read_bytes() + OF_BAD)
    result = esm_host_time(dynamic, "--batch", 2)
    assert result.exit_code == 1
    assert "no size is given for S of x:Nx3xSxS: taken as 1; set S by --dim S=SIZE" in result.stderr


def test_results_are_printed_where_their_file_cannot_be_written(
    fake: FakeProfiler, model: Path
) -> None:
    result = esm_host_time(model, "--runs", 40, "--json", "/dev/full")
    assert result.exit_code == 1
    assert "latency_ms" in result.stdout
    assert "error: /dev/full: No space left on device" in result.stderr


def test_inputs_from_a_file_are_sent_along(
    fake: FakeProfiler, dynamic: Path, tmp_path: Path
) -> None:
    path = tmp_path / "inputs.npz"
    np.savez(path, x=np.zeros((2, 3, 4, 4), np.float32))
    result = esm_host_time(dynamic, "--input", path, "--runs", 30, "--json", "-")
    (entry,) = json.loads(result.stdout)["results"]
    digest = hashlib.sha256(path.read_bytes())
    assert entry["case"]["inputs_sha256"] == digest.hexdigest()
    (sent,) = fake.blocks[0].models
    assert sent.case.inputs == File(digest.digest(), path.stat().st_size)
    np.savez(path, y=np.zeros(1, np.float32))
    refused = esm_host_time(dynamic, "--input", path)
    assert_refused(refused, 2, "unknown input 'y'", "the model takes 'x'")


def test_large_models_and_weights_beside_them_go_to_the_cache(
    fake: FakeProfiler, tmp_path: Path
) -> None:
    alone, apart = tmp_path / "alone.onnx", tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    alone.write_bytes(build("plain"))
    graph = onnx.load_from_string(build("mlp"))
    onnx.save(graph, apart, save_as_external_data=True, location="model.data", size_threshold=0)
    result = esm_host_time(alone, apart, "--runs", 30, "--json", "-")
    assert "local: uploading" in result.stderr.splitlines()
    first, second = fake.blocks[0].models
    assert isinstance(first.data, File)
    assert first.data.sha256 == hashlib.sha256(alone.read_bytes()).digest()
    assert isinstance(second.data, bytes)
    data = apart.parent / "model.data"
    digest = hashlib.sha256(data.read_bytes())
    assert second.external == (("model.data", File(digest.digest(), data.stat().st_size)),)
    entry = json.loads(result.stdout)["results"][1]
    assert entry["external"] == {"model.data": digest.hexdigest()}

    fake._cache_bytes = 0
    assert_refused(esm_host_time(alone, "-q"), 2, "esm-agent serve --cache DIR --cache-size")
    data.unlink()
    assert_refused(esm_host_time(apart), 2, str(data), "put that file beside the model")


@pytest.mark.parametrize("location", ["../model.data", "/etc/passwd", "link/model.data"])
def test_weights_outside_of_the_models_folder_are_refused(
    fake: FakeProfiler, tmp_path: Path, location: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (tmp_path / "model.data").write_bytes(bytes(16))
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    graph = helper.make_graph([], "g", [], [], [weight])
    (folder / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert_refused(esm_host_time(folder / "m.onnx"), 2, location, "not in its folder")
    assert fake.blocks == []


# Several devices


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeProfiler]:
    """Two devices, and one that does not answer; every other name is unknown."""

    class Gone(FakeProfiler):
        def device_info(self) -> DeviceInfo:
            raise UnreachableError("no agent answers at gone")

    fleet = {
        "slow": FakeProfiler(
            lambda model: 3 * LATENCY_MS, noise=0.01, hostname="slow", references=()
        ),
        "fast": FakeProfiler(lambda model: LATENCY_MS, noise=0.01, hostname="fast", references=()),
        "gone": Gone(fake_latency),
    }
    monkeypatch.setattr(devices, "connect", fleet.__getitem__)
    return fleet


def test_devices_are_measured_each_and_compared(
    fleet: dict[str, FakeProfiler], model: Path
) -> None:
    options = ["--device", "slow", "--device", "fast", "--runs", 60]
    data = json.loads(esm_host_time(model, *options, "--json", "-").stdout)
    assert [entry["device"] for entry in data["results"]] == ["slow", "fast"]
    assert list(data["context"]["devices"]) == ["slow", "fast"]
    assert data["context"]["devices"]["fast"]["info"]["hostname"] == "fast"
    (comparison,) = data["comparisons"]
    assert (comparison["scope"], comparison["device"]) == ("devices", "slow")
    assert (comparison["of"], comparison["to"], comparison["paired"]) == (0, 1, False)
    assert comparison["ratio"] == pytest.approx(3, rel=0.02)
    lines = esm_host_time(model, *options).stdout.splitlines()
    assert lines[0] == "slow:"
    assert "fast:" in lines
    shown = re.search(r"slow +(\d\.\d\d)x ± 0\.0\d$", lines[-1])
    assert shown is not None
    assert float(shown[1]) == pytest.approx(3, rel=0.02)


def test_two_names_of_one_agent_are_refused_before_measuring(
    address: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = address.rpartition(":")[2]
    config = tmp_path / "devices.toml"
    hosts = {"pi4": "127.0.0.1", "vm": "localhost"}
    config.write_text(
        "".join(f'[devices.{n}]\naddress = "{h}:{port}"\n' for n, h in hosts.items())
        + '[groups]\nboth = ["pi4", "vm"]\n'
    )
    monkeypatch.setenv("ESM_CONFIG", str(config))
    same = "pi4 and vm are the same agent: give one of them"
    both = esm_host_time(model, "--device", "pi4", "--device", "vm", "--runs", 30)
    assert both.exit_code == 2, both.output
    assert (both.stdout, both.stderr.splitlines()[-1]) == ("", f"error: {same}")
    profiled = CliRunner().invoke(
        app, ["profile", "--space", "resnet", "--device", "both", "--run", str(tmp_path / "r")]
    )
    assert_refused(profiled, 2, f"error: {same}")


def test_a_device_that_fails_does_not_lose_the_others(
    fleet: dict[str, FakeProfiler], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESM_DEVICE", "gone,slow fast")
    result = esm_host_time(model, "--runs", 30, "--json", "-")
    assert result.exit_code == 1
    assert "warning: gone: no agent answers at gone" in result.stderr
    data = json.loads(result.stdout)
    assert [entry["device"] for entry in data["results"]] == ["slow", "fast"]
    gone = data["context"]["devices"]["gone"]
    assert {name: value for name, value in gone.items() if value} == {
        "error": "no agent answers at gone"
    }
    assert_refused(esm_host_time(model, "--device", "gone"), 69, "no agent answers")
    assert_refused(esm_host_time(model, "--device", "slow,slow"), 2, "give each device once")


def test_a_bug_is_not_taken_for_a_device_that_fails(
    fleet: dict[str, FakeProfiler], model: Path
) -> None:
    fleet["slow"]._latency = lambda model: 1 / 0
    result = esm_host_time(model, "--device", "slow,fast", "--runs", 30)
    assert isinstance(result.exception, ZeroDivisionError)


def test_progress_is_a_few_lines_where_nobody_watches(
    fleet: dict[str, FakeProfiler], model: Path
) -> None:
    options = ["--device", "slow", "--device", "fast", "--runs", 60]
    said = esm_host_time(model, *options).stderr.splitlines()
    progress = [line for line in said if ALONE not in line]
    assert sorted(progress) == ["fast: measuring", "slow: measuring"]
    quiet = esm_host_time(model, *options, "--quiet").stderr.splitlines()
    assert [line for line in quiet if ALONE not in line] == []


# What is shown


def test_the_table_says_which_is_fastest_and_what_is_noise(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of noise drawn anew, one time in twenty would be taken for a difference.
    drawn = np.random.default_rng
    monkeypatch.setattr("esm_host.transport.fake.np.random.default_rng", lambda seed: drawn(0))
    latencies = {"quick": 1.0, "quick-as-well": 1.0, "slow": 1.3}
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    for name, latency in latencies.items():
        (folder / f"{name}.onnx").write_bytes(BARE + b"\x12\x03" + f"{latency}".encode())
    fake._latency = lambda model: float(model.data[-3:])
    fake._noise = 0.05
    paths = sorted(folder.iterdir())
    result = esm_host_time(*paths, "--runs", 200)
    heading, *rows = rows_of(result.stdout)
    assert heading.split()[-1] == "against"
    said = {row.split()[0]: row for row in rows}
    assert said.keys() == {path.name for path in paths}, "folders are left out where it is narrow"
    quick = sorted(row.rstrip()[-17:].strip() for name, row in said.items() if "quick" in name)
    assert quick[-1] == "same within noise"
    assert quick[0].split()[-1] == "fastest"
    assert re.search(r"1\.(29|30|31)x ± 0\.0\d$", said["slow.onnx"])
    assert max(map(len, result.stdout.splitlines())) <= 100
    wide = esm_host_time(*paths, "--runs", 200, "--wide").stdout.splitlines()
    for name in ("median_ms", "min_ms", "max_ms", "p90_ms", "p99_ms", "runs", "first_ms"):
        assert name in wide[0].split()
    assert str(paths[0]) in wide[1]


def test_the_table_of_a_sweep_fits_a_terminal(fake: FakeProfiler, dynamic: Path) -> None:
    result = esm_host_time(dynamic, "--batch", "1,1024", "--threads", "1,8", "--runs", 40)
    heading, *rows = rows_of(result.stdout)
    assert heading.split()[1:3] == ["batch", "threads"]
    assert [row.split()[1:3] for row in rows] == [
        [batch, threads] for batch in ("1", "1024") for threads in ("1", "8")
    ]
    assert max(map(len, (heading, *rows))) <= 100


def test_profiles_say_where_the_time_goes(fake: FakeProfiler, model: Path) -> None:
    options = ["--runs", 30, "--profile", "--profile-runs", 7]
    lines = esm_host_time(model, *options).stdout.splitlines()
    begin = lines.index(f"{model}: 7 profiled runs") + 1
    assert lines[begin].startswith("  fed ")
    assert [line.split() for line in lines[begin + 1 : begin + 4]] == [
        ["operator", "calls", "ms", "share"],
        ["Conv", "2", "1.5000", "75", "%"],
        ["Gemm", "1", "0.5000", "25", "%"],
    ]
    assert [line.split()[0] for line in lines[begin + 4 :]] == ["node", "conv2", "conv1", "gemm"]
    assert fake.blocks[-1].profile_runs == 7
    (entry,) = json.loads(esm_host_time(model, *options, "--json", "-").stdout)["results"]
    assert entry["profile"]["operators"][0] == {
        "op_type": "Conv",
        "provider": "CPUExecutionProvider",
        "calls": 2,
        "ms": 1.5,
    }
    assert entry["profile"]["nodes"][0]["name"] == "conv2"


def test_csv_has_a_line_per_result(fake: FakeProfiler, dynamic: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(dynamic.read_bytes() + OF_BAD)
    result = esm_host_time(dynamic, bad, "--batch", "1,8", "--runs", 40, "--csv", "-", "-q")
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [(row["model"], row["batch"], row["status"]) for row in rows] == [
        (str(dynamic), "1", "success"),
        (str(dynamic), "8", "success"),
        (str(bad), "1", "failed"),
        (str(bad), "8", "failed"),
    ]
    low, middle, high = (
        float(rows[1][name]) for name in ("ci95_low_ms", "trimmed_mean_ms", "ci95_high_ms")
    )
    assert low < middle < high
    assert rows[2]["trimmed_mean_ms"] == ""
    assert rows[2]["failure"] == "unsupported_op"


# On a GPU


def test_what_a_gpu_adds_is_shown_where_it_is_there(fake: FakeProfiler, model: Path) -> None:
    result = esm_host_time(model, "--runs", 30, "--json", "-")
    (entry,) = json.loads(result.stdout)["results"]
    assert (entry["provider"], entry["copy_in_ms"], entry["copy_out_ms"]) == ("cpu", None, None)
    assert (entry["ran_on"], entry["fallback"]) == ({}, [])
    assert "copy_in_ms" not in esm_host_time(model, "--runs", 30, "--wide").stdout

    fake.providers = provider_table(["cpu", "cuda"], ["a GPU"])
    options = ["--runs", 30, "--ep", "cuda", "--tf32", "--cuda-graph"]
    (entry,) = json.loads(esm_host_time(model, *options, "--json", "-").stdout)["results"]
    assert (entry["provider"], entry["copy_in_ms"], entry["copy_out_ms"]) == ("cuda", 0.02, 0.01)
    assert entry["ran_on"] == {"CUDAExecutionProvider": 5, "CPUExecutionProvider": 1}
    spec = fake.blocks[-1].spec
    assert (spec.provider, spec.provider_options) == ("cuda", {"tf32": "1", "cuda_graph": "1"})
    assert not spec.allow_fallback
    heading, row = rows_of(esm_host_time(model, *options, "--wide").stdout)
    cells = dict(zip(heading.split()[1:], row.replace(" ±", "±").split()[1:], strict=False))
    assert (cells["copy_in_ms"], cells["copy_out_ms"]) == ("0.0200", "0.0100")
    result = esm_host_time(model, *options, "--allow-fallback", "--wide")
    assert "fallback" in result.stdout.splitlines()[0]
    assert "1 of 6 nodes ran on another provider: resize" in result.stderr
    csv_text = esm_host_time(model, *options, "--allow-fallback", "--csv", "-", "-q").stdout
    (line,) = csv.DictReader(csv_text.splitlines())
    assert line["ran_on"] == "CUDAExecutionProvider=5 CPUExecutionProvider=1"
    assert line["fallback"] == "resize"


def test_a_failure_names_the_option_that_helps(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = Failure(
        FailureKind.TIMEOUT, "loading took longer than 1 s: give a longer load timeout"
    )
    fake = FakeProfiler(lambda model: failure, references=())
    monkeypatch.setattr(devices, "connect", lambda device: fake)
    told = esm_host_time(model, "--runs", 30, "--json", "-")
    assert "give a longer --load-timeout" in told.stderr
    (entry,) = json.loads(told.stdout)["results"]
    assert entry["failure"]["message"].endswith("give a longer --load-timeout")


def test_a_provider_that_chooses_its_threads_is_said_to(fake: FakeProfiler, model: Path) -> None:
    npu = ProviderInfo("npu", "NpuExecutionProvider", chooses_threads=True)
    fake.providers = (ProviderInfo("cpu"), npu)
    told = esm_host_time(model, "--runs", 30, "--ep", "npu", "--threads", 4)
    assert "threads: as the provider chooses · npu" in told.stdout
    assert "4 threads on 1 processor" not in told.stderr
    for name in ("cpu", "npu"):
        result = esm_host_time(model, "--runs", 30, "--ep", name, "--json", "-")
        (entry,) = json.loads(result.stdout)["results"]
        assert entry["own_threads"] == (name == "npu")


# Wrong input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--runs", "9", "--precision", "1"], ["--runs", "leave --precision out"]),
        (["--runs", "9", "--max-runs", "10"], ["--runs", "leave --max-runs out"]),
        (["--runs", "9", "--max-time", "10"], ["--runs", "leave --max-time out"]),
        (["--protocol", "sequential"], ["--protocol sequential", "give --runs"]),
        (["--runs", "0"], ["--runs 0", "1 to"]),
        (["--max-runs", "0"], ["--max-runs 0", "1 to"]),
        (["--max-time", "0"], ["--max-time 0"]),
        (["--max-time", "nan"], ["--max-time nan"]),
        (["--max-time", "1e9"], ["--max-time 1e+09", "86400"]),
        (["--precision", "0"], ["--precision 0"]),
        (["--precision", "100"], ["--precision 100"]),
        (["--precision", "nan"], ["--precision nan"]),
        (["--trim", "0.5"], ["--trim 0.5"]),
        (["--warmup", "-1"], ["--warmup -1"]),
        (["--threads", "0"], ["--threads 0"]),
        (["--timeout", "0"], ["--timeout 0"]),
        (["--load-timeout", "0"], ["--load-timeout 0"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--ep", "cuda"], ["--ep: unknown execution provider 'cuda' on the device", "choose cpu"]),
        (["--tf32"], ["--tf32 needs --ep cuda"]),
        (["--allow-fallback"], ["--allow-fallback has no effect with --ep cpu"]),
        (
            ["--ep-option", "x=1"],
            ["--ep-option x=1", "unknown option 'x' of the provider cpu: it has none"],
        ),
        (["--ep-option", "x"], ["--ep-option x: give KEY=VALUE"]),
        (["--ep-option", "x=1", "--ep-option", "x=1"], ["--ep-option x=1: x is given twice"]),
        (["--json", "no/such/folder/out.json"], ["--json", "no folder no/such/folder"]),
        (["--json", "/"], ["--json / is a folder"]),
        (["--csv", "/"], ["--csv / is a folder"]),
        (["--profile-runs", "5"], ["--profile-runs 5 has no effect without --profile: add it"]),
        (["--energy-time", "20"], ["--energy-time 20 has no effect without --energy: add it"]),
        (["--csv", "-", "--json", "-"], ["--json - and --csv -"]),
        (["--threads", "1,two"], ["--threads 1,two", "whole numbers"]),
        (["--threads", "1,1"], ["--threads 1,1", "each once"]),
        (["--threads", "1,2000"], ["--threads 2000", "1024"]),
        (["--batch", "0"], ["--batch 0", "1 to"]),
        (["--batch", "8"], ["--batch 8", "no input whose first dimension is free"]),
        (["--shape", "x"], ["--shape x", "NAME:1x3x224x224"]),
        (["--shape", "x:1"], ["--shape x:1", "unknown input 'x'"]),
        (["--input", "no.npz"], ["cannot read no.npz"]),
    ],
)
def test_impossible_requests_measure_nothing(
    fake: FakeProfiler, model: Path, options: list[str], words: list[str]
) -> None:
    assert_refused(esm_host_time(model, *options), 2, *words)
    assert fake.blocks == []


def test_files_that_cannot_be_timed(fake: FakeProfiler, model: Path, tmp_path: Path) -> None:
    assert_refused(esm_host_time(tmp_path / "no.onnx"), 2, "cannot read", "no.onnx", "No such")
    assert_refused(esm_host_time(tmp_path), 2, "is a folder: give a file, such as", model.name)
    again = tmp_path / "." / "sub" / ".." / model.name
    (tmp_path / "sub").mkdir()
    assert_refused(esm_host_time(model, again), 2, "given twice")
    assert esm_host_time().exit_code == 2
    assert fake.blocks == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "model.pt",
            "is not an ONNX file: export it with torch.onnx.export(model, args, 'model.onnx', "
            "dynamo=True)",
        ),
        ("model.tflite", "tf2onnx.convert --tflite"),
        ("model.pb", "tf2onnx.convert --saved-model"),
        ("model.keras", "tf2onnx"),
        ("model.engine", "give the ONNX file that it was built from"),
        ("model.bin", "is a zip archive: unpack it with"),
    ],
)
def test_other_formats_are_told_how_to_become_onnx(
    fake: FakeProfiler, dynamic: Path, name: str, words: str
) -> None:
    path = dynamic.parent / name
    path.write_bytes(b"PK\x03\x04 something else")
    assert_refused(esm_host_time(path), 2, str(path), words)
    # What is in it counts, not what it is called.
    path.write_bytes(dynamic.read_bytes())
    assert esm_host_time(path, "--runs", 30).exit_code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull --include"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "is a web page: the download failed"),
        (
            b"PK\x03\x04" + bytes(26) + b"archive/data.pkl",
            "is a PyTorch file: export it with torch.onnx.export(",
        ),
        (b"\x80\x02\x8a\nl\xfc", "is a Python pickle: export it with"),
        (gzip.compress(BARE, mtime=0), "is compressed with gzip: unpack it with gunzip -k"),
        (lzma.compress(BARE), "is compressed with xz: unpack it with unxz -k"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is compressed with zstd: unpack it with unzstd"),
        (b"PK\x03\x04" + bytes(26) + b"model.onnx", "is a zip archive: unpack it with unzip"),
        (b"", "is empty: export or download it again"),
        (b'{"model_type": "bert"}', "is a JSON file: give the ONNX file itself"),
        (b"\x1c\x00\x00\x00TFL3", "is a TensorFlow Lite file: convert it with python -m tf2onnx"),
        (b"\x1c\x00\x00\x00ORTM", "is an ONNX Runtime ORT file"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras saves it"),
        (b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":1}', "is a safetensors file"),
        (b"words", "is not an ONNX file: export or download it again"),
    ],
)
def test_what_is_not_onnx_is_told_before_anything_is_sent(
    fake: FakeProfiler, model: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    assert_refused(esm_host_time(model, path), 2, str(path), words)
    assert fake.blocks == []


def test_a_file_that_is_cut_short_is_called_that(fake: FakeProfiler, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    whole = build("audio")
    for length in (2, 100, len(whole) // 2, len(whole) - 50_000):
        path.write_bytes(whole[:length])
        assert_refused(esm_host_time(path), 2, f"is cut short or damaged after {length:,} bytes")


def test_weights_that_are_cut_short_are_called_that(fake: FakeProfiler, tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones(64, np.float32), "w")
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [64])
    node = helper.make_node("Neg", ["w"], ["y"])
    whole = helper.make_model(helper.make_graph([node], "g", [], [value], [weight]))
    path, weights = tmp_path / "model.onnx", tmp_path / "weights"
    onnx.save(whole, path, save_as_external_data=True, location=weights.name, size_threshold=0)
    weights.write_bytes(weights.read_bytes()[:200])
    assert_refused(esm_host_time(path), 2, f"{weights}, which is cut short (200 of 256 bytes)")
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert_refused(esm_host_time(path), 2, f"{weights}, which is a Git LFS pointer", "git lfs")


def test_more_than_a_device_takes(fake: FakeProfiler, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.onnx" for index in range(257)]
    for path in paths:
        path.write_bytes(BARE)
    assert_refused(esm_host_time(*paths), 2, "257 models", "256 per block")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['esm-host', 'time', '--help']\n"
        "from esm_host.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'numpy', 'grpc', 'sqlalchemy', 'pandas')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_examples_need_no_file(fake: FakeProfiler) -> None:
    result = esm_host_time("--example", "resnet18", "--example", "mobilenetv3", "--runs", 20)
    assert result.exit_code == 0, result.output
    assert [row.split()[0] for row in rows_of(result.stdout)[1:]] == ["resnet18", "mobilenetv3"]
    assert_refused(esm_host_time("--example", "resnet19"), 2, "mobilenetv3, resnet18, resnet50")
    assert_refused(esm_host_time(), 2, "--example")


def test_examples_run_on_a_real_agent_from_python() -> None:
    model = esm_host.example_model("mobilenetv3")
    timing = esm_host.time({"example": model}, runs=5)
    (fed,) = timing.data["results"][0]["inputs"]
    assert fed["dims"] == [1, 3, 224, 224]
    assert timing.results()["runs"].tolist() == [5]


def test_timing_needs_neither_torch_nor_onnx(model: Path) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['esm-host', 'time', {str(model)!r}, '--example', 'resnet18']\n"
        "sys.argv += ['--device', '127.0.0.1:1']\n"
        "from esm_host.cli.app import app\n"
        "try: app()\n"
        "except SystemExit as end: print(end.code)\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'sqlalchemy', 'altair', 'pandas')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["69", "[]"], done.stdout + done.stderr


def test_outputs_overwrite_neither_inputs_nor_each_other(
    fake: FakeProfiler, dynamic: Path, tmp_path: Path
) -> None:
    before = dynamic.read_bytes()
    values, link = tmp_path / "x.npz", tmp_path / "link"
    np.savez(values, x=np.zeros((1, 3, 4, 4), np.float32))
    link.symlink_to(dynamic)
    for options in (
        ("--json", dynamic),
        ("--csv", link),
        ("--json", values, "--input", values),
        ("--json", tmp_path / "f", "--csv", tmp_path / "f"),
    ):
        assert_refused(esm_host_time(dynamic, *options), 2, "would overwrite", "another file")
    assert dynamic.read_bytes() == before
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("option", ["--batch", "--threads"])
def test_an_option_may_be_repeated(fake: FakeProfiler, dynamic: Path, option: str) -> None:
    result = esm_host_time(dynamic, option, 2, option, "3,4", "--runs", 30, "--json", "-")
    cases = [row["case"][option.removeprefix("--")] for row in json.loads(result.stdout)["results"]]
    assert cases == [2, 3, 4]
    assert_refused(esm_host_time(dynamic, option, 2, option, 2), 2, option, "give each once")


def test_a_batch_is_of_the_models_that_leave_it_free(
    fake: FakeProfiler, dynamic: Path, tmp_path: Path
) -> None:
    fixed = tmp_path / "fixed.onnx"
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, []) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:])
    onnx.save(helper.make_model(graph, ir_version=8), fixed)
    result = esm_host_time(dynamic, fixed, "--batch", "1,2", "--dim", "S=4", "--runs", 20)
    assert result.exit_code == 0, result.output
    assert "fixed.onnx: --batch is ignored" in result.stderr
    assert_refused(esm_host_time(fixed, "--batch", 1), 2, "leave it out")


def test_a_shape_takes_the_models_own_names(fake: FakeProfiler, dynamic: Path) -> None:
    result = esm_host_time(dynamic, "--shape", "x:Nx3xSx8", "--batch", 2, "--runs", 20)
    assert result.exit_code == 0, result.output
    assert_refused(esm_host_time(dynamic, "--shape", "x:Nx3xTx8"), 2, "is not named 'T'")


def test_sizes_and_pointers_are_called_what_they_are(
    fake: FakeProfiler, dynamic: Path, tmp_path: Path
) -> None:
    for size in ("0", "1e3", "-3", "640,"):
        assert_refused(esm_host_time(dynamic, "--dim", f"S={size}"), 2, "whole numbers from 1")
    pointer = tmp_path / "x.npz"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert_refused(esm_host_time(dynamic, "--input", pointer), 2, "git")


# Several execution providers, and settings of sessions


@pytest.fixture
def two_providers(fake: FakeProfiler) -> FakeProfiler:
    npu = ProviderInfo("npu", "NpuExecutionProvider", open_options=True, may_fall_back=True)
    fake.providers = (ProviderInfo("cpu", "CPUExecutionProvider"), npu)
    return fake


@pytest.mark.parametrize("given", [["--ep", "cpu,npu"], ["--ep", "cpu", "--ep", "npu"]])
def test_each_provider_is_a_case_in_a_block_of_its_own(
    two_providers: FakeProfiler, dynamic: Path, given: list[str]
) -> None:
    options = [*given, "--ep-option", "npu:a=1", "--batch", "1,8", "--runs", 40, "--json", "-"]
    result = esm_host_time(dynamic, *options)
    assert result.exit_code == 0, result.stderr
    blocks = two_providers.blocks
    assert [(b.spec.provider, b.spec.provider_options) for b in blocks] == [
        ("cpu", {}),
        ("npu", {"a": "1"}),
    ]
    assert [[m.case.shapes[0][1][0] for m in block.models] for block in blocks] == [[1, 8]] * 2
    data = json.loads(result.stdout)
    told = [
        (r["case"]["batch"], r["case"]["provider"], r["provider"], r["provider_options"])
        for r in data["results"]
    ]
    assert told == [
        (1, "cpu", "cpu", {}),
        (1, "npu", "npu", {"a": "1"}),
        (8, "cpu", "cpu", {}),
        (8, "npu", "npu", {"a": "1"}),
    ]
    device = data["context"]["devices"]["local"]
    assert device["usual_by_provider"].keys() == {"cpu", "npu"}
    assert len(device["block_starts_s"]) == 2
    paired = [c["paired"] for c in data["comparisons"]]
    assert paired.count(True) == 1, "only cases of one block are compared in pairs"


def test_tables_and_csv_name_the_provider(
    two_providers: FakeProfiler, model: Path, tmp_path: Path
) -> None:
    result = esm_host_time(model, "--ep", "cpu,npu", "--runs", 40, "--csv", tmp_path / "t.csv")
    heading, *rows = rows_of(result.stdout)
    assert heading.split()[:3] == ["model", "provider", "latency_ms"]
    assert [row.split()[1] for row in rows] == ["cpu", "npu"]
    with (tmp_path / "t.csv").open() as lines:
        assert [row["provider"] for row in csv.DictReader(lines)] == ["cpu", "npu"]
    alone = esm_host_time(model, "--ep", "npu", "--runs", 40, "--json", "-")
    (entry,) = json.loads(alone.stdout)["results"]
    assert (entry["case"]["provider"], entry["provider"]) == (None, "npu")


def test_a_model_that_loads_too_slowly_for_its_sessions_is_warned_of(
    fake: FakeProfiler, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fake.answer

    def answered(*arguments: Any) -> BlockResult:
        block = answer(*arguments)
        slow = (replace(m, load_ns=10**9, session_runs=()) for m in block.measurements)
        return replace(block, measurements=tuple(slow))

    told = esm_host_time(model, "--sessions", 4, "--runs", 80)
    assert "one session in a block" not in told.stderr
    monkeypatch.setattr(fake, "answer", answered)
    told = esm_host_time(model, "--sessions", 4, "--runs", 80)
    assert "one session in a block, not 4" in told.stderr
    assert "each block of --spread opens a new one" in told.stderr
    assert "one session in a block" not in esm_host_time(model, "--runs", 80).stderr


def test_options_that_are_not_as_by_default_stand_under_a_result(
    fake: FakeProfiler, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = ProviderInfo("npu", options=(ProviderOption("x", "int", "1"),), open_options=True)
    fake.providers = (ProviderInfo("cpu"), tuned)
    answer = fake.answer

    def answered(*arguments: Any) -> BlockResult:
        block = answer(*arguments)
        measured = (replace(each, compiled="cached") for each in block.measurements)
        return replace(block, measurements=tuple(measured))

    monkeypatch.setattr(fake, "answer", answered)
    given = ("--ep", "npu", "--ep-option", "x=1", "--ep-option", 'config={"a": 2}')
    options = (*given, "--opt-level", "basic", "--runs", 30)
    told = esm_host_time(model, *options)
    expected = '1 thread · npu · config={"a": 2} · opt_level=basic · compiled: cached'
    assert expected in told.stdout
    (row,) = csv.DictReader(esm_host_time(model, *options, "--csv", "-", "-q").stdout.splitlines())
    columns = ["provider_options", "session_options", "compiled", "ran_on", "fallback"]
    assert list(row)[-5:] == columns
    assert shlex.split(row["provider_options"]) == ['config={"a": 2}', "x=1"]
    assert (row["session_options"], row["compiled"]) == ("opt_level=basic", "cached")


def test_runs_of_two_speeds_are_not_stable(
    fake: FakeProfiler, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = fake.answer

    def answered(*arguments: Any) -> BlockResult:
        block = answer(*arguments)
        (measured,) = block.measurements
        slow = np.arange(len(measured.latency_ns)) % 5 < 2
        runs = np.where(slow, 2, 1) * measured.latency_ns
        return replace(block, measurements=(replace(measured, latency_ns=runs),))

    monkeypatch.setattr(fake, "answer", answered)
    result = esm_host_time(model, "--runs", 100, "--json", "-")
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["verdict"] != "stable"
    assert "the runs have more than one speed: their median is 2" in result.stderr


def test_usual_latencies_and_frames_are_of_each_provider(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    class Device(FakeProfiler):
        """Has usual latencies for ``cpu`` only."""

        def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
            result = super().answer(block, on_progress)
            return result if block.spec.provider == "cpu" else replace(result, usual=None)

    device = Device(fake_latency, providers=(ProviderInfo("cpu"), ProviderInfo("npu")))
    monkeypatch.setattr(devices, "connect", lambda name: device)
    timing = esm_host.time(str(model), provider=["cpu", "npu"], runs=40)
    entry = timing.devices["local"]
    assert [each and each["moments"] > 0 for each in entry["usual_by_provider"].values()] == [
        True,
        None,
    ]
    assert {(each["block"], each["provider"]) for each in entry["references"]} == {
        (0, "cpu"),
        (1, "npu"),
    }
    assert timing.names == ["model.onnx · cpu", "model.onnx · npu"]
    assert timing.results()["provider"].tolist() == ["cpu", "npu"]
    paces = timing.paces()
    assert paces.groupby("block")["usual"].all().tolist() == [True, False]
    told = esm_host_time(model, "--ep", "cpu,npu", "--runs", 40)
    assert "  latency on npu as measured, not at the device's usual pace" in told.stdout
    assert esm_host_time(model, "--runs", 40).stdout.count("as measured") == 0


def test_a_model_that_one_provider_refuses_is_its_outcome(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    class Device(FakeProfiler):
        def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
            result = super().answer(block, on_progress)
            if block.spec.provider == "cpu":
                return result
            failed = Measurement.failed(
                block.models[0].model_id, FailureKind.UNSUPPORTED_OP, "no such operator"
            )
            return replace(result, measurements=(failed,))

    providers = (ProviderInfo("npu"), ProviderInfo("cpu"))
    device = Device(fake_latency, references=(), providers=providers)
    monkeypatch.setattr(devices, "connect", lambda name: device)
    result = esm_host_time(model, "--ep", "npu,cpu", "--runs", 40)
    assert result.exit_code == 1
    assert "npu  unsupported_op" in result.stdout
    assert f"warning: {model}, npu: unsupported_op: no such operator" in result.stderr
    assert len(rows_of(result.stdout)) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ep", "cpu,tpu"], ["--ep: unknown execution provider 'tpu'", "choose cpu, npu"]),
        (["--ep", "cpu,cpu"], ["--ep cpu,cpu: give each provider once"]),
        (["--ep", "cpu,npu", "--ep-option", "a=1"], ["--ep-option a=1", "give cpu:a=1"]),
        (["--ep", "cpu,npu", "--ep-option", "x:a=1"], ["'x' is not in --ep cpu,npu"]),
        (["--ep", "cpu,npu", "--ep-option", "cpu:a=1"], ["unknown option 'a' of the provider cpu"]),
    ],
)
def test_providers_and_options_are_checked_before_anything_is_measured(
    two_providers: FakeProfiler, model: Path, options: list[str], words: list[str]
) -> None:
    assert_refused(esm_host_time(model, *options), 2, *words)
    assert two_providers.blocks == []


def test_fallback_is_allowed_where_there_is_one(two_providers: FakeProfiler, model: Path) -> None:
    options = ["--ep", "cpu,npu", "--allow-fallback", "--runs", 30]
    assert esm_host_time(model, *options).exit_code == 0
    assert [block.spec.allow_fallback for block in two_providers.blocks] == [False, True]


def test_the_time_of_a_block_is_that_of_its_models(
    two_providers: FakeProfiler, dynamic: Path
) -> None:
    esm_host_time(dynamic, "--ep", "cpu,npu", "--batch", "1,8")
    assert [block.spec.max_block_s for block in two_providers.blocks] == [22, 22]


@pytest.mark.parametrize("command", ["profile", "transfer", "lookup"])
def test_commands_that_take_one_provider_say_so(fake: FakeProfiler, command: str) -> None:
    result = CliRunner().invoke(app, [command, "--ep", "cpu", "--ep", "npu"])
    assert_refused(result, 2, "--ep cpu,npu: this command measures on one execution provider")


SESSION = [
    *("--opt-level", "basic", "--execution-mode", "parallel", "--inter-op", "2"),
    *("--session-option", "session.set_denormal_as_zero=1", "--free-dim", "N=4"),
]


def test_session_settings_reach_the_device_and_the_files(
    fake: FakeProfiler, dynamic: Path, tmp_path: Path
) -> None:
    out = tmp_path / "t.json"
    told = esm_host_time(dynamic, "--dim", "S=8", *SESSION, "--runs", 30, "--json", out)
    assert told.exit_code == 0, told.stderr
    (block,) = fake.blocks
    assert block.spec.session == SessionSettings(
        "basic", "parallel", 2, {"session.set_denormal_as_zero": "1"}, {"N": 4}
    )
    assert block.models[0].case.shapes == (("x", (4, 3, 8, 8)),), "as fed"
    spec = json.loads(out.read_text())["context"]["spec"]
    assert (spec["opt_level"], spec["inter_op"], spec["free_dims"]) == ("basic", 2, {"N": 4})
    assert "opt_level=basic · execution_mode=parallel · inter_op=2" in told.stdout
    assert "taken as 1" not in told.stderr
    page = esm_host.write_report(out, tmp_path / "t.html").read_text()
    assert "--free-dim" in page
    assert "N=4" in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--inter-op", "2"], ["--inter-op 2 needs --execution-mode parallel"]),
        (["--free-dim", "M=2"], ["--free-dim: unknown dimension 'M'", "the inputs name 'N', 'S'"]),
        (["--free-dim", "N=2", "--dim", "N=1,2"], ["--free-dim N=2", "'N' has --dim as well"]),
        (["--free-dim", "N=2", "--shape", "1x3x8x8"], ["--free-dim N=2: --shape 1x3x8x8 gives"]),
        (["--free-dim", "N=2", "--batch", "8"], ["--batch 8 sets nothing", "--free-dim N=2"]),
        (["--session-option", "session.x=/a"], ["--session-option session.x=/a: entries that"]),
    ],
)
def test_session_settings_are_checked(
    fake: FakeProfiler, dynamic: Path, options: list[str], words: list[str]
) -> None:
    assert_refused(esm_host_time(dynamic, *options), 2, *words)


def test_an_agent_too_old_for_session_settings_is_not_measured_on(
    fake: FakeProfiler, model: Path
) -> None:
    fake._session_settings = False
    assert_refused(esm_host_time(model, "--opt-level", "basic"), 2, "opt_level=basic", "upgrade")
    assert fake.blocks == []


def ops(result: Result) -> set[str]:
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["status"] == "success", entry["failure"]
    return {operator["op_type"] for operator in entry["profile"]["operators"]}


@pytest.fixture(scope="module")
def shapely(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes ``x`` of Nx3x8x8; reshapes by its own first dimension after a convolution."""
    path = tmp_path_factory.mktemp("models") / "shapely.onnx"
    constants = {"w": np.ones((4, 3, 1, 1), np.float32), "rest": np.array([-1]), "i": np.array([0])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "i"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["b", "t"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opset), path)
    return path


def test_the_runtime_applies_the_level_and_the_free_dimension(agent: None, shapely: Path) -> None:
    options = ["--runs", 5, "--profile", "--profile-runs", 2, "--batch", 2, "--json", "-"]
    plain = ops(esm_host_time(shapely, *options, "--opt-level", "disable"))
    assert plain == {"Conv", "Relu", "Shape", "Gather", "Concat", "Reshape"}
    fused = ops(esm_host_time(shapely, *options))
    assert "Relu" not in fused, "fused into the convolution"
    assert "Shape" in fused
    static = ops(esm_host_time(shapely, *options[:-4], "--free-dim", "N=2", "--json", "-"))
    assert not static & {"Shape", "Gather", "Concat"}, "folded, as the size is known"
    others = ["--execution-mode", "parallel", "--session-option", "session.disable_prepacking=1"]
    assert ops(esm_host_time(shapely, *options, *others)) == fused


def test_an_entry_that_the_runtime_refuses_is_an_outcome(agent: None, shapely: Path) -> None:
    options = ["--runs", 5, "--session-option", "session.dynamic_block_base=many", "--json", "-"]
    result = esm_host_time(shapely, *options)
    (entry,) = json.loads(result.stdout)["results"]
    assert entry["failure"]["kind"] == "invalid_input"
    assert entry["failure"]["message"].startswith(
        "ONNX Runtime refuses the session options session.dynamic_block_base=many: "
    )
