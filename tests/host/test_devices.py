"""``esm-host devices doctor`` as users meet it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from esm_host.cli.app import app
from esm_host.transport import devices
from esm_host.transport.fake import FakeProfiler
from esm_protos.messages import Diagnosis, Finding, Severity

SWAPPING = Finding("swap", Severity.UNFIT, "900 pages a second", "stop other programs")


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["devices", "doctor", *map(str, arguments)])


@pytest.fixture
def sick(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProfiler(lambda model: 1.0, diagnosis=Diagnosis((SWAPPING,)))
    monkeypatch.setattr(devices, "connect", lambda device: fake)


@pytest.mark.usefixtures("sick")
def test_a_device_that_is_not_fit_is_exit_code_3() -> None:
    result = doctor("pi4")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        "unfit    swap  900 pages a second",
        "               -> stop other programs",
        "not fit to measure because of swap (0 ok, 0 unknown, 0 advice, 1 unfit)",
    ]


@pytest.mark.usefixtures("sick")
def test_json_goes_to_stdout_or_to_a_file(tmp_path: Path) -> None:
    shown = json.loads(doctor("pi4", "--json", "-").stdout)
    assert (shown["schema_version"], shown["device"], shown["fit"]) == (1, "pi4", False)
    out = tmp_path / "diagnosis.json"
    result = doctor("pi4", "--json", out)
    assert (result.exit_code, result.stdout) == (3, "")
    assert json.loads(out.read_text()) == shown


def test_a_fit_device_is_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "connect", lambda device: FakeProfiler(lambda model: 1.0))
    result = doctor("pi4")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("fit to measure")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["127.0.0.1:1"], 69, "no agent answers"),
        (["nobody"], 2, "unknown device 'nobody'"),
        (["local", "--seconds", "0"], 2, "--seconds"),
        (["local", "--json", "no/such/folder/d.json"], 2, "no folder no/such/folder"),
        ([], 2, "NAME"),
    ],
)
def test_wrong_input_has_its_exit_code(arguments: list[str], code: int, words: str) -> None:
    result = doctor(*arguments)
    assert result.exit_code == code, result.output
    assert words in result.stderr
