"""Searches for low energy and memory, on a device of known truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from esm_host import SearchSettings, load_search, profile, run_search
from esm_host.cli.app import app
from esm_host.dataset.campaign_metric import ENERGY, LATENCY, PEAK_MEMORY
from esm_host.errors import UsageError
from esm_host.report.search import search_page
from esm_host.search.objectives import parse_objective
from esm_host.search.problem import Limit, Objective
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import MeasureSpec
from tests.host.fake_campaign import latency
from tests.host.metric_campaign import ALL, NET_W, RAPL, SMALL

pytestmark = pytest.mark.usefixtures("undrawn", "numbered")

SETTINGS = replace(
    SMALL,
    initial=40,
    max_models=40,
    block_size=10,
    references=4,
    spec=MeasureSpec(runs=5),
    metric=ALL,
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeProfiler:
    profiler = FakeProfiler(latency, noise=0.01, energy_sensors=[RAPL])
    monkeypatch.setattr(devices, "connect", lambda name: profiler)
    return profiler


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    from esm_host.search.methods import with_pymoo

    made = with_pymoo.PymooSearch.__init__

    def init(self, algorithm="nsga2", population=40, generations=8, seed=0):
        made(self, algorithm, population, generations, seed)

    monkeypatch.setattr(with_pymoo.PymooSearch, "__init__", init)


@pytest.fixture
def run(fake: FakeProfiler, tmp_path: Path) -> Path:
    return profile(SETTINGS, tmp_path / "run").path


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        ("energy", "energy_mj"),
        ("peak_memory:min", "peak_rss_bytes"),
        ("energy_delay", "energy_delay_uj_s"),
    ],
)
def test_metrics_are_objectives_of_every_device(text: str, quantity: str) -> None:
    spec = parse_objective(text)
    assert spec.objectives([""]) == [Objective(quantity)]
    assert spec.objectives(["a", "b"]) == [Objective(f"a.{quantity}"), Objective(f"b.{quantity}")]
    with pytest.raises(UsageError, match=r"is minimised, write "):
        parse_objective(f"{text.partition(':')[0]}:max")


def test_a_quantity_of_the_user_may_have_the_name_of_a_metric() -> None:
    spec = parse_objective("energy=e.py:joules:min")
    assert spec.objectives(["a", "b"]) == [Objective("energy")]
    settings = SearchSettings(("a",), ("energy=e.py:joules:min",), limits=("energy<=3",))
    assert settings.all_limits == [Limit("energy", 3)]
    assert settings.metrics == [LATENCY]


def test_limits_of_metrics_hold_on_all_devices_or_on_one() -> None:
    settings = SearchSettings(
        ("a/pi.4", "b/pi5"), limits=("energy_mj <= 5", "pi.4.peak_memory<=6e7", "flops<=3e8")
    )
    assert settings.all_limits == [
        Limit("pi.4.energy_at_most_mj", 5),
        Limit("pi5.energy_at_most_mj", 5),
        Limit("pi.4.peak_rss_at_most_bytes", 6e7),
        Limit("flops", 3e8),
    ]
    assert settings.metrics == [LATENCY, ENERGY, PEAK_MEMORY]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limits": ("energy_mj>=5",)}, "energy_mj has an upper limit, write <="),
        ({"limits": ("pi9.energy_mj<=5",)}, "give NAME<=NUMBER or .*, energy_mj, peak_rss_bytes$"),
        ({"limits": ("energy_mj<=inf",)}, "give NAME<=NUMBER"),
        ({"limits": ("energy_mj<=1e999",)}, "give a finite number"),
        ({"objectives": ("energy", "energy")}, "given twice"),
        ({"objectives": ("energy",), "proxy": "x"}, "proxy predicts latencies only: .* energy"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SearchSettings(("run",), **changes)


def test_a_campaign_without_the_metric_is_refused(fake: FakeProfiler, tmp_path: Path) -> None:
    only = profile(replace(SETTINGS, metric="latency", energy_time_s=40), tmp_path / "only").path
    settings = SearchSettings((str(only),), ("energy",), measure=0)
    with pytest.raises(UsageError, match="has no predictor of energy: it has latency; profile"):
        run_search(settings, tmp_path / "search")
    energy = profile(replace(SETTINGS, metric="energy"), tmp_path / "energy").path
    with pytest.raises(UsageError, match="has no predictor of latency: it has energy; profile"):
        run_search(SearchSettings((str(energy),), measure=0), tmp_path / "search")


@pytest.mark.usefixtures("small")
def test_a_limit_of_energy_is_promised_and_kept(run: Path, fake: FakeProfiler) -> None:
    limit_mj = float(NET_W * np.median([latency(m) for m in fake.blocks[0].models]))
    settings = SearchSettings(
        (str(run),), ("flops:max",), limits=(f"energy_mj<={limit_mj}",), measure=8, batch=4
    )
    found = run_search(settings, run / "search")
    assert len(found.front)
    values = found.front.values
    assert (values["energy_at_most_mj"] <= limit_mj).all()
    assert (values["energy_mj"] <= values["energy_at_most_mj"]).all()
    # Energies of the front are measured ones: the device's own, whatever its latency says.
    truth = [latency(m) for block in fake.blocks for m in block.models]
    for value in values["energy_mj"]:
        assert np.isclose(NET_W * np.array(truth), value, rtol=1e-9).any()
    assert {block.energy_s for block in fake.blocks} == {3.0}
    record = load_search(run / "search")
    front = record.front()
    assert (front["energy_at_most_mj"] <= limit_mj).all()
    measured = record.measured()
    assert set(measured.loc[measured["round"] > 0, "energy_verdict"]) == {"stable"}
    page = search_page(record)
    (section,) = [section for section in page.sections if section.id == "front"]
    (table,) = [part for part in section.parts if part.kind == "table"]
    at_most = table.columns.index("#energy at most (mJ)")
    assert table.columns[at_most - 1] == "#energy (mJ)"
    shown = [row[at_most].value for row in table.rows]
    np.testing.assert_allclose(shown, front["energy_at_most_mj"])


@pytest.mark.usefixtures("small")
def test_the_report_has_the_front_of_accuracy_latency_and_energy(run: Path, tmp_path: Path) -> None:
    (own := tmp_path / "own.py").write_text(
        "def estimate(architectures):\n    return [a.depth for a in architectures]\n"
    )
    words = ["search", run, "--objective", f"accuracy={own}:estimate", "--objective", "energy"]
    words += ["--limit", "peak_rss_bytes<=1e9", "--measure", 4, "--batch", 4, "--quiet"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    heading = done.stdout.splitlines()[0].split()
    assert heading == [
        *("latency_ms", "accuracy", "energy_mj", "peak_rss_at_most_bytes", "architecture")
    ]
    (row, *_) = json.loads((run / "search" / "front.json").read_text())["results"]
    assert row["energy_mj"] == pytest.approx(NET_W * row["latency_ms"], rel=0.3)
    page = search_page(load_search(run / "search"))
    front = next(section for section in page.sections if section.id == "front")
    titles = [part.title for part in front.parts if part.kind == "figure"]
    assert titles == [
        "Predicted and verified front, accuracy against latency",
        "Predicted and verified front, energy against latency",
        "Predicted and verified front, accuracy against energy",
    ]
    (table,) = [part for part in front.parts if part.kind == "table"]
    assert "#energy (mJ)" in table.columns
    assert "#peak memory at most" in table.columns
    assert "#energy at most (mJ)" not in table.columns, "it is not limited"
    figures = [part for part in front.parts if part.kind == "figure"]
    assert not any("The dashed line" in figure.summary for figure in figures)
    assert {fact.name: fact.note for fact in page.facts}["Confidence"] == (
        "that the peak memory is within its limit"
    )
    (settings,) = [section for section in page.sections if section.id == "how"]
    assert "--runs" not in [fact.name for fact in settings.parts[0].facts]
    assert "within the limits (peak memory at most" in page.lead


@pytest.mark.usefixtures("small")
def test_the_energy_delay_product_is_an_objective(run: Path, tmp_path: Path) -> None:
    settings = SearchSettings((str(run),), ("energy_delay", "flops:max"), measure=0)
    found = run_search(settings, tmp_path / "search").front.values
    product = found["energy_mj"] * found["latency_ms"]
    np.testing.assert_allclose(found["energy_delay_uj_s"], product)
    page = search_page(load_search(tmp_path / "search"))
    front = next(section for section in page.sections if section.id == "front")
    titles = [part.title for part in front.parts if part.kind == "figure"]
    assert "Predicted front, energy-delay product against latency" in titles
