"""A campaign over a grid of contexts, and what is asked of it in others."""

from __future__ import annotations

import json
import math
import pickle
import re
import shlex
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from esm_host import Settings, load_run
from esm_host.cli.app import app
from esm_host.errors import GuessWarning, UsageError
from esm_host.report.campaign import _measured, campaign_page
from esm_host.search.record import load_search
from esm_host.sources.registry import describe, describe_settings
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.messages import Model
from tests.host.cli.test_cli import assert_refused
from tests.host.fake_campaign import number_blocks

SMALL = [
    *("--space", "lm-decode", "--width-mult", "0.125", "--context", "past=64,128,256"),
    *("--initial", "20", "--max-models", "40", "--bins", "2", "--block-size", "10"),
    *("--runs", "5", "--verify", "0", "--target-accuracy", "100"),
]


def cached(model: Model) -> float:
    """A latency that is affine in the weights and in the cache."""
    assert isinstance(model.data, bytes)
    graph = onnx.load_from_string(model.data).graph
    weights = sum(math.prod(tensor.dims) for tensor in graph.initializer)
    read = sum(
        math.prod(d.dim_value for d in x.type.tensor_type.shape.dim)
        for x in graph.input
        if x.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    )
    return 0.5 + weights / 1e7 + read / 1e5


def truth(space: SearchSpace, architecture: Architecture) -> float:
    return cached(Model(architecture.key, space.build(architecture)))


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    from esm_host.search.methods import with_pymoo

    made = with_pymoo.PymooSearch.__init__

    def small(self, algorithm="nsga2", population=30, generations=4, seed=0):
        made(self, algorithm, population, generations, seed)

    monkeypatch.setattr(with_pymoo.PymooSearch, "__init__", small)
    monkeypatch.setattr(devices, "connect", lambda device: FakeProfiler(cached, noise=0.01))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("contexts") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: FakeProfiler(cached, noise=0.01))
        patch.setattr("esm_host.workflows.profile._draw", lambda folder, run: None)
        number_blocks(patch)
        result = esm_host("profile", *SMALL, "--run", run)
    assert result.exit_code == 3, result.output
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def results_of(result: Result) -> list[Mapping[str, object]]:
    assert result.exit_code == 0, result.output
    found: list[Mapping[str, object]] = json.loads(result.stdout)["results"]
    return found


def test_the_grid_is_measured_and_kept(finished: Path) -> None:
    run = load_run(finished)
    assert run.settings.contexts == {"past": (64, 128, 256)}
    assert Settings.from_json(json.loads(json.dumps(run.settings.to_json()))) == run.settings
    frame = run.measurements()
    assert {*frame["past"]} == {64, 128, 256}
    assert frame["architecture"].str.contains(r"^\d+ past: d").all()
    assert describe(run.space) == "lm-decode, width x0.125, past 64/128/256"
    assert describe_settings(run.settings) == describe(run.space)


def test_the_report_counts_architectures_without_contexts(finished: Path) -> None:
    run = load_run(finished)
    count = f"{run.space.count():.1e}"
    assert campaign_page(run).lead.startswith(f"40 architectures of {count} measured in 3 contexts")
    again = run.space.read(run.measurements()["architecture"][0])
    other = next(past for past in (64, 128, 256) if again.contexts != (("past", past),))
    frame = pd.DataFrame({"architecture": [again.to_text(), again.at(past=other).to_text()]})
    assert _measured(run.space, frame) == f"1 architecture of {count} measured in 2 contexts"


def test_the_report_tells_the_two_errors_of_chosen_models_apart(finished: Path) -> None:
    run = load_run(finished)
    assert run.settings.chooses
    page = campaign_page(run)
    accuracy = run.accuracy()
    last = accuracy[(accuracy["round"] == accuracy["round"].max()) & (accuracy["bin"] == "all")]
    error = f"{100 - last['accuracy_percent'].iloc[0]:.1f} %"
    assert page.lead.endswith(f"with a mean error of {error}, as estimated for random ones.")
    chart = next(section for section in page.sections if section.id == "predictions").parts[0]
    assert f"The mean error estimated for random architectures is {error}." in chart.summary


@pytest.mark.parametrize("past", [96, 192, 320])
def test_one_predictor_knows_contexts_between_and_beyond(finished: Path, past: int) -> None:
    run = load_run(finished)
    architectures = run.sample(20, seed=5, contexts={"past": past})
    assert {a.contexts for a in architectures} == {(("past", past),)}
    expected = np.array([truth(run.space, a) for a in architectures])
    errors = np.abs(run.predict(architectures) / expected - 1)
    assert errors.mean() < 0.05


def test_predict_places_networks_in_the_context_that_is_given(run: Path, tmp_path: Path) -> None:
    names = ["d512; 8*h8g2f1536", "64 past: d512; 8*h8g2f1536"]
    first, second = results_of(
        esm_host("predict", run, *names, "--context", "past=1500", "--json", "-")
    )
    assert first == second
    assert first["architecture"]["contexts"] == {"past": 1500}  # type: ignore[index]
    (tmp_path / "given.json").write_text(json.dumps({"results": [first]}))
    (again,) = results_of(
        esm_host(
            "predict", run, "-a", tmp_path / "given.json", "--context", "past=64", "--json", "-"
        )
    )
    (alone,) = results_of(esm_host("predict", run, names[1], "--json", "-"))
    assert again == alone
    assert again["latency_ms"] < first["latency_ms"]  # type: ignore[operator]
    sampled = results_of(
        esm_host("predict", run, "--sample", 3, "--context", "past=96", "--json", "-")
    )
    assert all(each["architecture"]["contexts"] == {"past": 96} for each in sampled)  # type: ignore[index]


KNOWN = "the contexts of lm-decode are past, batch"
REFUSED = {
    "predict RUN --sample 2 --context pst=9": "unknown context 'pst': did you mean "
    "'past'? the space has past",
    "predict RUN --sample 2 --context batch=9": "context 'batch' has one value here: measure "
    "with several to vary it; varied are past",
    "predict RUN --sample 2 --context past=far": "--context past=far: give whole numbers of 1 or "
    f"more; {KNOWN}",
    "predict RUN --sample 2 --context past=1,2": "--context past=1,2: give one value",
    "predict RUN --sample 2 --context past": "--context 'past': give NAME=VALUE, such as past=512",
    "predict RUN --sample 2 --context past=2561": "past 2561 is more than 10 times beyond the "
    "measured 64, 128, 256 of RUN: profile a campaign with --context past=64,128,256,2561",
    "predict RUN '6 past: d512; 8*h8g2f1536'": "past 6 is more than 10 times beyond the measured "
    "64, 128, 256 of RUN: profile a campaign with --context past=6,64,128,256",
    "search RUN --context past=2561": "past 2561 is more than 10 times beyond the measured 64, ",
    "predict RUN --against RUN --context past=1": "--context cannot be combined with --against",
    "predict RUN 'd512; 8*h8g2f1536'": "the architecture has no past: begin it with '256 past: ', "
    "or with another value, or give --context past=256",
    "export RUN -a FILE -o OUT": "architecture 1: the architecture has no past: begin it with "
    "'256 past: ', or with another value, or give --context past=256",
    "export resnet -a JSON -o OUT": "the architecture has a context batch; resnet has none: leave "
    "it out, or give --context batch=4",
    "search RUN --context pst=9": "unknown context 'pst': did you mean 'past'? the space has past",
    "search RUN --measure 0": "several contexts, past of 64, 128, 256: give --context past=256",
    "export RUN -a FILE -o OUT --context pst=9": "the space has past",
    "export lm-decode -a FILE -o OUT --context pst=9": "choose past, batch",
    "profile --space lm-decode --run OUT --context pst=9": "unknown context 'pst': did you mean "
    "'past'? choose past, batch",
    "profile --space resnet --run OUT --context past=9": "unknown context 'past': choose batch, "
    "resolution",
    "profile --space resnet --run OUT --context batch=many": "--context batch=many: give whole "
    "numbers of 1 to 4096; the contexts of resnet are batch, resolution",
    "profile --space resnet --run OUT --context batch=1,2 --batch 2": "--batch 2 and --context "
    "batch: give one of them",
    "lookup --space lm-decode --context pst=9": "choose past, batch",
    "transfer --space lm-decode --run OUT --context pst=9": "choose past, batch",
    "profile --run RUN --resume --context past=9": "measured with --context past=64,128,256, not "
    "--context past=9",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_refused_is_one_line(run: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "file.txt").write_text("d512; 8*h8g2f1536\n")
    placed = load_space("resnet").extremes()[0].at(batch=4)
    (tmp_path / "file.json").write_text(json.dumps(placed.to_json()))
    named = {"RUN": run, "OUT": tmp_path / "out", "FILE": tmp_path / "file.txt"}
    named["JSON"] = tmp_path / "file.json"
    arguments = [named.get(word, word) for word in shlex.split(command)]
    assert_refused(esm_host(*arguments), 2, REFUSED[command].replace("RUN", str(run)))


def test_a_prediction_far_from_the_grid_is_a_guess(run: Path) -> None:
    guess = (
        "predictions at past {0} are a guess, far from the measured 64, 128, 256 of "
        f"{run}: profile a campaign with {{1}} past={{2}}"
    )
    grid = "64,128,256"
    for value, wanted in ((385, f"{grid},385"), (31, f"31,{grid}")):
        text = guess.format(value, "contexts", wanted)
        architectures = load_run(run).sample(2, contexts={"past": value})
        for function in (load_run(run).predict, load_run(run).predict_interval):
            with pytest.warns(GuessWarning, match=re.escape(text)):
                function(architectures)
        with pytest.warns(GuessWarning, match=re.escape(text)):
            pickle.loads(pickle.dumps(load_run(run).latency()))(architectures[0])
        text = f"warning: {guess.format(value, '--context', wanted)}\n"
        place = ("--context", f"past={value}")
        assert text == esm_host("predict", run, "--sample", 2, *place, "--interval", 90).stderr
        assert text in esm_host("search", run, *place, "--measure", 0, "-o", run / wanted).stderr


def test_a_prediction_near_the_grid_is_not_a_guess(run: Path) -> None:
    found = load_run(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuessWarning)
        for past in (32, 384):
            found.predict(found.sample(2, contexts={"past": past}))


def test_a_value_that_a_search_measured_is_no_guess(run: Path) -> None:
    place = ("--context", "past=1024")
    assert "guess" in esm_host("search", run, *place, "--measure", 2, "--batch", 2).stderr
    assert not esm_host("predict", run, "--sample", 2, *place).stderr


def test_an_infinite_prediction_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_run(run)
    monkeypatch.setitem(vars(found.latency()), "_predict", lambda x: np.full(len(x), np.inf))
    with pytest.raises(UsageError, match="the prediction of '64 past: "):
        found.predict(found.sample(1, contexts={"past": 64}))


def test_search_measures_in_the_context_that_is_given(run: Path) -> None:
    search = ("search", run, "--context", "past=320", "--measure", 4, "--batch", 2)
    result = esm_host(*search)
    assert result.exit_code == 0, result.output
    folder = run / "search"
    found = json.loads((folder / "front.json").read_text())
    assert found["settings"]["contexts"] == {"past": 320}
    assert found["measured"] == 4
    assert found["results"]
    space = load_run(run).space
    for row in found["results"]:
        architecture = Architecture.from_json(row["architecture"])
        assert architecture.contexts == (("past", 320),)
        assert row["latency_ms"] == pytest.approx(truth(space, architecture), rel=0.05)
    record = load_search(folder)
    assert record.measured()["architecture"].str.startswith("320 past: ").all()
    assert len(record.measured()) == 4
    frame = load_run(run).measurements()
    assert (frame["past"] == 320).sum() == 4
    assert len(frame) == 44
    assert esm_host(*search, "--resume").exit_code == 2
    resumed = esm_host("search", run, "-o", folder, "--resume", "--measure", 6)
    assert resumed.exit_code == 0, resumed.output
    assert len(load_search(folder).measured()) == 6
    assert esm_host("report", folder, "--output", run / "search.html").exit_code == 0


def test_a_campaign_goes_on_after_it_was_searched_elsewhere(run: Path) -> None:
    assert esm_host("search", run, "--context", "past=320", "--measure", 2).exit_code == 0
    result = esm_host("profile", "--run", run, "--resume", "--max-models", 50)
    assert result.exit_code == 3, result.output
    frame = load_run(run).measurements()
    assert {*frame.loc[frame["round"] >= 0, "past"]} == {64, 128, 256}


def test_exported_networks_are_in_the_context_that_is_given(run: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "file.txt", tmp_path / "out"
    file.write_text("64 past: d512; 8*h8g2f1536\n")
    result = esm_host(
        "export", run, "-a", file, "-o", out, "--format", "json", "--context", "past=7"
    )
    assert result.exit_code == 0, result.output
    index = json.loads((out / "architectures.json").read_text())
    assert index["results"][0]["architecture"]["contexts"] == {"past": 7}


def test_an_exported_network_keeps_values_of_its_own_context_only(tmp_path: Path) -> None:
    architecture = load_space("lm-decode").read("64 past: d512; 8*h8g2f1536")
    others = {"latency_ms": 3.5, "pi4.energy_mj": 2, "flops": 1e9, "accuracy": 71.5}
    file = tmp_path / "file.json"
    file.write_text(json.dumps([{"architecture": architecture.to_json(), **others}]))
    for values, kept in (
        (["past=64"], others),
        (["past=64", "batch=1"], {"accuracy": 71.5}),
        (["past=128"], {"accuracy": 71.5}),
    ):
        out = tmp_path / "-".join(values)
        place = ["--format", "json", *(word for each in values for word in ("--context", each))]
        result = esm_host("export", "lm-decode", "-a", file, "-o", out, *place)
        assert result.exit_code == 0, result.output
        (row,) = json.loads((out / "architectures.json").read_text())["results"]
        assert {name: row[name] for name in row if name in others} == kept


def test_batch_is_a_context_of_any_space(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [
        *("--space", "nasbench201", "--width-mult", "0.5", "--context", "batch=1,2,4"),
        *("--initial", "15", "--max-models", "15", "--block-size", "5", "--predictor", "ridge"),
        *("--runs", "5", "--verify", "0", "--sampling", "random", "--run", run),
    ]
    assert esm_host("profile", *options).exit_code == 3
    found = load_run(run)
    assert {*found.measurements()["batch"]} <= {1, 2, 4}
    cell = "8 batch: 6*nor_conv_3x3"
    with pytest.warns(GuessWarning, match="at batch 8 are a guess, far from the measured 1, 2, 4"):
        assert found.predict([cell, found.space.read(cell).at(batch=1)]).shape == (2,)
    assert found.encoder.columns[-1] == "batch"


def test_a_value_may_stand_alone_in_python() -> None:
    settings = Settings("any", space="lm-decode", contexts={"past": 128})
    assert settings.search_space().contexts == {"past": (128,)}
    assert settings.search_space().read("d512; 8*h8g2f1536").contexts == (("past", 128),)
    with pytest.raises(UsageError, match="resolution 64 and contexts resolution: give one of them"):
        Settings("any", space="resnet", resolution=64, contexts={"resolution": (32, 64)})


def test_a_campaign_from_before_contexts_is_read() -> None:
    stored = json.loads(json.dumps(Settings("any", space="lm-decode").to_json()))
    del stored["contexts"]
    assert Settings.from_json(stored).search_space().contexts == load_space("lm-decode").contexts
