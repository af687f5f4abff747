"""The comparison with direct timing: its statistics, and its two sides on a model."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import direct_timing
from benchmarks.agreement import compare, median_interval


def test_the_independent_script_imports_nothing_of_the_project() -> None:
    tree = ast.parse(Path(direct_timing.__file__).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    assert names == {"json", "numpy", "onnxruntime", "sys", "time"}
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))


def test_the_interval_of_a_median() -> None:
    # Tables of the sign test: ranks 2 and 9 of 10, 6 and 15 of 20, 14 and 27 of 40.
    for count, low, high in ((6, 1, 6), (10, 2, 9), (20, 6, 15), (40, 14, 27)):
        assert median_interval(range(count, 0, -1)) == (low, high)
    assert median_interval(range(5)) == (-math.inf, math.inf)


def test_a_row_tells_how_far_ours_is_off() -> None:
    pairs = [(2.0 + 0.1 * i, 1.01 * (2.0 + 0.1 * i)) for i in range(20)]
    row = compare(pairs)
    assert row["difference_percent"] == pytest.approx(1.0)
    assert row["low_percent"] == pytest.approx(1.0)
    assert row["within_tolerance"]
    assert row["interval_within_tolerance"]
    assert not compare([(1.0, 1.03)] * 20)["within_tolerance"]
    few = compare([(1.0, 1.01)] * 3)
    assert few["within_tolerance"]
    assert few["low_percent"] is None
    assert not few["interval_within_tolerance"]


def test_it_runs_from_end_to_end() -> None:
    command = ["-m", "benchmarks.agreement", "--pairs", "1", "--models", "audio", "encoder"]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model", "encoder", "audio"]
    assert "of 2 within 2 %" in lines[3]
