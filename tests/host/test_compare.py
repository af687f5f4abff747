"""``esm-host compare``: what counts as a regression, and what cannot be compared."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from esm_host.cli.app import app
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Failure, FailureKind, Model

Json = dict[str, Any]
Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def timing(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Of two models with two batch sizes on a fake device: 1 and 2 ms, times the batch."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in "xy"]
        node = helper.make_node("Neg", ["x"], ["y"])
        graph = helper.make_graph([node], name, values[:1], values[1:])
        (folder / f"{name}.onnx").write_bytes(helper.make_model(graph).SerializeToString())

    def latency(model: Model) -> float | Failure:
        return (1.0 if "a.onnx" in model.model_id else 2.0) * model.case.shapes[0][1][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: FakeProfiler(latency, noise=0.01))
        patch.chdir(folder)
        options = ["a.onnx", "b.onnx", "--batch", "1,8", "--runs", "80", "--json", "-"]
        done = CliRunner().invoke(app, ["time", *options, "--device", "pi4"])
    data: Json = json.loads(done.stdout)
    assert [entry["status"] for entry in data["results"]] == ["success"] * 4
    return data


@pytest.fixture
def compare(tmp_path: Path) -> Invoke:
    def invoke(base: Json, new: Json, *options: str) -> Result:
        for name, data in (("base", base), ("new", new)):
            (tmp_path / f"{name}.json").write_text(json.dumps(data))
        files = [str(tmp_path / "base.json"), str(tmp_path / "new.json")]
        return CliRunner().invoke(app, ["compare", *files, *options])

    return invoke


@pytest.fixture
def new(timing: Json) -> Json:
    return copy.deepcopy(timing)


def scale(result: Json, factor: float) -> None:
    result["trimmed_mean_ms"] *= factor


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    for word in words:
        assert word in line
    assert result.stdout == ""


def outcomes(result: Result) -> list[str]:
    return [entry["outcome"] for entry in json.loads(result.stdout)["results"]]


def test_the_same_is_the_same(compare: Invoke, timing: Json) -> None:
    result = compare(timing, timing)
    assert result.exit_code == 0
    heading, *rows = result.stdout.splitlines()
    assert heading.split()[:3] == ["model", "base_ms", "new_ms"]
    assert len(rows) == 4
    assert all(row.endswith("same within noise") for row in rows)


def test_what_is_not_stable_is_warned_of(compare: Invoke, timing: Json, new: Json) -> None:
    assert "not stable" not in compare(timing, timing).stderr
    new["results"][1]["verdict"] = "noisy"
    said = compare(timing, new).stderr
    assert "new.json: 1 of 4 latencies are not stable (1 noisy)" in said
    assert "base.json" not in said


def test_slower_than_tolerated_is_exit_code_3(compare: Invoke, timing: Json, new: Json) -> None:
    for entry, factor in zip(new["results"], (1.2, 1.02, 0.8, 1.0), strict=True):
        scale(entry, factor)
    result = compare(timing, new, "--json", "-")
    assert result.exit_code == 3
    assert outcomes(result) == ["slower", "tolerated", "faster", "same"]
    assert "1 of 4 became slower" in result.stderr
    data = json.loads(result.stdout)
    assert data["regressions"] == 1
    first = data["results"][0]
    assert first["change_percent"] == pytest.approx(20)
    low, high = first["interval_percent"]
    assert 18 < low < 20 < high < 22
    assert compare(timing, new, "--tolerance", "30").exit_code == 0
    assert compare(timing, new, "--tolerance", "0").exit_code == 3
    rows = compare(timing, new).stdout.splitlines()[1:]
    assert rows[0].endswith("slower")
    assert rows[1].endswith("slower, 2 % tolerated")


def test_more_confidence_is_a_wider_interval(compare: Invoke, timing: Json) -> None:
    def width(confidence: str) -> float:
        result = compare(timing, timing, "--confidence", confidence, "--json", "-")
        low, high = json.loads(result.stdout)["results"][0]["interval_percent"]
        return float(high - low)

    # Of Student's t with 11 degrees of freedom: 20 batches less 8 trimmed, less one.
    assert width("99") / width("95") == pytest.approx(3.106 / 2.201, rel=0.01)
    assert width("50") / width("95") == pytest.approx(0.697 / 2.201, rel=0.01)


def test_what_fails_now_is_a_regression(compare: Invoke, timing: Json, new: Json) -> None:
    kind = FailureKind.UNSUPPORTED_OP.value
    for entry in new["results"][:2]:
        for key in ("trimmed_mean_ms", "ci95_percent", "ci95_ms", "runs"):
            entry[key] = None
        entry |= {"status": "failed", "failure": {"kind": kind, "message": "no"}}
    base = copy.deepcopy(timing)
    base["results"][1] = copy.deepcopy(new["results"][1])
    result = compare(base, new, "--json", "-")
    assert (result.exit_code, outcomes(result)) == (3, ["failed", "never_ran", "same", "same"])
    result = compare(new, base, "--json", "-")
    assert (result.exit_code, outcomes(result)) == (0, ["mended", "never_ran", "same", "same"])
    assert "fails now" in compare(base, new).stdout


def test_another_file_of_the_same_name_is_said(compare: Invoke, timing: Json, new: Json) -> None:
    new["results"][0]["model_sha256"] = "00" * 32
    new["results"][2]["external"] = {"b.data": "00" * 32}
    rows = compare(timing, new).stdout.splitlines()[1:]
    assert ["another file" in row for row in rows] == [True, False, True, False]


def test_models_are_matched_by_file_where_folders_differ(
    compare: Invoke, timing: Json, new: Json
) -> None:
    for entry in new["results"]:
        entry["model"] = "build/" + entry["model"]
    new["results"].reverse()
    assert compare(timing, new).exit_code == 0
    for entry in new["results"]:
        entry["model"] = entry["model"].replace("b.onnx", "c.onnx")
    assert_refused(
        compare(timing, new), "only the base timing has b.onnx, batch 1", "--allow cases"
    )


def test_an_only_device_may_have_another_name(compare: Invoke, timing: Json, new: Json) -> None:
    new["context"]["devices"] = {"10.0.0.4:7343": new["context"]["devices"]["pi4"]}
    for entry in new["results"]:
        entry["device"] = "10.0.0.4:7343"
    assert compare(timing, new).exit_code == 0
    new["context"]["devices"]["rack"] = new["context"]["devices"]["10.0.0.4:7343"]
    assert_refused(compare(timing, new), "only one of the timings has the device")


@pytest.mark.parametrize(
    ("where", "name", "value", "words"),
    [
        (("spec",), "runs", 100, ["setting runs differs: 80 and 100"]),
        (("spec",), "provider", "cuda", ["setting provider differs: cpu and cuda"]),
        (("devices", "pi4", "info"), "runtime", "fake 2", ["runtime of pi4", "fake 1 and fake 2"]),
        (("devices", "pi4", "info"), "hostname", "other", ["hostname of pi4", "fake and other"]),
        (("devices", "pi4", "info"), "cpu_count", 4, ["cpu_count of pi4 differs: 1 and 4"]),
    ],
)
def test_what_was_not_measured_alike_is_refused_unless_allowed(
    compare: Invoke,
    timing: Json,
    new: Json,
    where: tuple[str, ...],
    name: str,
    value: object,
    words: list[str],
) -> None:
    target = new["context"]
    for key in where:
        target = target[key]
    target[name] = value
    assert_refused(compare(timing, new), *words, f"--allow {name}")
    result = compare(timing, new, "--allow", f"trim,{name}")
    assert result.exit_code == 0
    assert words[0] in result.stderr


def test_gpus_count_where_they_were_used(compare: Invoke, timing: Json, new: Json) -> None:
    new["context"]["devices"]["pi4"]["info"]["state"]["gpus"] = [{"name": "a GPU"}]
    assert compare(timing, new).exit_code == 0
    base = copy.deepcopy(timing)
    for data in (base, new):
        data["context"]["spec"]["provider"] = "cuda"
    assert_refused(compare(base, new), "gpu of pi4", "a GPU")


def test_cases_that_one_lacks(compare: Invoke, timing: Json, new: Json) -> None:
    del new["results"][1]
    assert_refused(compare(timing, new), "only the base timing has a.onnx, batch 8")
    assert_refused(compare(new, timing), "only the new timing has a.onnx, batch 8")
    result = compare(timing, new, "--allow", "cases")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 4
    new["results"] = []
    assert_refused(compare(timing, new, "--allow", "cases"), "no model in common")


def test_without_an_interval_nothing_is_said(compare: Invoke, timing: Json, new: Json) -> None:
    new["results"][0]["ci95_percent"] = None
    assert_refused(compare(timing, new), "a.onnx, batch 1", "too few runs", "--runs")


def test_a_device_that_failed(compare: Invoke, timing: Json, new: Json) -> None:
    new["context"]["devices"]["pi4"] |= {"error": "nobody answers", "info": None}
    assert_refused(compare(timing, new), "new timing failed on pi4: nobody answers")


def test_files_that_are_no_timings(compare: Invoke, timing: Json, tmp_path: Path) -> None:
    assert_refused(compare(timing, {"models": []}), "new.json is no timing")
    assert_refused(compare(timing | {"schema_version": 9}, timing), "base.json", "version 9")
    assert_refused(compare(timing, {**timing, "context": {}}), "lacks what it should have")
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    base = str(tmp_path / "base.json")
    for other, words in (("bad.json", "is no JSON"), ("none.json", "cannot read")):
        assert_refused(CliRunner().invoke(app, ["compare", base, str(tmp_path / other)]), words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--confidence", "100"], "--confidence 100"),
        (["--confidence", "0.95"], "--confidence 0.95: give percent"),
        (["--tolerance", "-1"], "--tolerance -1"),
        (["--tolerance", "nan"], "--tolerance nan"),
        (["--allow", "weather"], "--allow weather"),
        (["--json", "/"], "--json / is a folder"),
    ],
)
def test_impossible_options(compare: Invoke, timing: Json, options: list[str], words: str) -> None:
    assert_refused(compare(timing, timing, *options), words)
