"""Changed settings of ``esm-host profile --resume``: each takes effect, or a line says why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import esm_host
from esm_host.cli.app import app
from esm_host.errors import UnreachableError
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import DeviceInfo
from tests.host.fake_campaign import latency

SMALL = ["--resolution", 32, "--width-mult", 0.25, "--initial", 20, "--step", 10, "--bins", 2]
SMALL += ["--block-size", 10, "--runs", 5, "--sampling", "balanced", "--predictor", "ridge"]


def profile(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)])


def refused(result: Result, words: str) -> bool:
    """Whether the command was refused in one line with these words."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line.startswith("error: ") and words in line


def warnings(result: Result) -> list[str]:
    lines = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    return [line.removeprefix("warning: ") for line in lines if "block-size" not in line]


@pytest.fixture
def converged(fake: FakeProfiler, tmp_path: Path) -> Path:
    """A campaign that reached its target, with a check of 6 models."""
    run = tmp_path / "r"
    options = ["--run", run, "--target-accuracy", 1, "--verify", 6, "--max-models", 60]
    assert profile(*SMALL, *options).exit_code == 0
    return run


def measured(run: Path) -> int:
    count: int = json.loads((run / "result.json").read_text())["measured_models"]
    return count


def test_a_larger_check_is_measured(fake: FakeProfiler, converged: Path) -> None:
    result = profile("--run", converged, "--resume", "--verify", 10)
    assert result.exit_code == 0, result.output
    assert warnings(result) == []
    assert "check: random 4 architectures" in result.stderr
    assert "checked on 10 random models" in result.stdout
    assert measured(converged) == 30


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--verify", 4], "--verify 4 has no effect: the check has 6 models already"),
        (["--max-models", 90], "--max-models 90 has no effect: the target accuracy is reached"),
        (
            ["--budget", "1h"],
            "--budget 3600s has no effect: the target accuracy is reached; "
            "--target-accuracy 100 uses all of it",
        ),
        (
            ["--group-tolerance", 5],
            "--group-tolerance 5.0 has no effect: the campaign has a single device",
        ),
        (["--load-timeout", 5], "--load-timeout 5.0 has no effect: nothing is left to measure"),
    ],
)
def test_a_setting_without_effect_says_so(
    converged: Path, changes: Sequence[object], words: str
) -> None:
    result = profile("--run", converged, "--resume", *changes)
    assert result.exit_code == 0, result.output
    assert words in warnings(result)
    assert measured(converged) == 26


def test_a_check_that_the_budget_does_not_suffice_for_says_so(
    fake: FakeProfiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "_latency", lambda model: 30 * latency(model))
    options = ["--run", tmp_path / "r", "--target-accuracy", 1, "--verify", 6]
    assert profile(*SMALL, *options).exit_code == 0
    result = profile("--run", tmp_path / "r", "--resume", "--verify", 10, "--budget", "1s")
    (line,) = warnings(result)
    assert line == (
        "--verify 10 has no effect: --budget 1s leaves too little device time; give more"
    )
    assert measured(tmp_path / "r") == 26
    assert warnings(profile("--run", tmp_path / "r", "--resume", "--verify", 10)) == [line]


def test_a_finished_campaign_needs_no_device(
    fake: FakeProfiler, converged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> DeviceInfo:
        raise UnreachableError("no agent answers")

    monkeypatch.setattr(fake, "device_info", absent)
    resume = ("--run", converged, "--resume", "--patience", 0)
    before = (converged / "result.json").read_text()
    result = profile(*resume)
    assert result.exit_code == 0, result.output
    assert "converged: the target accuracy is reached" in result.stdout
    assert json.loads((converged / "result.json").read_text()).keys() == json.loads(before).keys()
    assert warnings(profile(*resume, "--verify", 4)) == [
        "--verify 4 has no effect: the check has 6 models already"
    ]
    more = profile(*resume, "--verify", 10)
    assert more.exit_code == 69, more.output
    assert "no agent answers" in more.stderr
    elsewhere = profile(*resume, "--device", "a:1")
    assert elsewhere.exit_code == 69, "another address is tried"
    assert measured(converged) == 26


def test_a_missed_target_is_not_checked(fake: FakeProfiler, tmp_path: Path) -> None:
    options = ["--run", tmp_path / "r", "--target-accuracy", 99.99, "--verify", 6]
    assert profile(*SMALL, *options, "--max-models", 20).exit_code == 3
    result = profile("--run", tmp_path / "r", "--resume", "--verify", 8)
    (line,) = warnings(result)
    assert line == (
        "--verify 8 has no effect: --max-models 20 is reached, and only a reached target is checked"
    )


def test_changes_that_take_effect_are_not_warned_of(converged: Path) -> None:
    result = profile("--run", converged, "--resume", "--target-accuracy", 99.99, "--max-models", 36)
    assert result.exit_code == 3, result.output
    assert warnings(result) == []
    assert "round 2: 10 architectures, about" in result.stderr  # by what its blocks took
    assert measured(converged) == 36


def test_what_a_finish_cannot_use_is_said(converged: Path) -> None:
    result = profile("--run", converged, "--resume", "--finish", "--verify", 10)
    (line,) = warnings(result)
    assert line == (
        "--verify 10 has no effect yet: --finish measures nothing; the next resume uses it"
    )
    assert profile("--run", converged, "--resume").exit_code == 0
    assert measured(converged) == 30


def test_python_names_what_has_no_effect(converged: Path) -> None:
    with pytest.warns(UserWarning, match=r"^verify 4 has no effect: the check has 6 models"):
        esm_host.resume(converged, verify=4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--verify", 1], "--verify 1 is fewer than the 2 depth bins"),
        (["--verify", 1, "--judge", "overall"], "--verify 1 is too few for a confidence interval"),
        (["--verify", 3, "--bins", 4], "of: give 4 or more, or 0 for no check"),
        (["--initial", 0], "--initial 0: give 10 or more, or omit it"),
        (["--initial", 1], "--initial 1 is outside 10 to"),
        (["--step", 0], "--step 0: give 1 or more, or omit it"),
        (["--budget", "0"], "--budget 0: give a duration"),
        (["--budget", "0s"], "--budget 0s: give a duration"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_measured(
    fake: FakeProfiler, tmp_path: Path, options: Sequence[object], words: str
) -> None:
    assert refused(profile(*SMALL, "--run", tmp_path / "r", *options), words)
    assert not fake.blocks
    assert not (tmp_path / "r").exists()


def test_a_budget_that_is_too_short_leaves_no_campaign(fake: FakeProfiler, tmp_path: Path) -> None:
    options = [*SMALL, "--run", tmp_path / "r", "--target-accuracy", 1]
    many = ["--budget", "1s", "--runs", 10**6]
    *_, probe, error = profile(*options, *many).stderr.splitlines()
    assert "20 models take about" in probe
    assert "--budget 1s is too short for 40 models, which take about" in error
    assert "give more, or fewer --initial or --verify" in error
    assert profile(*options, "--budget", "1h").exit_code == 0


def test_a_check_of_an_older_campaign_may_be_smaller(converged: Path) -> None:
    settings = json.loads((converged / "settings.json").read_text())
    (converged / "settings.json").write_text(json.dumps({**settings, "verify": 1}))
    assert profile("--run", converged, "--resume").exit_code == 0
