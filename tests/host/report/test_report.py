"""``esm-host report`` and the charts, without a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from esm_host import load_run
from esm_host.campaign.run import RoundProgress
from esm_host.cli.app import app
from esm_host.report import plots, timing_plots
from esm_host.report.campaign import _residuals
from esm_host.report.page import bytes_text, fixed, significant
from esm_host.transport.fake import FakeProfiler
from tests.host.dataset.test_group import rack
from tests.host.fake_campaign import SPACE, Log, assemble, latency
from tests.host.report.conftest import finished, written
from tests.host.report.timings import older, timing


@pytest.mark.parametrize("what", ["nothing", "empty", "folder"])
def test_wrong_usage_is_one_line(what: str, campaign: Path, tmp_path: Path) -> None:
    source = {"nothing": tmp_path / "none", "empty": tmp_path, "folder": campaign}[what]
    output = tmp_path / "none" / "r.html" if what == "folder" else tmp_path / "r.html"
    result = CliRunner().invoke(app, ["report", str(source), "--output", str(output)])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert not output.exists()


def test_a_comparison_that_is_damaged_is_one_line(comparison: Path, tmp_path: Path) -> None:
    data = json.loads(comparison.read_text())
    path = tmp_path / "comparison.json"
    for broken in ({**data, "schema_version": 9}, {**data, "results": [{"model": "a"}]}):
        path.write_text(json.dumps(broken))
        result = CliRunner().invoke(
            app, ["report", str(path), "--output", str(tmp_path / "r.html")]
        )
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert "compare --json" in line


def test_an_unfinished_campaign_has_a_report(campaign: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("settings.json", "store.sqlite"):
        (run / name).write_bytes((campaign / name).read_bytes())
    text = written(run, tmp_path / "r.html").read_text()
    assert "not finished" in text
    assert f"esm-host profile --run {run} --resume" in text
    assert "Drift of the device" in text


class BrokenOffError(Exception): ...


def test_the_report_of_a_campaign_under_way_has_one_state(campaign: Path, tmp_path: Path) -> None:
    run, log = shutil.copytree(campaign, tmp_path / "run"), Log()

    def break_off() -> None:
        raise BrokenOffError

    log.on_block_do = break_off
    changes = {"max_models": 100, "target_accuracy_percent": 100.0}
    *_, loop = assemble(run, FakeProfiler(latency), log, **changes)
    with pytest.raises(BrokenOffError):
        loop.run()
    ended, going_on = load_run(campaign), load_run(run)
    assert ended.progress is None
    assert ended.result is not None
    number, models = len(ended.result["rounds"]), ended.result["measured_models"]
    assert going_on.progress == RoundProgress(number, False, 10, 20, False)
    assert f"{models + 10} measured, not finished" in going_on._repr_html_()
    text = written(run, tmp_path / "r.html").read_text()
    assert f"The campaign is under way in round {number}: 10 of 20 models measured." in text
    assert f"After {models} models, others were predicted with a mean error of" in text
    assert "not finished" in text
    assert "converged: target" not in text
    assert "Held-out predictions" not in text


def test_between_two_rounds_no_round_is_under_way(campaign: Path, tmp_path: Path) -> None:
    run = shutil.copytree(campaign, tmp_path / "run")
    last = len(load_run(run).rounds()) - 1
    (run / "result.json").unlink()
    text = written(run, tmp_path / "r.html").read_text()
    assert f"The campaign is under way: round {last} has ended, and the next round comes." in text


def test_a_report_tells_of_a_groups_devices(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", "rack-a", rack(1, 1.05, 1, noise=0.3))
    result = json.loads((run / "result.json").read_text())
    result["devices"][0] |= {"left_at": "2026-01-31T12:00:00", "left_because": "no <b>answer"}
    (run / "result.json").write_text(json.dumps(result))
    text = written(run, tmp_path / "r.html").read_text()
    (table,) = re.findall(r'<table id="group-devices">.*?</table>', text, re.S)
    for device in result["devices"]:
        assert f">{device['name']}</th>" in table
        assert f'data-value="{float(device["models"])}"' in table
        assert f">{device['pace']:.3f}</td>" in table
    assert "2026-01-31T12:00:00: no &lt;b&gt;answer" in table
    assert "3 devices took part, 1 of them left." in text
    assert re.search(r"esm-host devices doctor pi-[123]<", text), "a group has no doctor"


def test_a_timing_in_which_all_failed_has_a_report(tmp_path: Path) -> None:
    data = timing()
    data["results"] = data["results"][-1:]
    data["comparisons"] = []
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data))
    text = written(path, tmp_path / "r.html").read_text()
    assert "out_of_memory" in text
    assert "nobody answers" in text


def test_a_large_campaign_stays_a_small_file(campaign: Path) -> None:
    frame = load_run(campaign).measurements()
    large = pd.concat([frame] * 120, ignore_index=True).head(4500)
    spec = plots.predicted_against_measured(large).to_dict()
    assert len(json.dumps(spec)) < 2_500_000
    assert max(map(len, spec["datasets"].values())) == 4500


def test_charts_are_drawn_without_a_network(campaign: Path, tmp_path: Path) -> None:
    run = load_run(campaign)
    path = tmp_path / "chart.png"
    plots.save(plots.reference_stability(run.blocks(), run.references(), 3.0), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_residuals_are_grouped_by_ranges() -> None:
    frame = pd.DataFrame({"depth": np.arange(100), "error_percent": np.arange(100) - 50.0})
    groups = plots.residual_groups(frame, "depth", 10)
    assert groups["models"].tolist() == [10] * 10
    assert groups["median_percent"].is_monotonic_increasing
    assert groups["range"].iloc[0] == "0 to 9"
    few = plots.residual_groups(frame.assign(depth=frame["depth"] % 3), "depth", 10)
    assert few["range"].tolist() == ["0", "1", "2"]


def test_a_caption_says_that_small_groups_do_not_count() -> None:
    blocks = np.repeat([10, 11, 12], [8, 6, 2])
    error = np.repeat([3.0, -5.0, 40.0], [8, 6, 2])
    alike = {f"mean_{feature.name}": 1.0 for feature in SPACE.features}
    frame = pd.DataFrame({"depth": blocks, "error_percent": error, **alike})
    (figure,) = _residuals(frame, SPACE)
    said = "error with 5 models or more is at number of blocks 11: 5.0 % too fast"
    assert said in figure.summary
    (figure,) = _residuals(frame[frame["depth"] < 12], SPACE)
    assert "The largest median error is at number of blocks 11: 5.0 % too fast" in figure.summary


def test_thinning_keeps_the_outliers_and_the_level() -> None:
    rng = np.random.default_rng(0)
    latency = rng.normal(10, 1, 50_000)
    latency[[77, 31_000]] = 99, 1
    samples = pd.DataFrame({"start_s": np.arange(50_000) / 1e3, "latency_ms": latency})
    thin = timing_plots.thinned(samples)
    assert len(thin) <= timing_plots.MOST_SAMPLES
    assert {77, 31_000} <= set(thin.index)
    assert thin["latency_ms"].median() == pytest.approx(10, abs=0.1)
    assert thin["start_s"].is_monotonic_increasing


def test_a_histogram_leaves_far_outliers_out_and_counts_the_rest() -> None:
    latency = np.concatenate([np.linspace(9, 11, 995), np.full(5, 500.0)])
    shown = timing_plots.histogram(latency)
    assert shown["to_ms"].iloc[-1] < 12
    assert shown["runs"].sum() == 990  # the slowest hundredth: the five, and five more
    level = timing_plots.histogram(np.full(20, 3.0))
    assert level["runs"].sum() == 20


def test_numbers_are_written_for_people() -> None:
    assert significant(0.123456) == "0.1235"
    assert significant(12345.6) == "12,346"
    assert fixed(-1.25, 1, sign=True).text == "\N{MINUS SIGN}1.2"
    assert fixed(None).value is None
    assert bytes_text(48e6) == "48.0 MB"


def test_the_code_in_the_docs_runs(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = Path(__file__).parents[3] / "docs" / "report.md"
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", docs.read_text(), re.M | re.S))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(campaign)
    monkeypatch.chdir(tmp_path)
    assert "run.predict(" in code
    exec(compile(code, str(docs), "exec"), {})
    assert (tmp_path / "pace.png").read_bytes().startswith(b"\x89PNG")


def test_a_timing_says_what_was_fed_and_what_was_assumed(tmp_path: Path) -> None:
    data = timing()
    first = data["results"][0]
    warning = "no size is given for H of x:Nx3xHx224: taken as 1; set H by --dim H=SIZE"
    first["assumed"] = [{"input": "x", "axis": 2, "symbol": "H"}]
    first["warnings"] = [warning]
    data["context"]["devices"]["pi4"]["interrupted"] = True
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(data))
    text = written(path, tmp_path / "report.html").read_text()
    assert "x 1x3x224x224 float32" in text
    assert warning in text
    assert "1 result has sizes taken as 1." in text
    assert "The timing was cut short by an interrupt." in text


def test_a_timing_says_where_the_provider_chose_the_threads(tmp_path: Path) -> None:
    data = timing()
    pages = []
    for own in (False, True):
        for result in data["results"]:
            result["own_threads"] = own
        path = tmp_path / "timing.json"
        path.write_text(json.dumps(data))
        pages.append(written(path, tmp_path / f"{own}.html").read_text())
    assert ["as the provider chooses" in page for page in pages] == [False, True]


def test_a_timing_shows_how_fast_the_device_was(tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    data = timing()
    path.write_text(json.dumps(data))
    text = written(path, tmp_path / "report.html").read_text()
    assert "Reference models over time" in text
    assert re.search(r"compared with the usual pace: arithmetic [67]\.\d % slower, large", text)
    assert "Latencies are at the device's usual pace." in html.unescape(text)
    data["context"]["devices"]["pi4"]["usual"] = None
    data["context"]["raw"] = True
    path.write_text(json.dumps(data))
    text = written(path, tmp_path / "report.html").read_text()
    assert "The device has no history yet" in text
    assert "Latencies are as measured." in text


def test_a_timing_of_the_version_before_has_a_report(tmp_path: Path) -> None:
    path = tmp_path / "timing.json"
    path.write_text(json.dumps(older(timing())))
    text = written(path, tmp_path / "report.html").read_text()
    assert "Latency of every result" in text
    assert "Reference models over time" not in text
    assert "usual pace" not in text
