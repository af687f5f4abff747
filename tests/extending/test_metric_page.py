"""The page on metrics: its file and its commands work with a real agent."""

import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from esm_host import load_timing
from tests.extending.page import PAGES, PROGRAMS, code_of, command, serving

PAGE = PAGES / "metric.md"


def blocks(language: str) -> list[str]:
    """Code of the page in a language."""
    return code_of(PAGE.read_text(), language)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """Address of an agent started as the page says, on a free port."""
    (code,) = blocks("python")
    name = code.partition("\n")[0].removeprefix("# ")
    assert code.count("\n") < 60
    (tmp_path / name).write_text(code)
    with serving(command(blocks("shell")[0]), tmp_path) as address:
        yield address


def test_the_metric_is_in_every_output(agent: str, tmp_path: Path) -> None:
    time = [agent if "127.0.0.1" in part else part for part in command(blocks("shell")[1])]
    done = subprocess.run(
        [*time, "--runs", "12", "--raw", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr
    heading, row = done.stdout.splitlines()[:2]
    assert {"page_faults", "switches"} <= set(heading.split())

    data = json.loads((tmp_path / "timing.json").read_text())
    (result,) = data["results"]
    metrics = result["metrics"]
    assert metrics.keys() == {"page_faults", "switches"}
    assert metrics["page_faults"] >= 0
    assert isinstance(metrics["switches"], int)
    shown = dict(zip(reversed(heading.split()), reversed(row.split()), strict=False))
    assert float(shown["page_faults"]) == pytest.approx(metrics["page_faults"], abs=1e-2)
    assert int(shown["switches"]) == metrics["switches"]
    (device,) = data["context"]["devices"].values()
    about = {each["key"]: each["about"] for each in device["info"]["metrics"]}
    assert about["page_faults"].startswith("page faults per inference")

    (line,) = csv.DictReader((tmp_path / "timing.csv").read_text().splitlines())
    assert float(line["page_faults"]) == metrics["page_faults"]
    (frame,) = load_timing(tmp_path / "timing.json").results().to_dict("records")
    assert frame["switches"] == metrics["switches"]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    serve = [*PROGRAMS["esm-agent"], "serve", "--port", "0", "--metrics", "gone.py:Kernel"]
    done = subprocess.run(serve, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"there is no file '{tmp_path}/gone.py'" in done.stderr.splitlines()[-1]
