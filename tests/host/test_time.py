"""``esm-host time`` as users meet it: through a real agent, on a fake device, with wrong input."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner, Result

from benchmarks.public_models import build
from esm_host.cli.app import app
from esm_host.timing import timing_spec
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.spaces import load_space
from esm_protos.messages import (
    DeviceState,
    Failure,
    FailureKind,
    Measurement,
    MeasureSpec,
    Model,
    Protocol,
)
from esm_protos.statistics import trimmed_mean
from tests.helpers import smallest

LATENCY_MS = 2.0


def esm_host_time(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["time", *(str(argument) for argument in arguments)])


def assert_refused(result: Result, code: int, *words: str) -> None:
    """One line on stderr, the right exit code, nothing on stdout."""
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert result.stdout == ""


def fake_latency(model: Model) -> float | Failure:
    if model.data.startswith(b"bad"):
        return Failure(FailureKind.UNSUPPORTED_OP, "no such operator")
    return LATENCY_MS


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    """Every device is this one."""
    profiler = FakeProfiler(fake_latency, noise=0.02)
    monkeypatch.setattr(devices, "connect", lambda device: profiler)
    return profiler


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x08")  # for devices that do not look inside
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
        "broken": b"not a model",
    }
    for name, data in contents.items():
        (folder / f"{name}.onnx").write_bytes(data)
    return [folder / f"{name}.onnx" for name in contents]


def test_json_has_the_documented_shape(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "timing.json"
    result = esm_host_time(*files, "--device", "local", "--runs", 41, "--json", out)
    assert result.exit_code == 1, "a model failed"
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["model", "latency_ms", "95%"]
    assert lines[3].split() == [str(files[2]), "invalid_model"]
    assert "not an ONNX file" in result.stderr
    assert result.stderr.splitlines()[0] == f"all samples are in {out}"

    data = json.loads(out.read_text())
    assert data["schema_version"] == 1
    assert data["spec"] == timing_spec(runs=41).to_json()
    assert data["device"]["runtime"].startswith("onnxruntime")
    assert data["device_busy_seconds"] > 0
    audio, weightless, broken = data["models"]
    for entry in (audio, weightless):
        samples = np.array(entry["latency_ns"])
        assert len(samples) == len(entry["start_ns"]) == entry["runs"] == 41
        assert entry["latency_ms"] == pytest.approx(trimmed_mean(samples, 0.2) / 1e6)
        assert entry["min_ms"] <= entry["median_ms"] <= entry["p95_ms"]
        assert entry["interval_low_ms"] < entry["latency_ms"] < entry["interval_high_ms"]
        assert min(entry["load_ms"], entry["first_run_ms"]) > 0
        assert entry["failure"] is None
        assert entry["verdict"] in ("stable", "noisy", "unresolved", "throttled")
        assert bool(entry["reasons"]) == (entry["verdict"] != "stable")
    assert broken["failure"]["kind"] == "invalid_model"
    assert broken["latency_ms"] is broken["interval_percent"] is broken["p95_ms"] is None
    assert broken["latency_ns"] == []
    assert audio.keys() == broken.keys()


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
        min_block_s=2.0,
        max_block_s=60.0,
    )


def test_options_reach_the_device(fake: FakeProfiler, model: Path) -> None:
    options = "--runs 40 --protocol sequential --warmup 7 --trim 0.1 --threads 2 --timeout 9"
    assert esm_host_time(model, *options.split(), "--seed", 5).exit_code == 0
    assert fake.blocks[-1].spec == MeasureSpec(
        protocol=Protocol.SEQUENTIAL,
        runs=40,
        runs_per_visit=4,
        warmup=7,
        trim=0.1,
        threads=2,
        model_timeout_s=9.0,
        seed=5,
    )
    limits = ["--precision", 5, "--max-runs", 500, "--max-time", 3]
    assert esm_host_time(model, *limits).exit_code == 0
    assert fake.blocks[-1].spec == timing_spec(None, 5, 500, 3)


def test_too_wide_an_interval_is_exit_code_3(fake: FakeProfiler, model: Path) -> None:
    result = esm_host_time(model, "--precision", 0.001, "--max-runs", 60, "--json", "-")
    assert result.exit_code == 3
    assert f"{model}: unresolved: interval too wide" in result.stderr
    assert "asked ±0.001 %" in result.stderr
    (entry,) = json.loads(result.stdout)["models"]
    assert entry["verdict"] == "unresolved"
    assert esm_host_time(model, "--precision", 90, "--max-runs", 60).exit_code == 0


def test_too_few_runs_for_an_interval(fake: FakeProfiler, model: Path) -> None:
    result = esm_host_time(model, "--max-runs", 9, "--json", "-")
    assert result.exit_code == 3
    (entry,) = json.loads(result.stdout)["models"]
    assert entry["interval_percent"] is entry["interval_low_ms"] is None
    assert esm_host_time(model, "--runs", 9).stdout.splitlines()[1].split()[2] == "-"


def test_a_failed_model_does_not_hide_the_others(
    fake: FakeProfiler, model: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"bad")
    result = esm_host_time(bad, model, "--precision", 0.001)
    assert result.exit_code == 1
    assert f"warning: {bad}: unsupported_op: no such operator" in result.stderr
    _, first, second = result.stdout.splitlines()
    assert first.split()[1:] == ["unsupported_op"]
    assert float(second.split()[1]) == pytest.approx(LATENCY_MS, rel=0.02)
    assert esm_host_time(bad, "-q").stdout.splitlines()[1].split()[1:] == ["unsupported_op"]


def test_states_of_the_device_are_kept(
    fake: FakeProfiler, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    measure = fake.measure
    states = (DeviceState(at_ns=-1, clock_mhz=(1500.0,)), DeviceState(at_ns=5))
    monkeypatch.setattr(
        fake, "measure", lambda *arguments: replace(measure(*arguments), states=states)
    )
    data = json.loads(esm_host_time(model, "--runs", 30, "--json", "-").stdout)
    assert data["device_states"] == [{"at_ns": -1, "clock_mhz": [1500.0]}, {"at_ns": 5}]


def test_models_enough_tell_the_pace_and_it_is_divided_out(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is three times as slow in the end; five models agree that it was the device."""
    from dataclasses import replace

    paths = [tmp_path / f"{index}.onnx" for index in range(5)]
    for path in paths:
        path.write_bytes(b"")
    samples = np.where(np.arange(90) < 50, 1_000_000, 3_000_000).astype(np.int64)
    measure = fake.measure

    def measured(*arguments):
        result = measure(*arguments)
        starts = np.arange(90) * 10_000_000
        return replace(
            result,
            measurements=tuple(
                Measurement(m.model_id, samples, starts + index * 1_000)
                for index, m in enumerate(result.measurements)
            ),
        )

    monkeypatch.setattr(fake, "measure", measured)
    data = json.loads(esm_host_time(*paths, "--runs", 90, "--json", "-").stdout)
    for entry in data["models"]:
        assert entry["latency_ms"] == pytest.approx(1.0)
        assert entry["verdict"] == "noisy"
        assert entry["reasons"] == ["the device became 200 % slower during the block"]


# On a GPU


def test_what_a_gpu_adds_is_shown_where_it_is_there(fake: FakeProfiler, model: Path) -> None:
    result = esm_host_time(model, "--runs", 30, "--json", "-")
    (entry,) = json.loads(result.stdout)["models"]
    assert (entry["provider"], entry["copy_in_ms"], entry["copy_out_ms"]) == ("cpu", None, None)
    assert (entry["ran_on"], entry["fallback"]) == ({}, [])
    assert esm_host_time(model, "--runs", 30).stdout.splitlines()[0].split()[-1] == "first_ms"

    fake._gpu = "a GPU"
    options = ["--runs", 30, "--ep", "cuda", "--tf32", "--cuda-graph"]
    (entry,) = json.loads(esm_host_time(model, *options, "--json", "-").stdout)["models"]
    assert (entry["provider"], entry["copy_in_ms"], entry["copy_out_ms"]) == ("cuda", 0.02, 0.01)
    assert entry["ran_on"] == {"CUDAExecutionProvider": 5, "CPUExecutionProvider": 1}
    spec = fake.blocks[-1].spec
    assert (spec.provider, spec.tf32, spec.cuda_graph) == ("cuda", True, True)
    assert not spec.allow_fallback
    heading, row = esm_host_time(model, *options).stdout.splitlines()
    assert heading.split()[-2:] == ["copy_in_ms", "copy_out_ms"]
    assert row.split()[-2:] == ["0.0200", "0.0100"]
    heading, row = esm_host_time(model, *options, "--allow-fallback").stdout.splitlines()
    assert heading.split()[-1] == "fallback"
    assert row.split()[-1] == "1"


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
        (["--seed", "-1"], ["--seed -1"]),
        (["--ep", "cuda"], ["--ep cuda", "cpu"]),
        (["--tf32"], ["--tf32 needs --ep cuda"]),
        (["--allow-fallback"], ["--allow-fallback needs --ep cuda"]),
        (["--json", "no/such/folder/out.json"], ["--json", "no folder no/such/folder"]),
        (["--json", "/"], ["--json / is a folder"]),
    ],
)
def test_impossible_requests_measure_nothing(
    fake: FakeProfiler, model: Path, options: list[str], words: list[str]
) -> None:
    assert_refused(esm_host_time(model, *options), 2, *words)
    assert fake.blocks == []


def test_files_that_cannot_be_timed(fake: FakeProfiler, model: Path, tmp_path: Path) -> None:
    assert_refused(esm_host_time(tmp_path / "no.onnx"), 2, "cannot read", "no.onnx", "No such")
    assert_refused(esm_host_time(tmp_path), 2, "cannot read", "directory")
    again = tmp_path / "." / "sub" / ".." / model.name
    (tmp_path / "sub").mkdir()
    assert_refused(esm_host_time(model, again), 2, "given twice")
    assert esm_host_time().exit_code == 2
    assert fake.blocks == []


def test_weights_in_another_file_are_refused(fake: FakeProfiler, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    graph = onnx.load_from_string(build("mlp"))
    onnx.save(graph, path, save_as_external_data=True, location="model.data")
    assert_refused(esm_host_time(path), 2, "another file (model.data)", "save it as one file")
    # The cure in the message.
    onnx.save(onnx.load(path), path, save_as_external_data=False)
    assert esm_host_time(path).exit_code == 0


def test_more_than_a_device_takes(fake: FakeProfiler, tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.onnx" for index in range(257)]
    for path in paths:
        path.write_bytes(b"")
    assert_refused(esm_host_time(*paths), 2, "257 models", "256 at a time")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['esm-host', 'time', '--help']\n"
        "from esm_host.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'numpy', 'grpc', 'sqlalchemy', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_timing_needs_neither_torch_nor_onnx(model: Path) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['esm-host', 'time', {str(model)!r}, '--device', '127.0.0.1:1']\n"
        "from esm_host.cli.app import app\n"
        "try: app()\n"
        "except SystemExit as end: print(end.code)\n"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'sqlalchemy', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["69", "[]"], done.stdout + done.stderr
