"""``esm-host search`` as users meet it, on a device of which the truth is known."""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path
from threading import get_ident
from time import sleep

import numpy as np
import pandas as pd
import pytest

from esm_host.campaign.run import load_run
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark, write_table
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.search.latency import measured_at_most
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_models.architecture import Architecture
from esm_protos.messages import Model
from tests.host.cli.test_cli import QUICK, assert_refused, esm_host
from tests.host.fake_campaign import SPACE, latency, number_blocks

SEARCH = ["--measure", "12", "--batch", "4"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign on the fake device."""
    path = tmp_path_factory.mktemp("campaign") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "connect", lambda device: FakeProfiler(latency, noise=0.01, past=60))
        number_blocks(patch, first=1000)
        assert esm_host("profile", *QUICK, "--run", path, "--target-accuracy", 1).exit_code == 0
    return path


@pytest.fixture
def run(finished: Path, fake: FakeProfiler, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small searches: what is tested is what becomes of what they find."""
    from esm_host.search.methods import with_pymoo

    made = with_pymoo.PymooSearch.__init__

    def small(self, algorithm="nsga2", population=40, generations=10, seed=0):
        made(self, algorithm, population, generations, seed)

    monkeypatch.setattr(with_pymoo.PymooSearch, "__init__", small)


def budget(run: Path, percent: float = 50) -> float:
    return float(np.percentile(load_run(run).measurements()["latency_ms"], percent))


def front(folder: Path) -> dict:
    return json.loads((folder / "front.json").read_text())


def measured(fake: FakeProfiler) -> list[str]:
    return [model.model_id for block in fake.blocks for model in block.models]


def test_measures_what_it_finds_and_tells(run: Path, fake: FakeProfiler) -> None:
    limit_ms = budget(run)
    before = load_run(run).measurements()
    result = esm_host("search", run, "--max-latency", limit_ms, *SEARCH)
    assert result.exit_code == 0, result.output
    found = front(run / "search")
    assert found["schema_version"] == 1
    assert found["verified"]
    assert found["measured"] == 12
    assert found["results"]
    for row in found["results"]:
        architecture = Architecture.from_json(row["architecture"])
        truth = latency(Model(architecture.key, SPACE.build(architecture)))
        assert row["latency_ms"] == pytest.approx(truth, rel=0.03)
        assert row["latency_at_most_ms"] <= limit_ms
    assert "12 models measured" in result.stdout
    assert result.stdout.splitlines()[-1].startswith(f"result in {run / 'search' / 'front.json'}")
    after = load_run(run).measurements()
    assert len(after) == len(before) + 12
    assert (after["round"] < 0).sum() == 12


def test_the_campaigns_predictor_has_learnt_from_it(run: Path, fake: FakeProfiler) -> None:
    before = load_run(run).predict(load_run(run).sample(20))
    assert esm_host("search", run, *SEARCH).exit_code == 0
    campaign = load_run(run)
    again = campaign.predict(campaign.sample(20))
    assert not np.array_equal(before, again)
    np.testing.assert_allclose(
        again, campaign.predictor.predict(campaign.encoder.encode(campaign.sample(20))), rtol=1e-4
    )


def test_a_bound_is_that_of_the_measurement_or_of_what_was_learnt(
    tmp_path: Path, fake: FakeProfiler
) -> None:
    def shifted(model: Model) -> float:
        """Latency of which a part is the model's own, so that no predictor knows it."""
        return latency(model) * (0.95 + 0.1 * random.Random(model.model_id).random())

    fake._latency = shifted
    run = tmp_path / "run"
    learns = ["--predictor", "auto", "--target-accuracy", 1]
    assert esm_host("profile", *QUICK, *learns, "--run", run).exit_code == 0
    assert esm_host("search", run, "--max-latency", budget(run), *SEARCH).exit_code == 0
    campaign, bounds = load_run(run), front(run / "search")["at_most"]
    figures = campaign.figures()
    assert bounds.keys() == {a.key for a in figures.architectures}
    found_ms = np.array([bounds[a.key]["latency_at_most_ms"] for a in figures.architectures])
    encodings = campaign.encoder.encode(figures.architectures)
    learnt_ms = campaign.predictor.predict_at_most(encodings, 0.9)[1]
    measured_ms = measured_at_most(figures.latency_ms, figures.interval, 0.9)
    larger_ms = np.maximum(measured_ms, learnt_ms)
    np.testing.assert_allclose(found_ms, larger_ms, rtol=1e-4)
    assert 0 < (larger_ms > measured_ms).sum() < len(larger_ms)


def test_the_campaign_goes_on_as_if_nothing_had_been_searched(
    run: Path, fake: FakeProfiler
) -> None:
    assert esm_host("search", run, *SEARCH).exit_code == 0
    fake.blocks.clear()
    result = esm_host(
        "profile", "--run", run, "--resume", "--target-accuracy", 100, "--max-models", 50
    )
    assert result.exit_code == 3, result.output
    references = 4
    assert len(set(measured(fake))) == 50 - 20 + references
    assert load_run(run).result["measured_models"] == 50 + 12


def test_a_slow_hour_is_measured_by_networks_like_those_that_were_chosen(
    run: Path, fake: FakeProfiler
) -> None:
    limit_ms = budget(run)
    figures = load_run(run).figures()
    names = zip(figures.architectures, figures.verdicts, strict=True)
    references = {a.key for a, verdict in names if verdict == "reference"}

    def slowed(model: Model) -> float:
        return latency(model) * (1.1 if model.model_id in references else 1.5)

    fake._latency = slowed
    result = esm_host("search", run, "--max-latency", limit_ms, *SEARCH)
    assert result.exit_code == 0, result.output
    ratios = re.findall(r"takes (\S+) times as long", result.stderr)
    assert float(ratios[0]) == pytest.approx(1.5, rel=0.05)
    best = max(front(run / "search")["results"], key=lambda row: row["flops"])
    architecture = Architecture.from_json(best["architecture"])
    truth = latency(Model(architecture.key, SPACE.build(architecture)))
    assert best["latency_ms"] == pytest.approx(truth, rel=0.03)


def test_campaigns_of_one_device_take_turns(
    run: Path, fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = shutil.copytree(run, tmp_path / "second")
    busy: set[int] = set()
    most: list[int] = []
    answer = fake.answer

    def answered(*arguments):
        busy.add(get_ident())
        sleep(0.05)
        most.append(len(busy))
        busy.discard(get_ident())
        return answer(*arguments)

    monkeypatch.setattr(fake, "answer", answered)
    result = esm_host("search", run, second, "--measure", 4)
    assert result.exit_code == 0, result.output
    assert (len(most), max(most)) == (2, 1)


def test_a_round_has_one_number_whatever_was_searched_before(run: Path, tmp_path: Path) -> None:
    assert esm_host("search", run, *SEARCH).exit_code == 0
    result = esm_host("search", run, *SEARCH, "-o", tmp_path / "other", "--seed", 1)
    assert result.exit_code == 0, result.output
    numbers = re.findall(r"^round (\d+): \d+ (architecture|on the front)", result.stderr, re.M)
    measuring = [int(number) for number, what in numbers if what == "architecture"]
    assert measuring
    for place, (number, what) in enumerate(numbers):
        if what == "architecture":
            assert numbers[place - 1] == (number, "on the front")


def test_a_search_goes_on_to_a_larger_budget(run: Path, fake: FakeProfiler) -> None:
    assert esm_host("search", run, *SEARCH).exit_code == 0
    first = front(run / "search")
    result = esm_host("search", run, "--resume", "--measure", 20)
    assert result.exit_code == 0, result.output
    found = front(run / "search")
    assert (first["measured"], found["measured"]) == (12, 20)
    assert found["settings"]["measure"] == 20
    assert found["rounds"][:3] == first["rounds"][:3]
    refused = esm_host("search", run, "--resume", "--measure", 19)
    assert_refused(refused, 2, "--measure 19", "has 20 already", "give more")


def test_broken_off_it_resumes_to_the_same_front(
    fake: FakeProfiler, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "run"
    shutil.copytree(run, other)
    fake._noise = 0.0  # two devices measure the same
    past = list(fake._past)
    options = ["--max-latency", budget(run), *SEARCH]
    assert esm_host("search", run, *options).exit_code == 0
    fake.blocks.clear()
    fake._past[:] = past  # neither knows more of its past than the other
    answer = fake.answer

    def interrupted(*arguments):
        if len(fake.blocks) == 1:
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(fake, "answer", interrupted)
    result = esm_host("search", other, *options)
    assert result.exit_code == 130
    assert f"esm-host search {other} -o {other / 'search'} --resume" in result.stderr
    monkeypatch.setattr(fake, "answer", answer)
    assert esm_host("search", other, "--resume").exit_code == 0
    one, two = front(run / "search"), front(other / "search")
    counts = Counter(measured(fake))
    chosen = [row["key"] for each in two["rounds"] for row in each["chosen"]]
    assert [counts[key] for key in chosen] == 12 * [1], "nothing is measured twice"
    assert [r["key"] for r in one["results"]] == [r["key"] for r in two["results"]]


def test_a_device_that_has_become_slower_is_told_of(
    run: Path, fake: FakeProfiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "_pace", lambda number: 1.3)
    result = esm_host("search", run, *SEARCH)
    assert result.exit_code == 0, result.output
    assert "takes 1.30 times as long as usual: latencies refer to its usual pace" in result.stderr


def test_predictions_alone_touch_no_device(
    run: Path, fake: FakeProfiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "connect", lambda device: pytest.fail("a device was asked"))
    limit_ms = budget(run)
    result = esm_host("search", run, "--max-latency", limit_ms, "--measure", 0)
    assert result.exit_code == 0, result.output
    found = front(run / "search")
    assert not found["verified"]
    assert all(row["latency_at_most_ms"] <= limit_ms for row in found["results"])
    assert all(row["latency_ms"] <= row["latency_at_most_ms"] for row in found["results"])
    assert "none measured" in result.stdout


def test_more_confidence_is_a_wider_margin(run: Path) -> None:
    margin = []
    for confidence in (50, 90, 99):
        folder = run.parent / f"s{confidence}"
        options = ["--measure", 0, "--confidence", confidence]
        assert esm_host("search", run, *options, "-o", folder).exit_code == 0
        rows = front(folder)["results"]
        margin.append(np.mean([row["latency_at_most_ms"] / row["latency_ms"] for row in rows]))
    assert margin[0] < margin[1] < margin[2]


def test_where_nothing_keeps_the_limit_it_says_what_comes_closest(run: Path) -> None:
    result = esm_host("search", run, "--max-latency", 1e-6, "--measure", 0)
    assert result.exit_code == 3
    assert "no architecture meets latency_at_most_ms <= 1e-06; the closest has" in result.stdout
    assert front(run / "search")["results"] == []


def test_a_function_of_the_users_own(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("def accuracy(architectures):\n    return [a.depth for a in architectures]\n")
    options = ["--objective", f"accuracy={path}:accuracy", "--min-accuracy", 10]
    result = esm_host("search", run, *options, *SEARCH)
    assert result.exit_code == 0, result.output
    rows = front(run / "search")["results"]
    assert all(row["accuracy"] == row["depth"] >= 10 for row in rows)


def test_two_devices_at_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(model: Model) -> float:
        return 2 * latency(model)

    fast, slow = devices.connect("fast"), FakeProfiler(twice, noise=0.01, hostname="slow")
    monkeypatch.setattr(devices, "connect", lambda name: slow if name == "slow" else fast)
    monkeypatch.setattr(devices, "members", lambda name: [name])
    other = tmp_path / "slow"
    made = esm_host(
        "profile", *QUICK, "--run", other, "--target-accuracy", 1, "--device", "slow", "--seed", 1
    )
    assert made.exit_code == 0, made.output
    limit_ms = budget(run)
    limits = ["--max-latency", limit_ms, "--max-latency", 1.5 * limit_ms]
    result = esm_host("search", run, other, *limits, *SEARCH)
    assert result.exit_code == 0, result.output
    for row in front(run / "search")["results"]:
        assert row["slow.latency_ms"] == pytest.approx(2 * row["run.latency_ms"], rel=0.05)
        assert row["slow.latency_at_most_ms"] <= 1.5 * limit_ms


def test_a_predictors_file_stands_for_its_campaign(run: Path) -> None:
    result = esm_host("search", run / "predictor.onnx", "--measure", 0)
    assert result.exit_code == 0, result.output
    assert (run / "search" / "front.json").exists()


def test_what_it_found_is_what_predict_and_export_take(run: Path, tmp_path: Path) -> None:
    assert esm_host("search", run, "--measure", 0).exit_code == 0
    found = run / "search" / "front.json"
    assert esm_host("predict", run, "-a", found).exit_code == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-latency", "0"], 2, "--max-latency 0"),
        (["--max-latency", "1", "--max-latency", "2"], 2, "one for all"),
        (["--confidence", "100"], 2, "--confidence"),
        (["--max-latency", "inf"], 2, "above 0"),
        (["--min-accuracy", "70"], 2, "--min-accuracy 70 needs an objective accuracy"),
        (["--limit", "latency<=3"], 2, "--max-latency"),
        (["--limit", "flops<=1e999"], 2, "a finite number"),
        (["--limit", "speed<=3"], 2, "NAME<=NUMBER"),
        (["--objective", "speed"], 2, "choose latency, flops"),
        (["--objective", "accuracy=nowhere.csv:x"], 2, "there is no file nowhere.csv"),
        (["--method", "nsga"], 2, "unknown method"),
        (["--method", "exhaustive"], 2, "too many for"),
        (["--resume"], 2, "no search"),
        (["--measure", "-1"], 2, "--measure"),
    ],
)
def test_impossible_requests_measure_nothing(
    run: Path, fake: FakeProfiler, options: list[str], code: int, words: str
) -> None:
    assert_refused(esm_host("search", run, *options), code, words)
    assert not fake.blocks
    assert not (run / "search" / "front.json").exists()


def test_a_search_is_not_overwritten_nor_mixed(run: Path) -> None:
    options = ["--measure", 0]
    assert esm_host("search", run, *options).exit_code == 0
    assert_refused(esm_host("search", run, *options), 2, "--resume", "--output")
    assert_refused(esm_host("search", run, "--resume", "--seed", 2), 2, "leave out --seed")
    assert esm_host("search", run, "--resume").exit_code == 0


def test_one_that_found_nothing_yet_can_be_asked_for_anew(run: Path, tmp_path: Path) -> None:
    options = ["--measure", 0, "--objective", f"accuracy={tmp_path / 'own.py'}:f"]
    (tmp_path / "own.py").write_text("def f(architectures):\n    raise ValueError('two\\nlines')\n")
    assert_refused(esm_host("search", run, *options), 1, "ValueError: two lines")
    (tmp_path / "own.py").write_text("def f(architectures):\n    raise SystemExit('no GPU')\n")
    assert_refused(esm_host("search", run, *options), 1, "SystemExit: no GPU")
    (tmp_path / "own.py").write_text("def f(architectures):\n    return [1] * len(architectures)\n")
    assert esm_host("search", run, *options, "--seed", 3).exit_code == 0
    assert front(run / "search")["settings"]["seed"] == 3


def test_of_a_table_everything_that_it_lists_is_looked_at(run: Path, tmp_path: Path) -> None:
    listed = load_run(run).sample(30, "random", seed=7)
    texts = [json.dumps(a.to_json()) for a in listed]
    table = tmp_path / "accuracies.csv"
    pd.DataFrame({"architecture": texts, "top1": range(30)}).to_csv(table, index=False)
    options = ["--measure", 0, "--objective", f"accuracy={table}:top1"]
    assert esm_host("search", run, *options).exit_code == 0
    found = front(run / "search")["results"]
    latency_ms = load_run(run).predict(listed)
    best = [a.key for n, a in enumerate(listed) if (latency_ms[n:] >= latency_ms[n]).all()]
    assert sorted(row["key"] for row in found) == sorted(best)
    # Another method meets none of them by chance; that is said.
    result = esm_host("search", run, *options, "--method", "nsga2", "-o", tmp_path / "other")
    assert result.exit_code == 3
    assert "no architecture with a known accuracy was found" in result.stdout


def test_the_fastest_alone_is_reported(run: Path, tmp_path: Path) -> None:
    options = ["--measure", 0, "--objective", "latency"]
    assert esm_host("search", run, *options).exit_code == 0
    assert len({row["latency_ms"] for row in front(run / "search")["results"]}) == 1
    page = tmp_path / "report.html"
    assert esm_host("report", run / "search", "-o", page).exit_code == 0
    assert "Predicted front, FLOPs against latency" in page.read_text()


def test_what_is_infinite_is_unfit(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "def f(architectures):\n"
        "    return [float('inf') if a.depth % 2 else a.depth for a in architectures]\n"
    )
    options = ["--measure", 0, "--objective", f"accuracy={tmp_path / 'own.py'}:f"]
    assert esm_host("search", run, *options).exit_code == 0
    assert all(row["depth"] % 2 == 0 for row in front(run / "search")["results"])


def test_a_file_is_no_campaign(run: Path) -> None:
    assert_refused(esm_host("search", run / "store.sqlite"), 2, "esm-host profile")


def test_a_searchs_folder_is_no_campaign(run: Path) -> None:
    assert esm_host("search", run, "--measure", 0).exit_code == 0
    for command in (["search", run / "search"], ["predict", run / "search", "--sample", 1]):
        assert_refused(esm_host(*command), 2, f"is a search, not a campaign: give {run}")


def test_without_a_campaign_or_a_predictor(run: Path, tmp_path: Path) -> None:
    assert_refused(esm_host("search", tmp_path / "nowhere"), 2, "esm-host profile")
    (run / "result.json").unlink()
    assert_refused(esm_host("search", run), 2, "no predictor yet", "--resume")


# One proxy


@pytest.fixture
def proxies(tmp_path: Path) -> Path:
    """A table of a device that ranks as the fake one does, and one that ranks by chance."""
    rng = np.random.default_rng(5)
    sampler = RandomSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 1))
    architectures = sampler.sample(250, rng)
    alike = [7.0 + a.depth for a in architectures]  # so the fake one's size of graphs
    latency_ms = {"alike": np.array(alike), "other": rng.uniform(1, 9, len(alike))}
    path = tmp_path / "proxies.parquet"
    table = LatencyTable("proxies", SPACE, SPACE.encode(architectures), latency_ms, {})
    write_table(table, path)
    return path


@pytest.mark.research
def test_by_a_proxy_that_ranks_alike(run: Path, fake: FakeProfiler, proxies: Path) -> None:
    limit_ms = budget(run)
    asked = ["--proxy", proxies, "--max-latency", limit_ms, *SEARCH]
    result = esm_host("search", run, *asked)
    assert result.exit_code == 0, result.output
    found = front(run / "search")
    proxy = found["proxy"]
    assert (proxy["name"], proxy["decision"]) == ("proxies/alike", "reuse")
    assert "its predictor was used unchanged" in result.stdout
    assert found["measured"] + proxy["fresh_samples"] <= 12
    assert found["verified"]
    assert found["results"]
    assert all(row["latency_at_most_ms"] <= limit_ms for row in found["results"])
    # What is measured is what is expected to be fast enough, in this device's milliseconds.
    chosen = [row["latency_ms"] for row in found["rounds"][0]["chosen"]]
    assert np.median(chosen) < limit_ms
    again = {key for each in found["rounds"] for key in (row["key"] for row in each["chosen"])}
    assert len(again & set(measured(fake))) == found["measured"]
    page = run / "report.html"
    assert esm_host("report", run / "search", "-o", page).exit_code == 0
    assert "proxies/alike" in page.read_text()


@pytest.mark.research
def test_another_proxy_is_adapted_and_a_larger_budget_goes_on(
    run: Path, fake: FakeProfiler, proxies: Path, tmp_path: Path
) -> None:
    table = read_benchmark(proxies)
    other = tmp_path / "other.parquet"
    latency_ms = {"other": table.latency_of("other")}
    write_table(LatencyTable("other", SPACE, table.codes, latency_ms, {}), other)
    result = esm_host("search", run, "--proxy", other, *SEARCH)
    assert result.exit_code == 0, result.output
    first = front(run / "search")
    assert first["proxy"]["decision"] == "adapt"
    spent = first["measured"] + first["proxy"]["fresh_samples"]
    assert spent <= 12
    done = Counter(measured(fake))
    again = esm_host("search", run, "--resume", "--measure", 20)
    assert again.exit_code == 0, again.output
    found = front(run / "search")
    assert spent < found["measured"] + found["proxy"]["fresh_samples"] <= 20
    counts = Counter(measured(fake)) - done
    chosen = {row["key"] for row in first["rounds"][0]["chosen"]}
    assert not chosen & set(counts), "nothing is measured twice"


def test_proxies_that_cannot_be(run: Path, fake: FakeProfiler, proxies: Path) -> None:
    assert_refused(esm_host("search", run, "--proxy", "nothing"), 2, "unknown source 'nothing'")
    assert_refused(esm_host("search", run, "--proxy", run), 2, "--proxy", "is the campaign itself")
    alone = ["--proxy", proxies, "--measure", 0]
    assert_refused(esm_host("search", run, *alone), 2, "--proxy", "--measure 1 or more")
    second = shutil.copytree(run, run.parent / "second")
    assert_refused(
        esm_host("search", run, second, "--proxy", proxies), 2, "--proxy", "one campaign"
    )
    assert not fake.blocks
