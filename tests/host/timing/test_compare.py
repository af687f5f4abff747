"""``esm-host compare``: what counts as a regression, and what cannot be compared."""

import copy
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from esm_host.cli.app import app
from esm_host.errors import UsageError
from esm_host.report.comparison import comparison_page
from esm_host.timing import compare as evaluation
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Failure, FailureKind, MeasureSpec, Model

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
        patch.setattr(
            devices, "connect", lambda device: FakeProfiler(latency, noise=0.01, references=())
        )
        patch.chdir(folder)
        options = ["a.onnx", "b.onnx", "--batch", "1,8", "--runs", "80", "--json", "-"]
        done = CliRunner().invoke(app, ["time", *options, "--device", "pi4"])
    data: Json = json.loads(done.stdout)
    assert [entry["status"] for entry in data["results"]] == ["success"] * 4
    return data


@pytest.fixture
def compare(tmp_path: Path) -> Invoke:
    def invoke(
        base: Json, new: Json, *options: str, bases: Sequence[Json] = (), news: Sequence[Json] = ()
    ) -> Result:
        def written(name: str, data: Json) -> str:
            (tmp_path / f"{name}.json").write_text(json.dumps(data))
            return str(tmp_path / f"{name}.json")

        files = [written("base", base), written("new", new)]
        for side, further in (("base", bases), ("new", news)):
            for n, data in enumerate(further, start=2):
                files += [f"--{side}", written(f"{side}{n}", data)]
        return CliRunner().invoke(app, ["compare", *files, *options])

    return invoke


@pytest.fixture
def new(timing: Json) -> Json:
    return copy.deepcopy(timing)


def scale(result: Json, factor: float) -> None:
    result["trimmed_mean_ms"] *= factor


def timed(timing: Json, *factors: float) -> list[Json]:
    """Once per factor: the first model in its first case takes so many times as long."""
    taken = [{**timing, "results": copy.deepcopy(timing["results"])} for _ in factors]
    for data, factor in zip(taken, factors, strict=True):
        scale(data["results"][0], factor)
    return taken


def assert_refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    for word in words:
        assert word in line
    assert result.stdout == ""


def outcomes(result: Result) -> list[str]:
    return [entry["outcome"] for entry in json.loads(result.stdout)["results"]]


def test_a_timing_compares_models_in_the_same_case(timing: Json) -> None:
    results = timing["results"]
    pairs = {(c["of"], c["to"]) for c in timing["comparisons"] if c["scope"] == "device"}
    named = {
        tuple((results[n]["model"], results[n]["case"]["batch"]) for n in pair) for pair in pairs
    }
    assert named == {(("b.onnx", batch), ("a.onnx", batch)) for batch in (1, 8)}


def test_the_same_is_the_same(compare: Invoke, timing: Json) -> None:
    result = compare(timing, timing)
    assert result.exit_code == 0
    heading, *rows = result.stdout.splitlines()
    assert heading.split()[:3] == ["model", "base_ms", "new_ms"]
    assert len(rows) == 4
    assert all(row.endswith("same within noise") for row in rows)


def test_models_of_other_names_are_matched(compare: Invoke, timing: Json, new: Json) -> None:
    for result in new["results"]:
        result["model"] = result["model"].replace("a.onnx", "exports/a-v2.onnx")
    assert compare(timing, new).exit_code == 2
    for theirs in ("exports/a-v2.onnx", "a-v2.onnx"):
        result = compare(timing, new, "--match", f"a.onnx={theirs}")
        assert result.exit_code == 0, result.output
        assert result.stdout.count("a.onnx") == 2
    assert_refused(compare(timing, new, "--match", "a.onnx=c.onnx"), "--match a.onnx=c.onnx")
    assert_refused(compare(timing, new, "--match", "a.onnx"), "OLD=NEW")


@pytest.mark.parametrize("name", ["a", "a.onnx"])
def test_a_latency_over_its_limit_is_a_regression(compare: Invoke, timing: Json, name: str) -> None:
    assert compare(timing, timing, "--max-latency", f"{name}=1s").exit_code == 0
    result = compare(timing, timing, "--max-latency", f"{name}=4ms", "--json", "-")
    assert result.exit_code == 3
    over = [entry["over_limit"] for entry in json.loads(result.stdout)["results"]]
    assert over == [False, True, False, False], "with a batch of 8 it takes 8 ms"
    shown = compare(timing, timing, "--max-latency", f"{name}=4000us")
    assert "over its limit of 4 ms" in shown.stdout
    assert_refused(compare(timing, timing, "--max-latency", "c=4ms"), "unknown model 'c'")
    assert_refused(compare(timing, timing, "--max-latency", "a=4min"), "MODEL=LIMIT")


def test_timings_that_agree_by_chance_prove_no_limit_broken(compare: Invoke, timing: Json) -> None:
    """Two of which each is known to 10 % lie 1 % above the limit."""
    timing = {**timing, "results": timing["results"][:1]}
    news = timed(timing, 1.01, 1.01)
    for number, data in enumerate(news):
        data["results"][0]["ci95_percent"] = data["results"][0]["block_ci95_percent"] = 10.0
        data["context"] = {**data["context"], "created_at": str(number)}
    model = timing["results"][0]["model"]
    limit_ms = timing["results"][0]["trimmed_mean_ms"]
    limit = ["--max-latency", f"{model}={limit_ms}ms"]
    result = compare(timing, news[0], *limit, news=news[1:])
    assert result.exit_code == 0, result.output


def test_tables_for_pull_requests(compare: Invoke, timing: Json, new: Json) -> None:
    new["results"][0]["trimmed_mean_ms"] *= 2
    for result in (*timing["results"], *new["results"]):
        result["verdict"] = "stable"
    lines = compare(timing, new, "--format", "markdown").stdout.splitlines()
    assert lines[0] == "| model | base_ms | new_ms | change | 95% interval |  |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | --- |"
    assert len(lines) == 6
    annotated = compare(timing, new, "--format", "github").stdout.splitlines()
    assert annotated[:6] == lines
    assert annotated[6].startswith("::error title=esm-host compare::a.onnx, batch 1: slower")
    assert len(annotated) == 7


def test_what_was_fed_otherwise_is_not_compared(compare: Invoke, timing: Json, new: Json) -> None:
    """The same command, another export: a free dimension that was taken as 1 is now fixed."""
    new["results"][0]["inputs"] = [{"name": "x", "type": "float32", "dims": [1, 3, 640, 640]}]
    timing["results"][0]["inputs"] = [{"name": "x", "type": "float32", "dims": [1, 3, 1, 1]}]
    refused = compare(timing, new)
    assert_refused(
        refused, "had input x 1x3x1x1 float32 in the base timing and x 1x3x640x640 float32"
    )
    assert "--allow inputs compares them anyway" in refused.stderr
    allowed = compare(timing, new, "--allow", "inputs")
    assert allowed.exit_code == 0
    assert "warning: " in allowed.stderr
    new["results"][0]["inputs"] = [{"name": "x", "type": "float16", "dims": [1, 3, 1, 1]}]
    assert_refused(compare(timing, new), "x 1x3x1x1 float16 in the new timing")
    new["results"][0]["inputs"] = [{"name": "y", "type": "float32", "dims": [1, 3, 1, 1]}]
    assert compare(timing, new).exit_code == 0, "an export may name its inputs otherwise"
    new["results"][0]["inputs"] = []
    assert compare(timing, new).exit_code == 0, "what failed says nothing"


def test_sizes_of_symbols_tell_cases_apart(compare: Invoke, timing: Json, new: Json) -> None:
    for data in (timing, new):
        for entry in data["results"]:
            entry["case"].pop("dims", None)
    assert compare(timing, new).exit_code == 0, "as files had it before there were any"
    for data in (timing, new):
        for entry in data["results"]:
            entry["case"]["dims"] = {}
    new["results"][0]["case"]["dims"] = {"H": 640}
    new["results"][0]["inputs"] = [{"name": "x", "type": "float32", "dims": [1, 640]}]
    assert_refused(compare(timing, new), "only the base timing has", "--allow cases")
    timing["results"][0]["case"]["dims"] = {"H": 640}
    timing["results"][0]["inputs"] = new["results"][0]["inputs"]
    assert "H=640" in compare(timing, new).stdout


def test_what_is_not_stable_is_warned_of(compare: Invoke, timing: Json, new: Json) -> None:
    assert "not stable" not in compare(timing, timing).stderr
    new["results"][1]["verdict"] = "noisy"
    said = compare(timing, new).stderr
    assert "new.json: 1 of 4 latencies are not stable (1 noisy)" in said
    assert "base.json" not in said


def test_a_report_says_what_the_noise_hides(compare: Invoke, timing: Json, new: Json) -> None:
    """A change within the noise is not named, and the warnings stand on the page."""
    for result in new["results"]:
        scale(result, 0.82)
        result["verdict"] = "unresolved"
        result["ci95_percent"] = 200.0
    written = json.loads(compare(timing, new, "--json", "-").stdout)
    comparison = evaluation.Comparison.from_json(written)
    (warning,) = comparison.warnings
    assert "new.json: 4 of 4 latencies are not stable" in warning
    page = comparison_page(comparison)
    assert page.lead == "No change is outside the noise."
    assert page.status == ("open", "nothing slower found, see the warnings")
    assert any(warning in getattr(part, "text", "") for part in page.sections[0].parts)
    del written["warnings"]  # a file of an older version
    assert evaluation.Comparison.from_json(written).warnings == ()


def test_a_report_names_the_largest_change_outside_the_noise(timing: Json, new: Json) -> None:
    scale(new["results"][0], 1.2)
    scale(new["results"][1], 1.5)
    new["results"][1]["ci95_percent"] = 200.0
    comparison = evaluation.compare(timing, new)
    assert comparison.warnings == ()
    named = comparison.name(comparison.changes[0])
    lead = f"The largest change outside the noise: {named} is 20.0 % slower."
    assert comparison_page(comparison).lead == lead
    new["results"][0]["verdict"] = "noisy"
    comparison = evaluation.compare(timing, new)
    assert comparison.warnings[0].startswith("new timing: 1 of 4 latencies are not stable")
    assert comparison_page(comparison).lead == lead[:-1] + ", undecided."


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


def test_slower_but_not_stable_is_undecided_unless_timed_again(
    compare: Invoke, timing: Json, new: Json
) -> None:
    scale(new["results"][0], 1.2)
    new["results"][0]["verdict"] = "noisy"
    result = compare(timing, new, "--json", "-")
    assert (result.exit_code, outcomes(result)) == (0, ["undecided", "same", "same", "same"])
    assert "warning: 1 of 4 undecided" in result.stderr
    assert "give the further timings by --base and --new" in result.stderr
    data = json.loads(result.stdout)
    assert (data["regressions"], data["timings"]) == (0, {"base": 1, "new": 1})
    assert "undecided" in compare(timing, new).stdout.splitlines()[1]
    assert compare(timing, new, "--strict").exit_code == 3
    assert compare(timing, timing, "--strict").exit_code == 0
    assert compare(timing, new, "--strict", "--tolerance", "30").exit_code == 0
    # Of the base it counts alike; and a failure is decided.
    unstable = copy.deepcopy(timing)
    unstable["results"][0]["verdict"] = "throttled"
    new["results"][0]["verdict"] = "stable"
    assert outcomes(compare(unstable, new, "--json", "-"))[0] == "undecided"
    new["results"][0]["trimmed_mean_ms"] = None
    assert compare(unstable, new).exit_code == 3
    # Timed again, both are.
    new["results"][0] |= {"trimmed_mean_ms": 1.2, "verdict": "noisy"}
    again = compare(
        *(timing, new, "--json", "-"), bases=timed(timing, 1.02, 0.99), news=timed(new, 1.01, 1.02)
    )
    assert (again.exit_code, outcomes(again)[0]) == (3, "slower")
    assert json.loads(again.stdout)["timings"] == {"base": 3, "new": 3}


def test_several_timings_give_student_s_interval(compare: Invoke, timing: Json) -> None:
    base, new = timed(timing, 0.9, 1.1), timed(timing, 1.0, 1.3)
    result = compare(base[0], new[0], "--json", "-", bases=base[1:], news=new[1:])
    assert "2 + 2 timings leave 2 degrees of freedom: an interval is 4.3" in result.stderr
    first, second, *_ = json.loads(result.stdout)["results"]
    # Of the logarithms: means 0.1362 apart, pooled deviation 0.1648, t 4.3027 at 2 degrees.
    assert first["change_percent"] == pytest.approx(14.59, abs=0.01)
    assert first["interval_percent"] == pytest.approx([-43.70, 133.22], abs=0.01)
    assert first["new_ms"] / first["base_ms"] == pytest.approx(1.1459, abs=1e-4)
    # Timings that agree exactly leave the noise of their runs, at as few degrees of freedom.
    one = json.loads(compare(timing, timing, "--json", "-").stdout)["results"][1]
    ratio = second["interval_percent"][1] / one["interval_percent"][1]
    assert ratio == pytest.approx(4.303 / 2.201 / 2**0.5, rel=0.01)


def test_an_interval_that_says_nothing_is_finite(compare: Invoke, timing: Json) -> None:
    base, new = timed(timing, 1.0, 1.5), timed(timing, 9.0)
    result = compare(base[0], *new, "--confidence", "99.9999", "--json", "-", bases=base[1:])
    assert (result.exit_code, outcomes(result)[0]) == (0, "same")


def test_timings_that_vary_by_more_than_their_runs_do_not_cry_wolf(timing: Json) -> None:
    draw = random.Random(1)
    timing = timing | {"results": [timing["results"][0] | {"samples_ms": [], "ci95_percent": 1.0}]}

    def outcome(times: float) -> str:
        sides = []
        for factor in (1.0, times):
            factors = [factor * draw.lognormvariate(0, 0.05) for _ in range(4)]
            sides.append(timed(timing, *factors))
        (change,) = evaluation.compare(*sides, tolerance_percent=0).changes
        return change.outcome.value

    of_equals = [outcome(1.0) for _ in range(300)]
    # At 95 %, 2.5 % of the intervals lie above 0 and as many below: 7.5, and 19 hardly by chance.
    assert 0 < of_equals.count("slower") < 19
    assert 0 < of_equals.count("faster") < 19
    of_slower = [outcome(1.2) for _ in range(100)]
    assert of_slower.count("slower") > 90


def test_every_further_timing_is_checked(compare: Invoke, timing: Json, new: Json) -> None:
    (other,) = timed(timing, 1.01)
    del new["results"][1]
    assert_refused(compare(timing, other, news=[new]), "new timing 2 lacks a.onnx, batch 8")
    allowed = compare(timing, other, "--allow", "cases", "--json", "-", news=[new])
    assert len(outcomes(allowed)) == 3
    new = copy.deepcopy(timing)
    new["context"]["spec"]["runs"] = 100
    words = "base timing 2 differs from the base", "setting runs differs: 80 and 100"
    assert_refused(compare(timing, other, bases=[new]), *words)
    new = copy.deepcopy(timing)
    new["context"]["devices"]["pi4"]["info"]["hostname"] = "other"
    assert_refused(compare(timing, other, news=[new]), "new timing 2", "hostname of pi4 differs")
    assert_refused(compare(timing, other, bases=[timing]), "base timings 1 and 2 are the same")
    assert_refused(compare(timing, other, news=[{}]), "new2.json is not a timing")


def test_what_fails_more_often_is_a_regression(compare: Invoke, timing: Json) -> None:
    (base, base2), (new, new2) = timed(timing, 1, 1.01), timed(timing, 1.02, 1.03)
    new2["results"][0] |= {"trimmed_mean_ms": None, "verdict": None}
    result = compare(base, new, "--json", "-", bases=[base2], news=[new2])
    assert (result.exit_code, outcomes(result)[0]) == (3, "failed")
    back = compare(new, base, "--json", "-", bases=[new2], news=[base2])
    assert (back.exit_code, outcomes(back)[0]) == (0, "mended")


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


def test_the_default_time_of_more_models_is_no_difference(
    compare: Invoke, timing: Json, new: Json
) -> None:
    timing = copy.deepcopy(timing)
    timing["context"]["spec"] |= {"precision": 0.02, "max_block_s": 20, "min_rounds": 5}
    new["context"]["spec"] |= {"precision": 0.02, "max_block_s": 24, "min_rounds": 5}
    assert compare(timing, new).exit_code == 0
    new["context"]["spec"] |= {"max_block_s": 30, "min_rounds": 0}
    words = "the setting max_time differs: its default and 30 s"
    assert_refused(compare(timing, new), words, "--allow max_time")
    result = compare(timing, new, "--allow", "max_time")
    assert result.exit_code == 0
    assert words in result.stderr


def test_a_timing_from_before_visits_varied_compares(
    compare: Invoke, timing: Json, new: Json
) -> None:
    old = json.loads(json.dumps(timing))
    for name in ("min_rounds", "short_visits"):
        del old["context"]["spec"][name]
    for result in old["results"]:
        del result["runs_per_visit"]
    assert compare(old, new).exit_code == 0
    assert compare(new, old).exit_code == 0
    for result in new["results"]:
        result["runs_per_visit"] = 1
    assert compare(old, new).exit_code == 0


def test_gpus_count_where_they_were_used(compare: Invoke, timing: Json, new: Json) -> None:
    new["context"]["devices"]["pi4"]["info"]["state"]["gpus"] = [{"name": "a GPU"}]
    assert compare(timing, new).exit_code == 0
    base = copy.deepcopy(timing)
    for data in (base, new):  # as files are from before agents had a table of providers
        data["context"]["spec"] |= {"provider": "cuda", "tf32": False}
        info = data["context"]["devices"]["pi4"]["info"]
        info["providers"] = ["cpu", "cuda"]
        del info["provider_table"]
    assert_refused(compare(base, new), "gpu of pi4", "a GPU", "--allow gpu")


def test_options_of_a_provider_count_with_their_defaults(
    compare: Invoke, timing: Json, new: Json
) -> None:
    base = copy.deepcopy(timing)
    shared = {"name": "cpu", "runtime_name": "", "identity": {"wheel": "2"}, "may_fall_back": False}
    spin = {"name": "spin", "type": "bool", "default": "1", "help": "", "choices": []}
    for data, options in ((base, []), (new, [spin])):
        table = [{**shared, "options": options}]
        data["context"]["devices"]["pi4"]["info"]["provider_table"] = table
    assert compare(base, new).exit_code == 0, "an option that an older agent lacks"
    new["context"]["spec"]["provider_options"] = {"spin": "1"}
    assert compare(base, new).exit_code == 0, "its default, stated"
    new["context"]["spec"]["provider_options"] = {"spin": "0"}
    assert_refused(compare(base, new), "the option spin of cpu differs on pi4: 1 and 0")
    assert compare(base, new, "--allow", "spin").exit_code in (0, 2)
    assert compare(new, base, "--allow", "spin").exit_code == 0
    new["context"]["spec"]["provider_options"] = {}
    new["context"]["devices"]["pi4"]["info"]["provider_table"][0]["identity"] = {"wheel": "3"}
    assert_refused(compare(base, new), "wheel of pi4 differs: 2 and 3", "--allow wheel")


def test_an_option_that_only_the_new_timing_has_can_be_allowed(
    compare: Invoke, timing: Json, new: Json
) -> None:
    new["context"]["spec"]["provider_options"] = {"cache_dir": "blobs"}
    assert_refused(compare(timing, new), "cache_dir", "--allow cache_dir")
    assert compare(timing, new, "--allow", "cache_dir").exit_code in (0, 2)


def test_all_options_of_a_provider_or_a_session_can_be_allowed(
    compare: Invoke, timing: Json, new: Json
) -> None:
    spec = new["context"]["spec"]
    spec["provider_options"] = {"device_type": "CPU", "runs": "1"}
    refused = compare(timing, new, "--allow", "session_options")
    assert_refused(refused, "--allow device_type,runs")
    refused = compare(timing, new, "--allow", "provider_options")
    assert_refused(refused, "--allow runs")  # an option with the name of a setting
    spec["provider_options"] = {"device_type": "CPU", "num_streams": "1"}
    told = compare(timing, new, "--allow", "provider_options")
    assert told.exit_code == 0, told.output
    assert "the option num_streams of cpu differs" in told.stderr
    spec["session_options"] = {"session.x": "1"}
    spec["runs"] += 1
    refused = compare(timing, new, "--allow", "provider_options")
    assert_refused(refused, "--allow session_options,runs")
    allowed = "provider_options,session_options,runs"
    assert compare(timing, new, "--allow", allowed).exit_code == 0


def test_cases_that_one_lacks(compare: Invoke, timing: Json, new: Json) -> None:
    del new["results"][1]
    assert_refused(compare(timing, new), "only the base timing has a.onnx, batch 8")
    assert_refused(compare(new, timing), "only the new timing has a.onnx, batch 8")
    result = compare(timing, new, "--allow", "cases")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 4
    new["results"] = []
    assert_refused(compare(timing, new, "--allow", "cases"), "no case in common", "nothing")


def test_all_differences_are_named_at_once(compare: Invoke, timing: Json, new: Json) -> None:
    new["context"]["spec"] |= {"threads": 2, "opt_level": "basic"}
    new["context"]["devices"]["pi4"]["info"]["runtime"] = "fake 2"
    del new["results"][1]
    assert_refused(
        compare(timing, new),
        "the setting opt_level differs: all and basic; the setting threads differs: 1 and 2; "
        "runtime of pi4 differs: fake 1 and fake 2; only the base timing has a.onnx, batch 8, "
        "x:8x2: --allow opt_level,threads,runtime,cases compares them anyway",
    )
    allowed = compare(timing, new, "--allow", "threads,opt_level,runtime,cases")
    assert allowed.exit_code == 0, allowed.output
    assert_refused(
        compare(timing, new, "--allow", "threads,runtime"), "--allow opt_level,cases compares"
    )
    new["context"]["spec"] = timing["context"]["spec"]
    new["context"]["devices"]["pi4"]["info"]["runtime"] = "fake 1"
    del new["results"][1:]
    for number in range(4):
        extra = copy.deepcopy(new["results"][0])
        new["results"].append({**extra, "model": f"{number}.onnx"})
    assert_refused(compare(timing, new), "only the base timing has b.onnx, batch 1", "(and 4 more)")


def test_the_help_lists_what_may_differ() -> None:
    text = " ".join(CliRunner().invoke(app, ["compare", "--help"]).stdout.split())
    settings = {*MeasureSpec().to_json()} - {*evaluation._OF_MAX_TIME}
    settings = {name for name in settings if "visit" not in name}  # no option sets them
    more = (evaluation.CASES, evaluation.INPUTS, evaluation.RAW, evaluation.MAX_TIME)
    words = set(re.findall(r"\w+", text))
    assert words >= {*settings, *evaluation.FACTS, *more}


def test_without_an_interval_nothing_is_said(compare: Invoke, timing: Json, new: Json) -> None:
    new["results"][0]["ci95_percent"] = None
    assert_refused(compare(timing, new), "a.onnx, batch 1", "too few runs", "--runs")


def test_a_device_that_failed(compare: Invoke, timing: Json, new: Json) -> None:
    new["context"]["devices"]["pi4"] |= {"error": "nobody answers", "info": None}
    assert_refused(compare(timing, new), "new timing failed on pi4: nobody answers")


def test_other_metrics_are_compared_and_limited(
    compare: Invoke, timing: Json, new: Json, tmp_path: Path
) -> None:
    before = timing["results"][0]["peak_rss_bytes"]
    new["results"][0]["peak_rss_bytes"] = 2 * before
    done = compare(timing, new, "--metric", "peak_rss_bytes")
    assert done.exit_code == 0, "without a limit it is no regression"
    assert "memory" in done.stdout.splitlines()[0]
    assert f"50 MB to {2 * before / 1e6:.0f} MB (+100.0 %)" in done.stdout

    done = compare(timing, new, "--limit", "peak_rss_bytes=60MB", "--json", "-")
    assert done.exit_code == 3
    first, second, *_ = json.loads(done.stdout)["results"]
    peak = first["metrics"]["peak_rss_bytes"]
    assert [peak[name] for name in ("unit", "base", "new")] == ["bytes", before, 2 * before]
    assert [peak[name] for name in ("change_percent", "limit", "over_limit")] == [100, 60e6, True]
    assert not second["metrics"]["peak_rss_bytes"]["over_limit"]
    assert {"p95_ms", "load_ms", "throughput_per_s"} <= second["metrics"].keys()
    again = evaluation.Comparison.from_json(json.loads(done.stdout))
    assert json.loads(json.dumps(again.to_json())) == json.loads(done.stdout)
    shown = compare(timing, new, "--limit", "peak_rss_bytes=60MB", "--format", "github").stdout
    assert f"memory {2 * before / 1e6:.0f} MB over its limit of 60 MB" in shown
    assert shown.count("::error") == 1
    # More is better: the slow model has too few inferences a second.
    done = compare(timing, timing, "--limit", "throughput_per_s=700", "--json", "-")
    over = [
        r["metrics"]["throughput_per_s"]["over_limit"] for r in json.loads(done.stdout)["results"]
    ]
    assert over == [False, False, True, True]


def test_metrics_to_show_may_be_separated_by_commas(compare: Invoke, timing: Json) -> None:
    apart = compare(timing, timing, "--metric", "p95_ms", "--metric", "peak_rss_bytes")
    assert compare(timing, timing, "--metric", "p95_ms,peak_rss_bytes").stdout == apart.stdout
    assert "p95_ms" in apart.stdout


def test_a_metric_that_there_is_not_is_refused(compare: Invoke, timing: Json) -> None:
    assert_refused(
        compare(timing, timing, "--limit", "energy_mj=1"),
        "--limit: unknown metric 'energy_mj'",
        "choose ",
    )
    assert_refused(compare(timing, timing, "--limit", "latency_ms=1"), "--max-latency")
    assert_refused(compare(timing, timing, "--limit", "p95_ms=1MB"), "METRIC=LIMIT")
    assert_refused(compare(timing, timing, "--limit", "p95_ms=nan"), "METRIC=LIMIT")
    assert_refused(
        compare(timing, timing, "--metric", "runs"),
        "--metric runs",
        "no better direction",
        "p95_ms",
    )
    suggested = "unknown metric 'peak_rss': did you mean 'peak_rss_bytes'? choose "
    assert_refused(compare(timing, timing, "--metric", "peak_rss"), f"--metric: {suggested}")
    assert_refused(compare(timing, timing, "--limit", "peak_rss=1MB"), f"--limit: {suggested}")
    switches = {"key": "switches", "unit": "", "about": "context switches"}
    own = {**timing, "context": copy.deepcopy(timing["context"])}
    for device in own["context"]["devices"].values():
        device["info"] = {**(device["info"] or {}), "metrics": [switches]}
    refused = compare(own, own, "--metric", "switches")
    assert_refused(refused, "--metric switches", "no better direction", "better=Better.LOWER")


def test_a_comparison_of_an_older_version_is_read(compare: Invoke, timing: Json) -> None:
    data = json.loads(compare(timing, timing, "--json", "-").stdout)
    for result in data["results"]:
        del result["metrics"]
    assert all(c.metrics == () for c in evaluation.Comparison.from_json(data).changes)


def test_a_metric_of_a_device_is_compared(compare: Invoke, timing: Json, new: Json) -> None:
    about = {"key": "energy_mj", "unit": "mJ", "about": "energy", "better": "lower", "more": 1}
    for data, energy in ((timing := copy.deepcopy(timing), 4.0), (new, 5.0)):
        data["context"]["devices"]["pi4"]["info"]["metrics"] = [about]
        data["results"][0]["metrics"] = {"energy_mj": energy}
    done = compare(timing, new, "--metric", "energy_mj", "--limit", "energy_mj=4.5mJ")
    assert done.exit_code == 3
    assert "4.0000 mJ to 5.0000 mJ (+25.0 %)" in done.stdout
    assert "energy_mj 5.0000 mJ over its limit of 4.5000 mJ" in done.stdout


def with_energy(data: Json, energy_mj: float, verdict: str = "stable") -> Json:
    """A timing whose first model takes this energy, known to 2 %."""
    data = copy.deepcopy(data)
    about = {"key": "energy_mj", "unit": "mJ", "about": "energy", "better": "lower"}
    data["context"]["devices"]["pi4"]["info"]["metrics"] = [about]
    data["results"][0]["metrics"] = {"energy_mj": energy_mj, "energy_ci95_percent": 2.0}
    data["results"][0]["energy"] = {"verdict": verdict, "gross_mj": [energy_mj] * 12}
    return data


def test_more_energy_is_a_regression(compare: Invoke, timing: Json, tmp_path: Path) -> None:
    base = with_energy(timing, 4.0)
    done = compare(base, with_energy(timing, 4.4), "--json", tmp_path / "out.json")
    assert done.exit_code == 3
    assert "energy_mj 4.0000 mJ to 4.4000 mJ (+10.0 %, +6.9 to +13.2 %)" in done.stdout
    assert "or take more energy" in done.stderr
    data = json.loads((tmp_path / "out.json").read_text())
    (change,) = evaluation.Comparison.from_json(data).changes[0].metrics_regressed
    assert change.interval_percent == pytest.approx((6.9, 13.2), abs=0.1)
    within_noise = compare(base, with_energy(timing, 4.1))
    assert within_noise.exit_code == 0, within_noise.output
    less = compare(with_energy(timing, 4.4), base, "--metric", "energy_mj")
    assert less.exit_code == 0, less.output
    unknown = compare(base, with_energy(timing, 4.4, "unresolved"))
    assert unknown.exit_code == 0, unknown.output


def test_other_sensors_and_unresolved_energies_are_warned_of(compare: Invoke, timing: Json) -> None:
    base, new = with_energy(timing, 4.0), with_energy(timing, 4.0)
    for data in (base, new):
        data["results"][0]["energy"] |= {"source": "RAPL", "covers": "package"}
    assert "warning: " not in compare(base, new).stderr
    new["results"][0]["energy"] |= {"covers": "whole device", "verdict": "unresolved"}
    warned = compare(base, new).stderr
    assert "new.json: 1 of 1 energies are unresolved: their changes are unreliable" in warned
    assert "new.json: energies by RAPL (whole device), those of " in warned
    assert "base.json by RAPL (package): they are not comparable" in warned


def test_several_timings_show_how_energies_vary(
    compare: Invoke, timing: Json, tmp_path: Path
) -> None:
    files = {}
    for name, energy_mj in (("b2", 4.02), ("n2", 4.42), ("far", 6.0)):
        files[name] = tmp_path / f"{name}.json"
        files[name].write_text(json.dumps(with_energy(timing, energy_mj)))
    pair = with_energy(timing, 4.0), with_energy(timing, 4.4)
    agreeing = compare(*pair, "--base", files["b2"], "--new", files["n2"])
    assert agreeing.exit_code == 3, agreeing.output
    scattered = compare(*pair, "--base", files["b2"], "--new", files["far"])
    assert scattered.exit_code == 0, scattered.output


def test_files_that_are_no_timings(compare: Invoke, timing: Json, tmp_path: Path) -> None:
    assert_refused(compare(timing, {"models": []}), "new.json is not a timing")
    assert_refused(compare(timing | {"schema_version": 9}, timing), "base.json", "version 9")
    assert_refused(compare(timing, {**timing, "context": {}}), "a timing is incomplete")
    (tmp_path / "bad.json").write_bytes(b"\xff{")
    base = str(tmp_path / "base.json")
    for other, words in (("bad.json", "is not JSON"), ("none.json", "cannot read")):
        assert_refused(CliRunner().invoke(app, ["compare", base, str(tmp_path / other)]), words)


@pytest.mark.parametrize("field", ["trimmed_mean_ms", "ci95_percent", "block_ci95_percent"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "fast"])
def test_a_number_that_is_none_is_named(
    compare: Invoke, timing: Json, new: Json, field: str, value: object
) -> None:
    new["results"][2][field] = value
    model = new["results"][2]["model"]
    assert_refused(compare(timing, new), f"new.json: {field} of {model} is {value!r}")
    assert_refused(compare(new, timing), f"base.json: {field} of {model} is {value!r}")
    with pytest.raises(UsageError, match=f"^new timing: {field} of {model} is "):
        evaluation.compare(timing, new)


@pytest.mark.parametrize("percent", [3_000.0, 80_000.0, 1e300])
def test_one_wide_interval_per_side_is_finite(
    compare: Invoke, timing: Json, new: Json, percent: float
) -> None:
    new["results"][0]["ci95_percent"] = percent
    result = compare(timing, new, "--json", "-")
    assert (result.exit_code, outcomes(result)[0]) == (0, "same")
    low, high = json.loads(result.stdout)["results"][0]["interval_percent"]
    assert -100 <= low < 0 < high < 1e12


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--confidence", "100"], "--confidence 100"),
        (["--confidence", "0.95"], "--confidence 0.95: give a percentage"),
        (["--tolerance", "-1"], "--tolerance -1"),
        (["--tolerance", "nan"], "--tolerance nan"),
        (["--allow", "weather"], "--allow: unknown difference 'weather'"),
        (["--json", "/"], "--json / is a folder"),
    ],
)
def test_impossible_options(compare: Invoke, timing: Json, options: list[str], words: str) -> None:
    assert_refused(compare(timing, timing, *options), words)


def test_a_result_does_not_overwrite_a_timing(
    compare: Invoke, timing: Json, tmp_path: Path
) -> None:
    base = tmp_path / "base.json"
    assert_refused(compare(timing, timing, "--json", str(base)), "would overwrite", "another file")
    assert json.loads(base.read_text()) == timing
    for output in (base, tmp_path / "same.json"):
        output.exists() or output.symlink_to(base)
        result = CliRunner().invoke(app, ["report", str(base), "--output", str(output)])
        assert_refused(result, "would overwrite")
    assert json.loads(base.read_text()) == timing


def test_a_timing_given_twice_is_refused(timing: Json, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(timing))
    assert_refused(CliRunner().invoke(app, ["compare", str(path), str(path)]), "given twice")


def test_no_timing_is_wrong_usage_for_a_report_as_well(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xffmodel,device")
    output = str(tmp_path / "m.html")
    result = CliRunner().invoke(app, ["report", str(path), "--output", output])
    assert_refused(result, "is not JSON")
    assert "codec" not in result.stderr


def test_the_same_inputs_compare_however_they_were_asked_for(
    compare: Invoke, timing: Json, new: Json
) -> None:
    for entry in new["results"]:
        entry["case"]["batch"] = None
        entry["case"]["shapes"] = {fed["name"]: list(fed["dims"]) for fed in entry["inputs"]}
    result = compare(timing, new, "--json", "-")
    assert result.exit_code == 0, result.output
    assert outcomes(result) == ["same"] * 4
    for entry in new["results"]:
        entry["inputs"][0]["dims"][0] += 100
    assert_refused(compare(timing, new), "the timings have no case in common", "batch 1, ")


# Files of older versions, and raw ones


def older(timing: Json) -> Json:
    """Return what a version wrote that knew nothing of a usual pace."""
    old = copy.deepcopy(timing)
    old["schema_version"] = 2
    for name in ("raw", "spread_s"):
        del old["context"][name]
    for name in ("references", "sessions"):
        del old["context"]["spec"][name]
    for result in old["results"]:
        for name in ("raw_ms", "block_ci95_percent", "shift_percent", "weight_bytes", "blocks"):
            del result[name]
        del result["session_runs"]
    return old


def raw(timing: Json) -> Json:
    return {**timing, "context": {**timing["context"], "raw": True}}


def test_files_of_the_version_before_still_compare(compare: Invoke, timing: Json) -> None:
    base, new = (older(data) for data in timed(timing, 1.0, 1.5))
    result = compare(base, new, "--json", "-")
    assert result.exit_code == 3
    assert outcomes(result) == ["slower", "same", "same", "same"]
    several = compare(base, new, "--json", "-", bases=[older(timed(timing, 1.01)[0])])
    assert outcomes(several)[1:] == ["same"] * 3


def test_raw_latencies_compare_with_raw_ones_alone(compare: Invoke, timing: Json) -> None:
    for base, new, name in (
        (raw(timing), timing, "base"),
        (timing, raw(timing), "new"),
        (older(timing), timing, "base"),
    ):
        refused = compare(base, new)
        assert_refused(refused, f"only the {name} timing has latencies as measured", "time both")
        assert "--allow raw compares them anyway" in refused.stderr
        allowed = compare(base, new, "--allow", "raw")
        assert allowed.exit_code == 0
        assert "has latencies as measured" in allowed.stderr
    assert compare(raw(timing), raw(timing)).exit_code == 0
    assert compare(older(timing), raw(timing)).exit_code == 0, "older files are as measured"


def test_one_timing_per_side_is_compared_by_intervals_at_any_time(
    compare: Invoke, timing: Json
) -> None:
    """Of several, the spread between them counts, and what runs and sessions leave."""
    wide = copy.deepcopy(timing)
    for result in wide["results"]:
        result["ci95_percent"] = 10.0
    (new,) = timed(wide, 1.05)
    assert outcomes(compare(wide, new, "--json", "-"))[0] == "same"
    more = {"bases": timed(wide, 1.001, 0.999), "news": timed(wide, 1.051, 1.049)}
    assert outcomes(compare(wide, new, "--json", "-", **more))[0] == "slower"


def test_blocks_tell_how_well_an_interval_is_known(compare: Invoke, timing: Json) -> None:
    """Few blocks have few degrees of freedom: at 99 % their interval grows by more."""

    def width(data: Json) -> float:
        result = compare(data, copy.deepcopy(data), "--confidence", "99", "--json", "-")
        low, high = json.loads(result.stdout)["results"][0]["interval_percent"]
        return float(high - low)

    spread = copy.deepcopy(timing)
    for result in spread["results"]:
        result["blocks"] = result["blocks"] * 3
    assert width(spread) > 1.2 * width(timing)


# Execution providers and settings of sessions


def of_providers(timing: Json, *names: str) -> Json:
    """As of several providers, each of which takes as long."""
    data = copy.deepcopy(timing)
    data["results"] = [
        {**r, "provider": name, "case": {**r["case"], "provider": name}, "provider_options": {}}
        for r in timing["results"]
        for name in names
    ]
    table = data["context"]["devices"]["pi4"]["info"]["provider_table"]
    (cpu,) = table
    table[:] = [{**cpu, "name": name, "identity": {"version": name}} for name in names]
    data["context"]["spec"]["provider"] = names[0]
    return data


def test_providers_are_compared_each_with_itself(compare: Invoke, timing: Json) -> None:
    base = of_providers(timing, "cpu", "npu")
    new = copy.deepcopy(base)
    for result in new["results"]:
        if result["provider"] == "npu":
            scale(result, 1.5)
            result["ci95_ms"] = [1.5 * end for end in result["ci95_ms"]]
    done = compare(base, new, "--json", "-")
    changes = {
        (r["case"]["provider"], r["outcome"] in ("slower", "undecided"))
        for r in json.loads(done.stdout)["results"]
    }
    assert changes == {("cpu", False), ("npu", True)}
    assert ", npu " in compare(base, new).stdout


def test_a_provider_is_not_compared_with_another(compare: Invoke, timing: Json) -> None:
    both, npu = of_providers(timing, "cpu", "npu"), of_providers(timing, "npu")
    assert_refused(compare(both, npu), "only the base timing has a.onnx", ", cpu", "--allow cases")
    common = compare(both, npu, "--allow", "cases", "--json", "-")
    told = json.loads(common.stdout)["results"]
    assert [r["case"]["provider"] for r in told] == ["npu"] * len(timing["results"])
    assert_refused(compare(both, of_providers(timing, "tpu", "gpu")), "no case in common")
    assert_refused(
        compare(of_providers(timing, "cpu"), npu), "the setting provider differs: cpu and npu"
    )
    anyway = compare(of_providers(timing, "cpu"), npu, "--allow", "provider,version")
    assert anyway.exit_code == 0, anyway.output


def test_options_and_versions_count_for_each_provider(compare: Invoke, timing: Json) -> None:
    base, new = of_providers(timing, "cpu", "npu"), of_providers(timing, "cpu", "npu")
    for result in new["results"]:
        if result["provider"] == "npu":
            result["provider_options"] = {"a": "1"}
    assert_refused(compare(base, new), "the option a of npu differs on pi4: not given and 1")
    assert compare(new, base, "--allow", "a").exit_code == 0
    other = of_providers(timing, "cpu", "npu")
    other["context"]["devices"]["pi4"]["info"]["provider_table"][1]["identity"]["version"] = "2"
    assert_refused(compare(base, other), "version of pi4 differs: npu and 2", "--allow version")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("opt_level", "basic", "the setting opt_level differs: all and basic"),
        ("execution_mode", "parallel", "the setting execution_mode differs"),
        ("session_options", {"session.x": "1"}, "the setting session_options differs"),
        ("free_dims", {"N": 8}, "the setting free_dims differs"),
    ],
)
def test_session_settings_count_and_older_files_have_the_defaults(
    compare: Invoke, timing: Json, new: Json, name: str, value: object, said: str
) -> None:
    old = copy.deepcopy(timing)
    del old["context"]["spec"][name]
    assert compare(old, new).exit_code == 0
    new["context"]["spec"][name] = value
    assert_refused(compare(old, new), said, f"--allow {name}")
    assert compare(old, new, "--allow", name).exit_code == 0
