"""Studies: from a file to results, tables and plots; broken off, gone on with, gone wrong."""

from __future__ import annotations

import os
import pickle
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import esm_host
from esm_host.atomic import write_json
from esm_host.campaign.folder import RunFolder
from esm_host.cli.app import app
from esm_host.dataset.benchmarks import read_benchmark
from esm_host.encoding.base import Encoder
from esm_host.errors import DatasetError, EsmError, UsageError
from esm_host.predictors import FAMILY, PREDICTORS
from esm_host.predictors.mlp import MLPPredictor
from esm_host.research.study import run as study_run
from esm_host.research.study.data import find_rows
from esm_host.research.study.metrics import coverage_and_width, interval, ranking_and_accuracy
from esm_host.research.study.plan import draw
from esm_host.research.study.results import Study, load_study
from esm_host.research.study.run import run_study
from esm_host.research.study.settings import read_study
from esm_host.research.study.summary import by_device, by_size, tables
from esm_host.research.study.task import TaskResult
from esm_host.transport.fake import FakeProfiler
from tests.host.fake_campaign import SETTINGS, ByDepth, Log, assemble, latency

STUDIES = Path(__file__).parents[3] / "studies"
DATA = Path(os.environ.get("ESM_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
QUICK = "params = {epochs = 2, min_steps = 1}"
STUDY = f"""
[study]
predictors = [
  {{predictor = "mlp", {QUICK}}},
  {{predictor = "mlp", encoding = ["fc", "one-hot"], label = "on", {QUICK}}},
]
sizes = [20, 10]
seeds = 3
test = 50
keep_predictions = true
metrics = ["tau"]
[[data]]
table = "table.parquet"
devices = ["slow", "fast"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a table of made-up latencies of FBNet, some of which are missing, and a study."""
    path = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 9, (120, 22))
    slow = 5 + blocks @ rng.uniform(0, 0.5, 22)
    fast = np.where(np.arange(120) < 12, np.nan, slow / 4 + rng.uniform(0, 0.5, 120))
    arch = ["_".join(map(str, row)) for row in blocks.tolist()]
    table = {"arch": arch, "lat_ms_slow": slow, "lat_ms_fast": fast, "lat_ms_other": slow}
    pd.DataFrame(table).to_parquet(path / "table.parquet")
    (path / "study.toml").write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return run_study(folder / "study.toml", folder / "results")


def changed(folder: Path, old: str, new: str) -> Path:
    """The study with something else in it."""
    assert old in STUDY
    path = folder / "changed.toml"
    path.write_text(STUDY.replace(old, new))
    return path


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esm_host.research.study.plots.save", lambda chart, path: None)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels and sizes of the tasks that are computed from now on."""
    done: list[str] = []
    compute = study_run.compute

    def count(task: study_run.Task) -> TaskResult:
        done.append(f"{task.name.device} {task.name.label} {task.name.size}")
        return compute(task)

    monkeypatch.setattr(study_run, "compute", count)
    return done


# What is computed


def test_a_row_per_predictor_encoding_size_seed_and_device(study: Study) -> None:
    frame = study.results()
    assert study.missing == 0
    assert frame["label"].unique().tolist() == ["mlp", "on fc", "on one-hot"]
    assert frame["encoding"].unique().tolist() == ["fcc", "fc", "one-hot"]
    assert len(frame) == 3 * 2 * 3 * 2
    assert (frame["failure"] == "").all()
    assert (frame["train_samples"] == frame["size"]).all()
    assert (frame["test_samples"] == 50).all()
    assert frame["tau"].between(-1, 1).all()
    assert (frame[["fit_s", "query_s"]] > 0).all().all()
    assert frame["coverage_percent"].isna().all()  # a perceptron knows no interval
    assert not study.results()[["label", "device", "size", "seed"]].duplicated().any()


def test_kept_predictions_are_those_that_were_judged(study: Study) -> None:
    kept = study.predictions()
    assert kept.groupby(["label", "device", "size"]).size().eq(50).all()
    results = study.results().query("seed == 0").set_index(["label", "device", "size"])
    for key, rows in kept.groupby(["label", "device", "size"]):
        found = ranking_and_accuracy(
            rows["measured_ms"].to_numpy(), rows["predicted_ms"].to_numpy()
        )
        for metric, value in found.items():
            assert results.loc[key, metric] == pytest.approx(value)


def test_predictors_see_the_same_samples_and_train_on_none_they_are_tested_on(study: Study) -> None:
    tested = study.predictions().groupby(["label", "device", "size"])["row"].agg(tuple)
    for _, rows in tested.groupby("device"):
        assert rows.nunique() == 1
    assert all(min(rows) >= 12 for rows in tested[tested.index.get_level_values(1) == "fast"])


@pytest.mark.parametrize("test", [30, None])
def test_samples_are_drawn_by_seed_and_nest(test: int | None) -> None:
    present = np.arange(100) % 10 > 0
    train, tested = draw(present, 1, 40, test)
    again, _ = draw(present, 1, 20, test)
    other, _ = draw(present, 2, 40, test)
    assert len(train) == 40
    assert len(tested) == (test or 50)
    assert not set(train) & set(tested)
    assert present[train].all()
    assert present[tested].all()
    np.testing.assert_array_equal(again, train[:20])
    assert set(other) != set(train)


def test_results_do_not_depend_on_who_computes_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at a time, by what joblib is set to, and with nothing but what travels to a worker."""
    compute = study_run.compute
    monkeypatch.setattr("esm_host.predictors.mlp.MLPPredictor", ByDepth)
    file = folder / "by_depth.toml"
    file.write_text(STUDY.replace(f", {QUICK}", ""))
    alone = run_study(file, tmp_path / "alone")
    travelled = lambda task: compute(pickle.loads(pickle.dumps(task)))  # noqa: E731
    monkeypatch.setattr(study_run, "compute", travelled)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        parallel = run_study(file, tmp_path / "parallel")
    times = ["fit_s", "query_s"]
    assert (alone.results()["failure"] == "").all()
    pd.testing.assert_frame_equal(
        parallel.results().drop(columns=times), alone.results().drop(columns=times)
    )


def test_a_campaign_is_data_with_weights(tmp_path: Path, folder: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.prepare(resume=False)
    store, _, loop = assemble(run.path, FakeProfiler(latency, noise=0.01), Log(), max_models=60)
    loop.run()
    store.close()
    write_json(run.settings, replace(SETTINGS, weights="interval", max_models=60).to_json())
    file = tmp_path / "study.toml"
    file.write_text(
        f'[study]\npredictors = [{{predictor = "mlp", {QUICK}}}]\nsizes = [30]\nseeds = 2\n'
        'test = "rest"\n[[data]]\nrun = "run"\n[[data]]\nrun = "run"\ndevices = ["again"]\n'
    )
    settings = read_study(file)
    first, _ = study_run.read_data(settings)
    measured = esm_host.load_run(run.path).dataset()
    np.testing.assert_array_equal(first.latency_ms["fake"], measured.latency_ms)
    np.testing.assert_array_equal(first.weights, measured.weights())
    study = run_study(settings, tmp_path / "results")
    assert study.results()["device"].unique().tolist() == ["fake", "again"]
    assert (study.results()["test_samples"] == len(measured) - 30).all()
    bins = study.accuracy_by_bin()
    assert bins.groupby(["device", "seed"])["bin"].nunique().eq(5).all()


def test_rankings_and_intervals() -> None:
    y = np.array([1.0, 2.0, 3.0, 4.0])
    assert ranking_and_accuracy(y, 2 * y) == {"tau": 1, "spearman": 1, "accuracy_percent": 0}
    assert ranking_and_accuracy(y, y[[1, 0, 2, 3]])["tau"] == pytest.approx(4 / 6)
    assert ranking_and_accuracy(y, np.full(4, 2.0))["tau"] == 0
    found = coverage_and_width(y, y - [0, 1, -1, 1], y + 1)
    assert found["coverage_percent"] == 75
    assert found["width_percent"] == pytest.approx(100 * np.mean(np.array([1, 2, 0, 2]) / y))


class Unsure(MLPPredictor):
    knows_std = True

    def _predict_with_std(self, encodings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(encodings), 10.0), np.ones(len(encodings))


def test_intervals_are_the_predictors_own_or_follow_from_its_deviation() -> None:
    x = np.zeros((5, 2), np.float32)
    assert interval(MLPPredictor(), x, 0.9) is None
    unsure = Unsure(epochs=1, min_steps=1).fit(x, np.ones(5))
    ends = interval(unsure, x, 0.9)
    assert ends is not None
    np.testing.assert_allclose(ends[1] - ends[0], 2 * 1.6449, rtol=1e-3)
    unsure.predict_interval = lambda x, coverage: (np.zeros(len(x)), np.full(len(x), coverage))
    ends = interval(unsure, x, 0.8)
    assert ends is not None
    np.testing.assert_array_equal(ends[1], 0.8)


# Broken off, gone on with


def test_nothing_is_computed_twice(
    study: Study, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.path, tmp_path / "results")
    done = counted(monkeypatch)
    again = run_study(folder / "study.toml", tmp_path / "results")
    assert done == []
    pd.testing.assert_frame_equal(again.results(), study.results())
    for old, new, computed in (
        ("sizes = [20, 10]", "sizes = [20, 10, 15]", 6),  # one more of each
        ('label = "on"', 'label = "other"', 0),
        ('encoding = ["fc", "one-hot"]', 'encoding = ["one-hot", "fc"]', 0),
        ("test = 50", "test = 51", 12),
        ("epochs = 2", "epochs = 3", 12),
    ):
        done.clear()
        run_study(changed(folder, old, new), tmp_path / "results")
        assert len(done) == computed, new


def test_other_labels_are_those_of_the_file(study: Study, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(study.path, tmp_path / "results")
    path = changed(folder, 'label = "on"', 'label = "other"')
    labels = run_study(path, tmp_path / "results").results()["label"]
    assert labels.unique().tolist() == ["mlp", "other fc", "other one-hot"]


@pytest.mark.usefixtures("no_plots")
def test_interrupted_it_keeps_what_is_done_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["study", str(folder / "study.toml"), "--results", str(tmp_path), "--parallel", "1"]
    with monkeypatch.context() as patched:
        done = counted(patched)
        counting = study_run.compute

        def interrupt(task: study_run.Task) -> TaskResult:
            if len(done) == 5:
                raise KeyboardInterrupt
            return counting(task)

        patched.setattr(study_run, "compute", interrupt)
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130
    assert "kept" in result.stderr
    study = load_study(tmp_path)
    assert study.missing == 12 - 5
    assert len(study.results()) == 5 * 3
    shown = CliRunner().invoke(app, [*arguments, "--only-plots"])
    assert shown.exit_code == 0, shown.output
    assert "7 tasks missing" in shown.stdout
    done = counted(monkeypatch)
    assert run_study(folder / "study.toml", tmp_path).missing == 0
    assert len(done) == 7


def test_a_damaged_result_is_named_and_made_again(
    study: Study, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.path, tmp_path / "results")
    first = sorted((tmp_path / "results" / "tasks").iterdir())[0]
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"is damaged .* delete it"):
        load_study(tmp_path / "results").results()
    done = counted(monkeypatch)
    assert len(run_study(folder / "study.toml", tmp_path / "results").results()) == 36
    assert len(done) == 1


# A predictor that fails


@pytest.mark.usefixtures("no_plots")
def test_a_failing_predictor_is_a_row_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    broken = 'label = "broken", params = {learning_rate = -1.0}'
    file = changed(folder, f'encoding = ["fc", "one-hot"], label = "on", {QUICK}', broken)
    result = CliRunner().invoke(
        app, ["study", str(file), "--results", str(tmp_path), "--parallel", "1"]
    )
    assert result.exit_code == 1
    assert "4 tasks failed; the first, broken with 10 samples on slow: ValueError" in result.stderr
    study = load_study(tmp_path)
    results = study.results()
    assert results[results["label"] == "broken"]["tau"].isna().all()
    assert results[results["label"] == "mlp"]["tau"].notna().all()
    assert study.failures()["label"].unique().tolist() == ["broken"]
    assert set(by_size(results, "tau")["label"]) == {"mlp"}
    assert "broken" in (tmp_path / "tables.md").read_text()


def test_what_failed_is_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(MLPPredictor, "_fit_all", fail)
        failed = run_study(folder / "study.toml", tmp_path)
        assert (failed.results()["failure"] == "MemoryError").all()
    assert run_study(folder / "study.toml", tmp_path).failures().empty


# Lookup tables


class Neighbours(MLPPredictor):
    trains_on_neighbours = True


def test_sizes_do_not_apply_to_what_asks_for_neighbours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_benchmark(folder / "table.parquet")
    wanted = table.codes[:30].copy()  # 12 of which have no latency on "fast"
    classes = {"mlp": MLPPredictor, "lookup": Neighbours}
    monkeypatch.setitem(PREDICTORS, "lookup", PREDICTORS["mlp"])
    monkeypatch.setitem(FAMILY.builtin, "lookup", PREDICTORS["mlp"].where)
    monkeypatch.setattr("esm_host.research.study.plan.predictor_class", classes.__getitem__)
    monkeypatch.setattr("esm_host.research.study.plan.neighbours", lambda space: wanted)
    file = changed(folder, 'encoding = ["fc", "one-hot"], label = "on"', 'label = "table"')
    file.write_text(file.read_text().replace('"mlp", label', '"lookup", label'))
    study = run_study(file, tmp_path)
    found = study.results().query("label == 'table'")
    assert found["fixed_size"].all()
    assert found.groupby("device")["size"].first().to_dict() == {"slow": 30, "fast": 18}
    assert (found["test_samples"] < 50).all()  # those that it was trained on are no test
    kept = study.predictions().query("label == 'table'")
    assert kept["row"].min() >= 30
    assert by_size(study.results(), "tau").query("fixed_size")["size"].tolist() == [30]
    made = tables(study.results(), ["tau"])
    line = next(row for row in made[0].rows if row[0] == "table")
    assert line[1] == line[2] != ""
    wanted[:] = 0
    with pytest.raises(UsageError, match="has 0: leave it out"):
        run_study(file, tmp_path)


class Parts(ByDepth):
    def __init__(self, table_ms: object = None) -> None:
        self.table_ms = table_ms


def test_the_table_of_a_device_is_given_to_what_adds_up_parts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path, encoder: Encoder) -> np.ndarray:
        return np.full(len(encoder), float(path.read_text()))

    monkeypatch.setattr("esm_host.predictors.mlp.MLPPredictor", Parts)
    monkeypatch.setattr("esm_host.research.study.plan.load_lookup_table", load)
    file = changed(folder, f", {QUICK}", "")
    with pytest.raises(UsageError, match=r"'mlp' needs a lookup table .* lookup_table = FILE"):
        run_study(file, tmp_path)
    (folder / "parts.json").write_text("1.5")
    file.write_text(file.read_text() + 'lookup_table = "parts.json"\n')
    done = counted(monkeypatch)
    assert run_study(file, tmp_path).failures().empty
    assert len(done) == 12
    (folder / "parts.json").write_text("1.25")  # other numbers, other results
    run_study(file, tmp_path)
    assert len(done) == 24


def test_rows_are_found_by_their_codes(folder: Path) -> None:
    codes = read_benchmark(folder / "table.parquet").codes
    other = codes[:1].copy()
    other[0, 0, 0] += 1 if other[0, 0, 0] < 8 else -1
    np.testing.assert_array_equal(
        find_rows(codes, np.concatenate([codes[[7, 3]], other])), [7, 3, -1]
    )


# Tables and plots


def test_the_command_prints_tables_and_writes_plots(folder: Path, study: Study) -> None:
    result = CliRunner().invoke(
        app, ["study", str(folder / "study.toml"), "--results", str(study.path), "--parallel", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "12 of 12 tasks are done already" in result.stderr
    assert "table: Kendall's tau by device, 20 training samples" in result.stdout
    mean = study.results().query("label == 'on fc' and size == 20 and device == 'fast'")["tau"]
    assert f"{mean.mean():.3f} ±{mean.std():.3f}" in result.stdout
    assert "on one-hot" in (study.path / "tables.md").read_text()
    written = pd.read_parquet(study.path / "results.parquet")
    assert len(written) == len(study.results())
    names = {path.stem: path.stat().st_size for path in (study.path / "plots").iterdir()}
    kinds = ("tau-by_size", "tau-by_device", "slow-predicted", "fast-predicted")
    assert names.keys() == {f"table-{kind}" for kind in kinds}
    assert min(names.values()) > 5000


def test_means_are_over_devices_and_spread_between_seeds(study: Study) -> None:
    results = study.results()
    row = by_size(results, "tau").query("label == 'mlp' and size == 20").iloc[0]
    seeds = results.query("label == 'mlp' and size == 20").groupby("seed")["tau"].mean()
    assert (row["mean"], row["sd"]) == pytest.approx((seeds.mean(), seeds.std()))
    assert set(by_device(results, "tau")["size"]) == {20}


# Mistakes


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'predictor = "mlp"',
            'predictor = "mpl"',
            r"predictors: unknown name 'mpl': did you mean 'mlp'",
        ),
        ('["fc", "one-hot"]', '["fc", "onehot"]', r"encoding: .* did you mean 'one-hot'"),
        ("seeds = 3", "seed = 3", r"unknown key 'seed' in \[study\]: did you mean 'seeds'"),
        ("seeds = 3", "seeds = 0", "seeds: 0 is not a whole number from 1"),
        ("seeds = 3", "seeds = true", "seeds: True is not a whole number"),
        ("sizes = [20, 10]", "sizes = []", "sizes must be a list with one entry"),
        ("sizes = [20, 10]", "", r"\[study\] needs sizes"),
        ("sizes = [20, 10]", "sizes = [20, 100]", "sizes up to 100 and 50 test samples need 150"),
        ("test = 50", 'test = "all"', 'give a number of samples, or "rest"'),
        ("test = 50", "test = 50\ncoverage = 90", "coverage 90 is not between 0 and 1"),
        ('["tau"]', '["kendall"]', "metrics: unknown name 'kendall'"),
        ("epochs = 2", "epoch = 2", "'mlp' cannot be made .*'epoch'.*: correct its params"),
        ('label = "on", ', 'label = "mlp", ', None),  # the encodings are added to it
        (
            'encoding = ["fc", "one-hot"], label = "on", ',
            "",
            "'mlp' twice: give each its own label",
        ),
        ("[[data]]", "[data]", r"needs \[\[data\]\]"),
        ("[study]", "[study", "is not TOML"),
        ('table = "table.parquet"', "", "either table = .* or run = "),
        ('table = "table.parquet"', 'run = "nowhere"', "a run has one device"),
        ('"table.parquet"', '"nothing.parquet"', "there is no .*nothing.parquet"),
        ('"table.parquet"', '"$NOT_SET_1/t.parquet"', "not set: export it"),
        ('"table.parquet"', '"$ESM_DATA/t.parquet"', "export ESM_DATA=DIR"),
        ('["slow", "fast"]', '["slow", "quick"]', "unknown device 'quick'"),
        ('["slow", "fast"]', '["slow"]\n[[data]]\ntable = "table.parquet"', "is given twice"),
    ],
)
def test_mistakes_are_one_line_that_names_the_cure(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: str,
    new: str,
    message: str | None,
) -> None:
    monkeypatch.delenv("ESM_DATA", raising=False)
    file = changed(folder, old, new)
    if message is None:
        read_study(file)
        return
    with pytest.raises(UsageError, match=message) as caught:
        run_study(file, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study.json").exists()


def test_paths_are_relative_to_the_file_and_variables_are_expanded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_study(folder / "study.toml").data[0].path == folder / "table.parquet"
    monkeypatch.setenv("ESM_DATA", "/there")
    file = changed(folder, '"table.parquet"', '"$ESM_DATA/table.parquet"')
    assert read_study(file).data[0].path == Path("/there/table.parquet")


def test_a_folder_without_a_study_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a study: make one with esm-host study"):
        load_study(tmp_path)
    result = CliRunner().invoke(app, ["study", str(tmp_path / "no.toml")])
    assert (result.exit_code, "there is no" in result.stderr) == (2, True)


def test_one_program_at_a_time(folder: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked(), pytest.raises(EsmError, match="another esm-host"):
        run_study(folder / "study.toml", tmp_path)


# What comes with the project


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_ready_made_studies(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESM_DATA", str(DATA))
    entries = tomllib.loads(file.read_text())["study"]["predictors"]
    names = {entry if isinstance(entry, str) else entry["predictor"] for entry in entries}
    if missing := names - PREDICTORS.keys():
        pytest.skip(f"there is no predictor {', '.join(sorted(missing))}")
    settings = read_study(file)
    if any(source.is_run for source in settings.data):
        return  # of campaigns that a user makes first
    if not DATA.is_dir():
        pytest.skip(f"public latencies are not in {DATA}: set ESM_DATA")
    assert study_run.read_data(settings)
