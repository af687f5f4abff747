"""What the report of a search tells of it, and what is read from its folder."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from esm_host.cli.app import app
from esm_host.errors import EsmError
from esm_host.report import search_plots
from esm_host.report.search_numbers import accuracy, deviations, progress, reduction
from esm_host.search.record import holds_search, load_search
from esm_host.search.settings import SearchSettings
from esm_host.workflows import search as searching
from tests.host.report.conftest import written


def front(search: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((search / "front.json").read_text())
    return found


def page(search: Path, folder: Path) -> str:
    return written(search, folder / "report.html").read_text()


def copied(search: Path, folder: Path, settings: Any = None, **changes: Any) -> Path:
    """The search and its campaign elsewhere, other things written in its settings and result."""
    copy = shutil.copytree(search.parent, folder / "a") / "search"
    told = json.loads((copy / "settings.json").read_text()) | (settings or {})
    (copy / "settings.json").write_text(json.dumps(told))
    (copy / "front.json").write_text(json.dumps(front(copy) | changes))
    return copy


def table(text: str, name: str) -> list[list[str]]:
    """The cells of every row of a table's body."""
    (found,) = re.findall(rf'<table id="{name}">.*?</table>', text, re.S)
    rows = re.findall(r"<tr>(.*?)</tr>", found.partition("<tbody>")[2], re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]


def test_what_is_read_is_what_was_written(searched: Path) -> None:
    record, told = load_search(searched), front(searched)
    assert holds_search(searched)
    assert not holds_search(searched.parent)
    assert record.front()["key"].tolist() == [row["key"] for row in told["results"]]
    chosen = [row for each in told["rounds"] for row in each["chosen"]]
    assert record.chosen()["key"].tolist() == [row["key"] for row in chosen]
    assert record.chosen()["latency_ms"].tolist() == [row["latency_ms"] for row in chosen]
    assert record.predicted()["key"].tolist() == [r["key"] for r in told["rounds"][0]["front"]]
    assert record.believed().equals(record.predicted())
    assert not record.stable
    assert len(chosen) == told["measured"] == 10


def test_what_is_measured_is_what_the_search_went_by(searched: Path) -> None:
    """Every quantity of the front is told again from the campaign's store."""
    record = load_search(searched)
    measured = record.measured().set_index("key")
    assert measured["on_front"].sum() == len(record.front())
    assert (measured["round"] > 0).sum() == 10
    for row in front(searched)["results"]:
        for name in ("latency_ms", "latency_at_most_ms", "flops", "parameters", "memory_bytes"):
            assert measured.loc[row["key"], name] == pytest.approx(row[name])
    unfinished = record.measured()
    kept = measured[(measured["latency_at_most_ms"] <= 2.5)]
    for row in kept.itertuples():
        beaten = (kept["latency_ms"] <= row.latency_ms) & (kept["flops"] > row.flops)
        assert beaten.any() or row.on_front
    assert len(unfinished) > 10


def test_predictions_are_judged_by_what_was_measured_then(searched: Path) -> None:
    record = load_search(searched)
    off = deviations(record)
    assert len(off) == 10
    for row in off.itertuples():
        assert row.off_percent == pytest.approx(100 * (row.measured_ms / row.predicted_ms - 1))
        assert row.within == (row.measured_ms <= row.at_most_ms)
    assert off.groupby("round")["probability"].first().tolist()[:2] == [0.9, 0.5]
    frame = pd.DataFrame(
        {
            "round": [1] * 10 + [2],
            "off_percent": [*range(-10, 0), np.nan],
            "within": [True] * 6 + [False] * 5,
        }
    )
    found = accuracy(frame, "round")
    assert found.index.tolist() == [1]
    assert found.loc[1].tolist() == pytest.approx([5.5, 9.1, 60])


def test_the_verified_front_grows_to_what_it_is(searched: Path) -> None:
    record = load_search(searched)
    steps = progress(record)
    assert steps["measured"].tolist() == [0, 4, 8, 10]
    assert steps["hypervolume_percent"].is_monotonic_increasing
    assert steps["hypervolume_percent"].iloc[0] < steps["hypervolume_percent"].iloc[-1] == 100
    assert steps["front"].iloc[-1] == len(record.front())


def test_reduction_is_a_lower_bound_over_what_keeps_the_limits(searched: Path) -> None:
    record = load_search(searched)
    found = reduction(record)
    assert found is not None
    measured = record.measured()
    kept = measured[measured["excess"] == 0]
    chosen = kept[kept["round"] > 0]
    lost = [
        kept.loc[kept["latency_ms"] <= row.latency_ms, "flops"].max() - row.flops
        for row in chosen.itertuples()
    ]
    assert found.chosen == len(chosen)
    assert found.of_chosen == pytest.approx(np.mean(lost))
    front = [
        not ((chosen["latency_ms"] < row.latency_ms) & (chosen["flops"] > row.flops)).any()
        for row in chosen.itertuples()
    ]
    assert found.verified == sum(front)
    assert found.of_verified == pytest.approx(np.mean(np.array(lost)[front]))


def test_the_page_says_what_was_measured_of_what(searched: Path, tmp_path: Path) -> None:
    text, told = page(searched, tmp_path), front(searched)
    assert "measured, not stable" in text
    rows = table(text, "front-table")
    assert [float(row[1]) for row in rows] == pytest.approx(
        [row["latency_ms"] for row in told["results"]], rel=1e-3
    )
    found = table(text, "searches")
    assert [int(row[4]) for row in found] == [len(each["chosen"]) for each in told["rounds"]]
    assert [int(row[2]) for row in found] == [len(each["front"]) for each in told["rounds"]]
    keys = {row["key"] for row in told["results"]}
    left = [sum(row["key"] in keys for row in each["chosen"]) for each in told["rounds"]]
    assert [int(row[6]) for row in found] == left
    assert "The figures are lower bounds" in text
    assert "reference point is the worst" in text


def asked_for(search: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> SearchSettings:
    """What the command in a page's next step asks for."""
    asked: list[SearchSettings] = []

    def run(settings: SearchSettings, *_: Any) -> None:
        asked.append(settings)
        raise EsmError("enough")

    monkeypatch.setattr(searching, "run_search", run)
    (command,) = re.findall(r">(esm-host search .*?)</code>", page(search, folder))
    CliRunner().invoke(app, shlex.split(html.unescape(command))[1:])
    (settings,) = asked
    return settings


def test_the_next_step_goes_on_to_more_measurements(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"runs": [str(tmp_path / "a")]}
    other = copied(searched, tmp_path, {"objectives": ["params"], "probability": 0.8, **runs})
    settings = asked_for(other, tmp_path, monkeypatch)
    assert settings.to_json() == load_search(other).settings.to_json() | {"measure": 20}


def test_where_nothing_was_found_the_next_step_asks_for_the_same(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"objectives": ["params"], "limits": ["flops<=3e9"], "seed": 4, "probability": 0.8}
    other = copied(searched, tmp_path, changes, results=[])
    settings = asked_for(other, tmp_path, monkeypatch)
    before = load_search(other).settings
    assert settings.to_json() == before.to_json() | {"runs": (str(other.parent),)}


def test_a_front_that_was_only_predicted(searched: Path, tmp_path: Path) -> None:
    predicted = front(searched)["rounds"][0]["front"]
    settings = {"measure": 0}
    other = copied(searched, tmp_path, settings, verified=False, results=predicted)
    (other / "rounds.json").unlink()
    text = page(other, tmp_path)
    assert "predicted, nothing was measured" in text
    assert "Nothing was measured" in text
    assert "verified" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert len(predicted) <= 100
    assert len(table(text, "front-table")) == len(predicted)
    assert 'id="verification"' not in text
    assert "--measure 50" in text


@pytest.mark.parametrize("measure", [0, 10])
def test_nothing_keeps_the_limits(searched: Path, tmp_path: Path, measure: int) -> None:
    settings = {"measure": measure, "max_latency_ms": [0.1]}
    other = copied(searched, tmp_path, settings, verified=measure > 0, results=[])
    text = page(other, tmp_path)
    assert "nothing is within the limits" in text
    assert 'id="front-table"' not in text
    assert ("does not list the architectures closest to the limits" in text) is (measure == 0)
    if measure:
        over = [float(row[-1]) for row in table(text, "closest")]
        assert over == sorted(over)
        assert over[0] > 0


def test_a_search_that_was_broken_off(searched: Path, tmp_path: Path) -> None:
    other = copied(searched, tmp_path)
    (other / "front.json").unlink()
    text = page(other, tmp_path)
    assert "not finished" in text
    assert f"-o {other} --resume" in text
    assert len(table(text, "front-table")) == len(front(searched)["results"])


def test_several_devices_have_a_picture_each(searched: Path, tmp_path: Path) -> None:
    """Three objectives: no line is a front of two of them."""
    other = copied(searched, tmp_path, {"runs": ["elsewhere/a", "elsewhere/b"]})
    shutil.copytree(other.parent, tmp_path / "b", ignore=lambda *_: ["search"])

    def renamed(row: dict[str, Any]) -> dict[str, Any]:
        latencies = {n: row.pop(n) for n in ("latency_ms", "latency_at_most_ms")}
        return {f"{d}.{n}": v for d in "ab" for n, v in latencies.items()} | row

    told = front(other)
    told["results"] = [renamed(row) for row in told["results"]]
    for each in told["rounds"]:
        each["front"] = [renamed(row) for row in each["front"]]
        each["chosen"] = [renamed(row) for row in each["chosen"]]
    (other / "front.json").write_text(json.dumps(told))
    (other / "rounds.json").write_text(json.dumps(told["rounds"]))
    text = page(other, tmp_path)
    assert re.findall(r'<figure id="(front-\d)"', text) == ["front-0", "front-1"]
    assert "latency on a at most 2.5 ms and latency on b at most 2.5 ms" in text
    assert [row[0] for row in table(text, "accuracy-by-device")] == ["a", "b"]
    record = load_search(other)
    axes = ("a.latency_ms", "flops")
    points = search_plots.measured_points(record.measured(), record.chosen(), axes)
    kinds = {
        stairs: [
            layer["mark"]["type"]
            for layer in search_plots.verified_front(
                points, record.predicted(), axes, (), stairs
            ).to_dict()["layer"]
        ]
        for stairs in (True, False)
    }
    assert kinds[True].count("line") == 2
    assert kinds[False].count("line") == 0
    assert "(MRA)" not in text


def test_axes_are_logarithmic_where_values_span_more_than_a_decade(searched: Path) -> None:
    record = load_search(searched)
    measured, axes = record.measured(), ("latency_ms", "flops")
    for factor, expected in ((1.0, "linear"), (100.0, "log")):
        stretched = measured.copy()
        stretched.loc[stretched.index[0], "latency_ms"] *= factor
        points = search_plots.measured_points(stretched, record.chosen(), axes)
        spec = search_plots.verified_front(points, record.predicted(), axes).to_dict()
        scales = [layer["encoding"]["x"]["scale"] for layer in spec["layer"]]
        assert {scale.get("type", "linear") for scale in scales} == {expected}


def test_an_objective_that_is_gone_is_known_of_what_was_written(
    searched: Path, tmp_path: Path
) -> None:
    """What the campaign measured on its own was never told its accuracy."""
    told = front(searched)
    rows = [*told["results"], *(r for e in told["rounds"] for r in (*e["front"], *e["chosen"]))]
    for row in rows:
        row["accuracy"] = row["flops"] / 1e9
    settings = {"objectives": ["accuracy=gone.py:estimate"]}
    other = copied(searched, tmp_path, settings, results=told["results"], rounds=told["rounds"])
    (other / "rounds.json").write_text(json.dumps(told["rounds"]))
    text = page(other, tmp_path)
    assert "accuracy against latency" in text
    measured = load_search(other).measured()
    assert measured.loc[measured["round"] > 0, "accuracy"].notna().all()
    assert measured.loc[measured["accuracy"].isna(), "excess"].eq(np.inf).all()


@pytest.mark.parametrize("what", ["campaign", "front", "rounds", "row", "nothing"])
def test_a_damaged_folder_is_one_line(searched: Path, tmp_path: Path, what: str) -> None:
    other = copied(searched, tmp_path)
    if what == "campaign":
        other = shutil.move(other, tmp_path / "alone")
    elif what == "row":
        (other / "front.json").write_text('{"results": [{"key": "x"}]}')
    elif what == "nothing":
        (other / "front.json").unlink()
        (other / "rounds.json").unlink()
    else:
        (other / f"{what}.json").write_text("{")
    if what == "campaign":
        settings = json.loads((other / "settings.json").read_text())
        (other / "settings.json").write_text(json.dumps(settings | {"runs": ["gone/a-campaign"]}))
    result = CliRunner().invoke(app, ["report", str(other), "-o", str(tmp_path / "r.html")])
    assert result.exit_code == (2 if what == "nothing" else 1)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert not (tmp_path / "r.html").exists()
