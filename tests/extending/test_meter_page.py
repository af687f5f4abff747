"""The page on energy meters: its file and its commands work with a real agent."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.extending.page import PAGES, PROGRAMS, code_of, command, serving

PAGE = PAGES / "meter.md"
WATTS = 6.5


def blocks(language: str) -> list[str]:
    """Code of the page in a language."""
    return code_of(PAGE.read_text(), language)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """Address of an agent started as the page says, on a free port."""
    (code,) = blocks("python")
    name = code.partition("\n")[0].removeprefix("# ")
    (tmp_path / name).write_text(code)
    (tmp_path / "watts.txt").write_text(f"{WATTS}\n")
    with serving(command(blocks("shell")[0]), tmp_path) as address:
        yield address


def test_the_meter_measures_energy(agent: str, tmp_path: Path) -> None:
    time = [agent if "127.0.0.1" in part else part for part in command(blocks("shell")[1])]
    done = subprocess.run(
        [*time, "--runs", "12", "--raw", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    # The meter always tells the same power: nothing is left for the model.
    assert done.returncode == 3, done.stderr
    assert "energy by plug unresolved: " in done.stdout
    (result,) = json.loads((tmp_path / "timing.json").read_text())["results"]
    assert result["energy"]["covers"] == "whole device"
    assert result["metrics"]["power_w"] == pytest.approx(WATTS, rel=1e-3)  # two clock readings
    assert abs(result["metrics"]["energy_mj"]) < 0.01 * result["metrics"]["energy_gross_mj"]
    assert len(result["energy"]["gross_mj"]) >= 8
    info = [*PROGRAMS["esm-host"], "devices", "info", agent]
    told = subprocess.run(info, capture_output=True, text=True, check=True).stdout
    assert "plug: covers the whole device, steps of 0.0001 J, a value every 0.01 s" in told
