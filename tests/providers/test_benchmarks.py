"""The benchmarks of execution providers from end to end, at their smallest sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.provider_wheels import ROOT, WheelMissingError, environment
from benchmarks.providers import QUICK_MODELS, SIDES

pytestmark = pytest.mark.providers


@pytest.fixture(autouse=True, scope="module")
def _wheel() -> None:
    try:
        environment("openvino")
    except WheelMissingError as error:
        pytest.skip(str(error))


def quick(name: str, file: Path) -> list[list[str]]:
    """The cells of every row of the tables that a benchmark prints."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]
    return [row for row in cells if "---" not in row[0]]


def test_providers_time_the_same_runs_on_every_side(tmp_path: Path) -> None:
    rows = quick("providers", tmp_path / "p.json")
    names = [row[0] for row in rows]
    assert names == ["model", *QUICK_MODELS, "model", *QUICK_MODELS]
    models = json.loads((tmp_path / "p.json").read_text())["models"]
    assert list(models) == list(QUICK_MODELS)
    for model in models.values():
        assert model["refused"] is None
        (turn,) = model["turns_ms"]
        assert set(turn) == set(SIDES)
        assert min(turn.values()) > 0


def test_ranks_are_of_one_set_of_models(tmp_path: Path) -> None:
    rows = quick("provider_ranks", tmp_path / "r.json")
    assert [row[0] for row in rows] == [
        *("openvino` against `cpu`, 15 models", "Spearman", "Kendall's tau"),
        *("auto` with 10 models", "cpu", "openvino"),
        *("5 samples on `openvino", "cpu as source", "without source"),
    ]
    figures = json.loads((tmp_path / "r.json").read_text())
    assert len(figures["architectures"]) == 15
    assert {name: len(own) for name, own in figures["latency_ms"].items()} == {
        "cpu": 15,
        "openvino": 15,
    }
    assert figures["latency_ms"]["cpu"] != figures["latency_ms"]["openvino"]
