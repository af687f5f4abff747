"""Warnings about a campaign as a whole: printed once, in its result and in its report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import esm_host
from esm_host.cli.app import app
from esm_host.report.campaign import campaign_page
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import BlockResult
from tests.host.fake_campaign import latency

SMALL = ["--resolution", 32, "--width-mult", 0.25, "--initial", 20, "--step", 10, "--bins", 2]
SMALL += ["--block-size", 10, "--runs", 5, "--warmup", 0]
SMALL += ["--sampling", "balanced", "--predictor", "ridge"]


def profile(run: Path, *options: object) -> Result:
    return CliRunner().invoke(app, ["profile", "--run", str(run), *map(str, (*SMALL, *options))])


def warnings(result: Result, words: str) -> list[str]:
    return [line for line in result.stderr.splitlines() if words in line]


def of_result(run: Path) -> list[str]:
    told: list[str] = json.loads((run / "result.json").read_text())["warnings"]
    return told


def test_more_threads_than_asked_for_are_a_warning(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, run = fake.answer, tmp_path / "r"

    def answered(*arguments: Any) -> BlockResult:
        block = answer(*arguments)
        measured = (replace(each, threads_used=3.9) for each in block.measurements)
        return replace(block, measurements=tuple(measured))

    options = ("--target-accuracy", 100, "--max-models", 30, "--verify", 0)
    profile(tmp_path / "quiet", *options)
    assert of_result(tmp_path / "quiet") == []
    monkeypatch.setattr(fake, "answer", answered)
    text = "cpu used 3.9 threads, not 1: it ignores the number that was asked for"
    assert warnings(profile(run, *options), "used 3.9") == [f"warning: {text}"]
    assert of_result(run) == [text]
    assert "used 3.9 threads" in repr(campaign_page(esm_host.load_run(run)).sections[0])
    assert set(esm_host.load_run(run).measurements()["threads_used"]) == {3.9}


def test_a_budget_that_is_exceeded_is_a_warning(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device becomes four times as slow after the first 20 models."""
    run = tmp_path / "r"
    monkeypatch.setattr(fake, "_latency", lambda model: 30 * latency(model))
    steady = tmp_path / "steady"
    profile(steady, "--target-accuracy", 100, "--max-models", 20, "--verify", 0)
    busy_s = json.loads((steady / "result.json").read_text())["device_busy_seconds"]
    slow = len(fake.blocks) + 3  # a probe and two blocks
    monkeypatch.setattr(fake, "_pace", lambda number: 1.0 if number < slow else 4.0)
    result = profile(run, "--budget", f"{2.2 * busy_s:.0f}s", "--verify", 0)
    assert result.exit_code == 0, result.output
    (line,) = warnings(result, "--budget")
    told = re.fullmatch(
        r"warning: the campaign took (\d+) s of device time, (\d+) s \((\d+) %\) more than "
        r"--budget (\d+)s",
        line,
    )
    assert told is not None, line
    took, over, percent, budget = map(int, told.groups())
    assert abs(took - over - budget) <= 1
    assert percent >= 20
    assert len(of_result(run)) == 1
