"""Campaigns that learn energy and peak memory besides the latency, on a device of known truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from esm_host import load_run, profile, resume
from esm_host.arguments import in_python
from esm_host.cli.app import app
from esm_host.dataset.benchmarks import LatencyTable, write_table
from esm_host.errors import DatasetError, DeviceError, UsageError
from esm_host.report.campaign import campaign_page
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.timing.energy import too_slow
from esm_host.transport import devices
from esm_host.transport.base import OnProgress
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import (
    Block,
    BlockResult,
    EnergySensor,
    Measurement,
    Model,
)
from tests.host.fake_campaign import SPACE, latency
from tests.host.metric_campaign import ALL, NET_W, RAPL, SMALL

pytestmark = pytest.mark.usefixtures("undrawn", "numbered")

BROKEN = EnergySensor("RAPL", "package", problem="only root may read x", fix="sudo chmod a+r x")
ACCURATE = replace(SMALL, predictor="auto", encoding=None)
Change = Callable[[Measurement], Measurement]


class Changed(FakeProfiler):
    """Device whose measurements are changed."""

    change: Change = staticmethod(lambda measured: measured)

    def answer(self, block: Block, on_progress: OnProgress) -> BlockResult:
        result = super().answer(block, on_progress)
        return replace(result, measurements=tuple(map(self.change, result.measurements)))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Changed:
    """Every device is this one, which has a sensor of energy."""
    fake = Changed(latency, energy_sensors=[RAPL])
    monkeypatch.setattr(devices, "connect", lambda name: fake)
    return fake


def esm_host(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def by_chance(measured: Measurement) -> Measurement:
    """An energy that nothing predicts."""
    energy_mj = 10 ** float(np.random.default_rng(measured.latency_ns).uniform(0, 3))
    return replace(measured, metrics={**measured.metrics, "energy_mj": energy_mj})


def unresolved(measured: Measurement) -> Measurement:
    """An energy with a wide interval."""
    assert measured.energy is not None
    energy = replace(measured.energy, problem="its 99 % interval is wide", needs_s=90.0)
    metrics = {**measured.metrics, "energy_ci95_percent": 30.0}
    return replace(measured, energy=energy, metrics=metrics)


def missing(measured: Measurement) -> Measurement:
    """An energy that the sensor could not tell."""
    assert measured.energy is not None
    energy = replace(measured.energy, problem="OSError: the meter is unplugged", needs_s=59.2)
    return replace(measured, energy=energy, metrics={})


def test_one_measurement_of_a_model_gives_all_metrics(device: Changed, tmp_path: Path) -> None:
    run = profile(replace(ACCURATE, metric=ALL), tmp_path / "run")
    assert {(block.energy_s, block.peak_memory) for block in device.blocks} == {(3.0, True)}
    frame = run.measurements()
    assert len(frame) == 20
    np.testing.assert_allclose(frame["energy_mj"], NET_W * frame["latency_ms"], rtol=1e-3)
    assert (frame["peak_rss_bytes"] > 50e6).all()
    assert set(frame["energy_verdict"]) == set(frame["peak_memory_verdict"]) == {"stable"}
    for column in ("error_percent", "energy_error_percent", "peak_memory_error_percent"):
        assert frame[column].abs().max() < 60
    assert run.result is not None
    assert run.result["device_busy_seconds"] >= 3.0 * 20
    metrics = run.result["metrics"]
    assert [(name, about["unit"]) for name, about in metrics.items()] == [
        ("latency", "ms"),
        ("energy", "mJ"),
        ("peak_memory", "bytes"),
    ]
    for about in metrics.values():
        assert about["reached"] is True
        assert about["accuracy_percent"] > 70
        assert [entry["samples"] for entry in about["bins"]] == [20]
        assert about["verdicts"]["stable"] == 20
    names = {path.name for path in run.path.iterdir()}
    assert {"predictor.onnx", "predictor-energy.onnx", "predictor-peak_memory.onnx"} <= names
    assert {"predictions.csv", "predictions-energy.csv"} <= names


def test_each_metric_has_a_predictor_with_intervals(device: Changed, tmp_path: Path) -> None:
    profile(replace(SMALL, metric=ALL), tmp_path / "run")
    run = load_run(tmp_path / "run")
    drawn = run.sample(10)
    latency_ms = run.predict(drawn)
    energy, memory = run.of("energy"), run.of("peak_memory")
    np.testing.assert_allclose(energy.predict(drawn), NET_W * latency_ms, rtol=0.3)
    assert (memory.predict(drawn) > 50e6).all()
    low, high = energy.predict_interval(drawn)
    assert ((low < energy.predict(drawn)) & (energy.predict(drawn) < high)).all()
    one = energy.function()
    assert one(drawn[0]) == pytest.approx(float(energy.predict(drawn)[0]))
    assert run.latency()(drawn[0]) == pytest.approx(float(latency_ms[0]))
    assert energy.latency()(drawn[0]) == pytest.approx(float(latency_ms[0]))
    assert list(energy.accuracy()["bin"]) == list(run.accuracy()["bin"])
    assert energy.against(run).samples == 20
    # An energy predicted as the campaign learnt it, and as it is fitted again.
    encoded = run.encoder.encode(drawn)
    np.testing.assert_allclose(energy.predictor.predict(encoded), energy.predict(drawn), rtol=1e-4)


def test_a_campaign_of_latencies_measures_nothing_else(device: Changed, tmp_path: Path) -> None:
    run = profile(replace(SMALL, energy_time_s=40), tmp_path / "run")
    assert {(block.energy_s, block.peak_memory) for block in device.blocks} == {(0.0, False)}
    assert run.result is not None
    assert list(run.result["metrics"]) == ["latency"]
    assert "energy_mj" not in run.measurements()
    with pytest.raises(UsageError, match=r"has no predictor of energy: it has latency; profile"):
        run.of("energy")
    with pytest.raises(UsageError, match=r"^metric: unknown metric 'watts': choose latency, "):
        run.of("watts")


def test_an_energy_time_without_energy_is_refused(device: Changed, tmp_path: Path) -> None:
    said = "^energy_time_s 3 has no effect with metric latency: add energy to it"
    with pytest.raises(UsageError, match=said):
        profile(SMALL, tmp_path / "run")
    asked = ["--metric", "peak_memory", "--energy-time", 4, "--run", tmp_path / "run"]
    done = esm_host("profile", *asked)
    assert done.exit_code == 2
    assert "--energy-time 4 has no effect with --metric peak_memory" in done.stderr
    assert not device.blocks
    assert not (tmp_path / "run").exists()


def test_the_first_metric_leads(device: Changed, tmp_path: Path) -> None:
    device.change = by_chance
    settings = replace(ACCURATE, target_accuracy_percent=70, max_models=60, step=20)
    first = profile(replace(settings, metric="latency,energy"), tmp_path / "first")
    assert first.converged
    assert first.result is not None
    assert first.result["measured_models"] == 20
    reached = {name: about["reached"] for name, about in first.result["metrics"].items()}
    assert reached == {"latency": True, "energy": False}
    second = profile(replace(settings, metric="energy,latency"), tmp_path / "second")
    assert not second.converged
    assert second.result is not None
    assert second.result["measured_models"] == 60
    assert [len(second.of(name).accuracy()) for name in ("energy", "latency")] == [6, 2]
    assert second.metric == ""
    assert second.predict(second.sample(2)) == pytest.approx(
        second.of("energy").predict(second.sample(2))
    )


def test_a_metric_that_misses_the_target_is_told(device: Changed, tmp_path: Path) -> None:
    device.change = by_chance
    options = ["--resolution", 32, "--width-mult", 0.25, "--initial", 20, "--max-models", 20]
    options += ["--block-size", 5, "--bins", 1, "--verify", 0, "--sampling", "balanced"]
    options += ["--target-accuracy", 70, "--runs", 12, "--quiet"]
    asked = ["--metric", "latency,energy", "--energy-time", 3, "--run", tmp_path / "run"]
    done = esm_host("profile", *options, *asked)
    assert done.exit_code == 3, done.output
    lines = done.stdout.splitlines()
    assert lines.index("latency:") < lines.index("energy:")
    assert any(line.startswith("converged: ") for line in lines)
    told = "energy below target: name it first in --metric of a new campaign, or raise"
    assert any(line.startswith(told) for line in lines)
    again = esm_host("profile", "--run", tmp_path / "run", "--resume", "--metric", "latency")
    assert again.exit_code == 2
    assert "was measured with --metric latency,energy, not --metric latency" in again.stderr


@pytest.mark.parametrize(
    ("sensors", "words"),
    [
        ([BROKEN], "no energy: RAPL: only root may read x: sudo chmod a\\+r x"),
        ([], "no energy: the device's agent is too old for it"),
    ],
)
def test_a_device_without_a_sensor_is_refused_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sensors: list[EnergySensor], words: str
) -> None:
    fake = FakeProfiler(latency, energy_sensors=sensors)
    monkeypatch.setattr(devices, "connect", lambda name: fake)
    with pytest.raises(UsageError, match=f"^metric latency,energy: {words}"):
        profile(replace(SMALL, metric="latency,energy"), tmp_path / "run")
    assert not fake.blocks
    assert not (tmp_path / "run").exists()


SLOW = EnergySensor("meter", "board", tick_s=0.5)


@pytest.mark.parametrize(
    ("sensors", "provider", "refused"),
    [
        ([SLOW], "cpu", True),
        ([SLOW, EnergySensor("NVML", "gpu")], "cpu", True),
        ([SLOW, EnergySensor("NVML", "gpu")], "cuda", False),
        ([SLOW, EnergySensor("RAPL", "package", tick_s=0.001)], "cpu", True),
        ([replace(SLOW, tick_s=0.0)], "cpu", False),
    ],
)
def test_a_sensor_too_slow_for_the_time_is_known(
    sensors: list[EnergySensor], provider: str, refused: bool
) -> None:
    device = FakeProfiler(latency, energy_sensors=sensors).device_info()
    told = in_python(too_slow(device, provider, 187.9))
    assert bool(told) == refused
    assert not refused or told == (
        "energy_time_s 187.9 is too short for meter, which has a value every 0.5 s: give 188"
    )
    assert not too_slow(device, provider, 188)


def test_an_energy_time_too_short_for_the_sensor_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeProfiler(latency, energy_sensors=[SLOW])
    monkeypatch.setattr(devices, "connect", lambda name: fake)
    with pytest.raises(UsageError, match=r"energy_time_s 3 is too short for meter.*: give 188$"):
        profile(replace(SMALL, metric="latency,energy"), tmp_path / "run")
    assert not fake.blocks
    assert not (tmp_path / "run").exists()


def test_energy_that_does_not_fit_into_a_block_is_refused(device: Changed, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="energy_time_s 20000: 7 models then take 140000 s"):
        profile(replace(SMALL, metric="energy", energy_time_s=20_000), tmp_path / "run")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("power", "^metric: unknown metric 'power': "),
        ("latency,latency", "^metric latency,latency: give each metric once"),
        (" , ", "^metric names no metric: choose latency, energy, peak_memory"),
    ],
)
def test_metrics_are_checked(metric: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(SMALL, metric=metric)


def test_an_unresolved_energy_counts_as_an_unstable_one(device: Changed, tmp_path: Path) -> None:
    device.change = unresolved
    run = profile(replace(SMALL, metric="latency,energy"), tmp_path / "run")
    frame = run.measurements()
    assert set(frame["energy_verdict"]) == {"unresolved"}
    assert set(frame["energy_reasons"]) == {("its 99 % interval is wide",)}
    assert set(frame["energy_interval_percent"]) == {30.0}
    assert set(frame["verdict"]) == {"stable"}
    assert run.result is not None
    assert run.result["metrics"]["energy"]["verdicts"]["unresolved"] == 20
    assert run.of("energy").dataset().only(run.settings.trusted_verdicts)
    with pytest.warns(UserWarning, match="^no predictor of energy: 20 of 20"):
        strict = resume(tmp_path / "run", train_on="stable")
    assert strict.result is not None
    assert "accuracy_percent" in strict.result["metrics"]["latency"]
    assert "with a verdict that train_on accepts" in strict.result["metrics"]["energy"]["problem"]


def test_a_metric_without_values_leaves_the_others(device: Changed, tmp_path: Path) -> None:
    settings = replace(SMALL, metric="latency,energy")
    device.change = missing
    with pytest.warns(UserWarning, match="^no predictor of energy: 0 of 20 architectures have"):
        run = profile(settings, tmp_path / "other")
    assert run.converged
    assert [metric.name for metric in run.learnt] == ["latency"]
    problem = "0 of 20 architectures have a known energy, 0 of them with a verdict"
    assert run.result is not None
    assert run.result["metrics"]["energy"]["problem"].startswith(problem)
    told = run.result["metrics"]["energy"]["problem"]
    assert told.endswith("first failure: OSError: the meter is unplugged: give energy_time_s 60")
    assert run.measurements()["energy_predicted_mj"].isna().all()
    assert set(run.measurements()["energy_reasons"]) == {()}
    with pytest.raises(DatasetError, match="has no predictor of energy: 0 of 20"):
        run.of("energy").predict(run.sample(1))
    with pytest.raises(DeviceError, match="have a known energy"):
        profile(replace(settings, metric="energy"), tmp_path / "alone")


def test_predictions_have_a_column_of_each_metric(device: Changed, tmp_path: Path) -> None:
    run = profile(replace(SMALL, metric=ALL), tmp_path / "run")
    heading = esm_host("predict", run.path, "--sample", 2).stdout.splitlines()[0].split()
    assert heading == ["latency_ms", "energy_mj", "peak_rss_mb", "blocks", "architecture"]
    asked = ["predict", run.path, "--sample", 2, "--metric", "energy,peak_memory"]
    heading = esm_host(*asked, "--interval", 90).stdout.splitlines()[0].split()
    assert heading[:3] == ["energy_mj", "from_mj", "to_mj"]
    assert heading[3:6] == ["peak_rss_mb", "from_mb", "to_mb"]
    first, *_ = json.loads(esm_host(*asked, "--interval", 90, "--json", "-").stdout)["results"]
    assert first.keys() == {
        *("energy_mj", "energy_interval_mj", "peak_rss_bytes", "peak_rss_interval_bytes"),
        *("key", "depth", "architecture"),
    }
    low, high = first["peak_rss_interval_bytes"]
    assert low <= first["peak_rss_bytes"] <= high
    against = esm_host("predict", run.path, "--against", run.path, "--metric", "energy")
    assert against.stdout.startswith("20 architectures, 20 of them in the predictor's training set")
    refused = esm_host("predict", run.path, "--sample", 1, "--metric", "power")
    assert refused.exit_code == 2
    assert "--metric: unknown metric 'power'" in refused.stderr


def test_a_campaign_is_continued_with_its_metrics(device: Changed, tmp_path: Path) -> None:
    profile(replace(SMALL, metric=ALL), tmp_path / "run")
    run = resume(tmp_path / "run", max_models=30, target_accuracy_percent=100)
    assert len(run.measurements()) == 30
    assert run.measurements()["energy_mj"].notna().all()
    assert {block.energy_s for block in device.blocks} == {3.0}
    assert esm_host("profile", "--run", run.path, "--resume", "--finish", "--quiet").exit_code == 3
    assert len(load_run(run.path).of("energy").dataset()) == 30


def test_energy_takes_its_time_in_estimates(device: Changed, tmp_path: Path) -> None:
    told = []

    class Told:
        def on_estimate(self, estimate: object) -> None:
            told.append(estimate)

    profile(replace(SMALL, metric="latency,energy"), tmp_path / "run", watcher=Told())
    # Seven models of a block share the time of five.
    assert told[0].model_low_s >= 3 * 7 / 5


def test_the_report_has_a_section_for_each_metric(device: Changed, tmp_path: Path) -> None:
    device.change = by_chance
    run = profile(replace(ACCURATE, metric=ALL, target_accuracy_percent=70), tmp_path / "run")
    page = campaign_page(run)
    sections = {section.id: section for section in page.sections}
    assert sections["predictions"].title == "Predictions"
    energy, memory = sections["predictions-energy"], sections["predictions-peak_memory"]
    assert energy.title == "Predictions of energy"
    assert energy.lead.endswith("The predictor misses the target of 70 %.")
    assert memory.lead.endswith("The predictor reaches the target of 70 %.")
    figure, bins = memory.parts
    assert figure.title == "Predicted against measured peak memory"
    assert [column.title for column in figure.columns][2:5] == [
        *("measured (MB)", "± (%)", "predicted (MB)")
    ]
    assert [row[0].text for row in bins.rows][-1] == "all"
    leads = profile(replace(SMALL, metric="energy,latency"), tmp_path / "energy")
    page = campaign_page(leads)
    assert "Values of energy of other architectures" in page.lead
    assert {"predictions", "predictions-latency"} <= {section.id for section in page.sections}


def test_latencies_of_other_devices_help_to_learn_energy(
    device: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESM_SOURCES", str(tmp_path / "none"))
    sampler = RandomSampler(SPACE, DepthBins(SPACE.min_depth, SPACE.max_depth, 1))
    codes = SPACE.encode(sampler.sample(200, np.random.default_rng(0)))
    blocks = 1.0 + (codes >= 0).sum(axis=(1, 2))
    table = tmp_path / "known.parquet"
    write_table(LatencyTable("known", SPACE, codes, {"blocks": blocks}, {}), table)
    options = ["--resolution", 32, "--width-mult", 0.25, "--samples", 12, "--held-out", 6]
    options += ["--source", table, "--run", tmp_path / "run", "--quiet"]
    done = esm_host("transfer", *options, "--metric", "energy", "--energy-time", 3)
    assert done.exit_code == 0, done.output
    assert "6 held out: rank correlation" in done.stdout
    run = load_run(tmp_path / "run")
    assert run.result is not None
    assert run.result["transfer"]["accuracy_percent"] > 80
    drawn = run.sample(5)
    truth = [NET_W * latency(Model(a.key, SPACE.build(a))) for a in drawn]
    np.testing.assert_allclose(run.predict(drawn), truth, rtol=0.5)
    assert "transfer" in {section.id for section in campaign_page(run).sections}
    refused = esm_host("transfer", *options, "--metric", "peak_memory")
    assert refused.exit_code == 2
    assert "--metric peak_memory: latencies of other devices tell nothing" in refused.stderr
    refused = esm_host("transfer", *options, "--metric", "energy", "--method", "proxy")
    assert refused.exit_code == 2
    assert "--method proxy predicts latencies only" in refused.stderr
