"""The page on energy meters: its file and its commands work with a real agent."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "extending" / "meter.md"
PROGRAMS = {
    "esm-agent": [sys.executable, "-m", "esm_agent.cli"],
    "esm-host": [sys.executable, "-c", "from esm_host.cli import main; main()"],
}
WATTS = 6.5


def blocks(language: str) -> list[str]:
    """Code of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)


def command(text: str) -> list[str]:
    """Arguments of a command of the page, run by this interpreter."""
    program, *arguments = shlex.split(text)
    return [*PROGRAMS[program], *arguments]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """Address of an agent started as the page says, on a free port."""
    (code,) = blocks("python")
    name = code.partition("\n")[0].removeprefix("# ")
    (tmp_path / name).write_text(code)
    (tmp_path / "watts.txt").write_text(f"{WATTS}\n")
    serve = [*command(blocks("shell")[0]), "--port", "0", "--until-stdin-closes"]
    process = subprocess.Popen(
        serve, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


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
