"""What a campaign's report tells of the devices that it learnt from."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from esm_host import load_run
from esm_host.cli.app import app
from esm_host.report.transfer import held_out, source_correlations
from esm_host.report.transfer_plots import held_out_predictions
from esm_host.transfer.monotonicity import rank_correlation
from tests.host.report.conftest import written
from tests.host.report.timings import STRANGE


def section(run: Path, folder: Path) -> str:
    """The text of the report's section, tags and all."""
    text = written(run, folder / "report.html").read_text()
    (found,) = re.findall(r'<section id="transfer".*?</section>', text, re.S)
    return str(found)


def figures(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())["transfer"]
    return found


def changed(run: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the run with other figures; those that are None are left out."""
    copy = shutil.copytree(run, folder / "run")
    result = json.loads((copy / "result.json").read_text())
    result["transfer"] |= changes
    result["transfer"] = {k: v for k, v in result["transfer"].items() if v is not None}
    (copy / "result.json").write_text(json.dumps(result))
    return copy


def test_sources_are_told_apart_the_best_first(transferred: Path, tmp_path: Path) -> None:
    found = source_correlations(load_run(transferred))
    assert found["source"].tolist() == ["known/blocks", "known/chance", f"known/{STRANGE}"]
    first, _, last = found["correlation"]
    assert first > 0.9
    assert last < -0.9
    assert (found["low"] <= found["correlation"]).all()
    assert (found["correlation"] <= found["high"]).all()
    (table,) = re.findall(r'<table id="sources">.*?</table>', section(transferred, tmp_path), re.S)
    cells = re.findall(r"<th scope=row>(.*?)</th>", table)
    assert [html.unescape(cell) for cell in cells] == found["source"].tolist()
    for row in found.itertuples():
        assert f'data-value="{row.correlation}"' in table
        assert f'data-value="{row.low}"' in table


def test_held_out_figures_are_those_of_the_result(transferred: Path, tmp_path: Path) -> None:
    told, run = figures(transferred), load_run(transferred)
    frame = held_out(told, run.measurements())
    assert len(frame) == told["held_out"] == 6
    assert int(frame["covered"].sum()) == told["covered"]
    correlation = rank_correlation(frame["predicted_ms"], frame["latency_ms"])
    assert correlation.value == pytest.approx(told["spearman"])
    error = frame["error_percent"].abs().mean()
    assert 100 - error == pytest.approx(told["accuracy_percent"], abs=0.01)
    assert (frame["low_ms"] < frame["predicted_ms"]).all()
    assert (frame["predicted_ms"] < frame["high_ms"]).all()
    # Not the predictor that is kept, which has seen them.
    kept = run.predictor.predict(run.encoder.encode(_architectures(run, frame["architecture_key"])))
    assert not np.allclose(kept, frame["predicted_ms"], rtol=1e-4)
    text = section(transferred, tmp_path)
    assert f"rank correlation {told['spearman']:.3f}" in text
    assert f"{told['spearman_low']:.2f} to {told['spearman_high']:.2f}" in text
    assert f"{told['covered']} of 6 are within" in text


def _architectures(run: Any, keys: Any) -> list[Any]:
    by_key = {a.key: a for a in run.dataset().architectures}
    return [by_key[key] for key in keys]


def test_what_its_interval_does_not_hold_is_a_triangle(transferred: Path) -> None:
    frame = held_out(figures(transferred), load_run(transferred).measurements())
    frame.loc[0, ["low_ms", "high_ms", "covered"]] = [900.0, 999.0, False]
    spec = held_out_predictions(frame).to_dict()
    rows = next(rows for rows in spec["datasets"].values() if "within" in rows[0])
    assert [row["within"] for row in rows].count("no") == 1 + (~frame["covered"][1:]).sum()
    marks = [layer["mark"].get("style") for layer in spec["layer"]]
    assert marks == ["baseline", "whisker", "median", "outlier"]
    assert spec["layer"][1]["encoding"]["x"]["scale"]["domain"][1] > 999


def test_says_whether_the_sources_helped(transferred: Path, tmp_path: Path) -> None:
    errors: dict[str, Any] = {"left_out_error_percent": 2.14, "without_sources_percent": 3.41}
    few = section(changed(transferred, tmp_path / "few", **errors), tmp_path)
    assert "too few samples to tell (12)" in few
    errors["samples"] = 20
    helped = section(changed(transferred, tmp_path / "a", **errors), tmp_path)
    assert "The sources helped" in helped
    assert "2.1 % with sources, 3.4 % without" in helped
    errors["left_out_error_percent"] = 3.5
    same = section(changed(transferred, tmp_path / "b", **errors), tmp_path)
    assert "The sources made little difference" in same
    errors["left_out_error_percent"] = 4.5
    useless = section(changed(transferred, tmp_path / "c", **errors), tmp_path)
    assert "The sources did not help" in useless
    assert "helped" not in useless


@pytest.mark.parametrize("held", [False, True])
def test_without_models_held_out(transferred: Path, tmp_path: Path, held: bool) -> None:
    """None were; or a result tells of them without naming them."""
    gone = ["held_out_models", *([] if held else ["held_out", "spearman", "covered"])]
    text = section(changed(transferred, tmp_path, **dict.fromkeys(gone)), tmp_path)
    assert ("No models were held out" in text) is not held
    assert ("rank correlation 0." in text or "rank correlation 1." in text) is held
    assert "<figure" not in text


def test_a_campaign_without_sources_says_nothing_of_them(campaign: Path, tmp_path: Path) -> None:
    assert 'id="transfer"' not in written(campaign, tmp_path / "r.html").read_text()


def test_damaged_sources_are_one_line(transferred: Path, tmp_path: Path) -> None:
    copy = changed(transferred, tmp_path)
    (copy / "sources.npz").write_bytes(b"PK")
    result = CliRunner().invoke(app, ["report", str(copy), "-o", str(tmp_path / "r.html")])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "sources.npz is damaged" in line
