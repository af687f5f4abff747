"""Replayed campaigns by strategy, on a pool that is made up."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import few_models
from benchmarks.few_models import STRATEGIES


@pytest.mark.benchmarks
def test_the_program_prints_a_row_for_each_strategy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "few.json"
    options = ["--simulate", "gpu", "--seeds", "1", "--targets", "50", "--most", "60"]
    monkeypatch.setattr(sys, "argv", ["x", *options, "--json", str(file)])
    few_models.main()
    simulated, _, _, *rows = capsys.readouterr().out.splitlines()
    assert simulated.startswith("SIMULATED")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [name for name, *_ in cells] == list(STRATEGIES)
    assert {target for _, target, *_ in cells} == {"50 %"}
    found = json.loads(file.read_text())
    assert list(found) == [f"{name}, 50" for name in STRATEGIES]
    assert all(20 <= each["needed_mean"] <= 60 for each in found.values())


def test_without_a_pool_it_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--run", str(tmp_path / "none")])
    cure = "holds no pool: measure one with python -m benchmarks.convergence --measure first"
    with pytest.raises(SystemExit, match=f"{cure}$") as caught:
        few_models.main()
    assert "\n" not in str(caught.value)
