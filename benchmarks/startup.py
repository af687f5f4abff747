"""Waiting time of a user, for the help and for one reliable latency.

    python -m benchmarks.startup [--json FILE]

Whole processes, from the start to the prompt: ``esm-host --help``, and ``esm-host time`` of a model
of about a millisecond on an agent that runs already on this machine, until it is known to 2 % or
10 seconds have passed (2 minutes).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNS = 15
MAX_TIME_S = 10
MODEL = Path(__file__).parents[1] / "device_agent/esm_agent/reference_models/arithmetic.onnx"
AIMS = {"help_s": 0.3, "time_s": 3.0}


@contextmanager
def running_agent() -> Iterator[str]:
    """Start an agent on this machine and yield its address."""
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    pipes["stderr"] = subprocess.DEVNULL
    with subprocess.Popen([*command, "--until-stdin-closes"], **pipes, text=True) as agent:
        assert agent.stdout is not None
        yield agent.stdout.readline().strip().rpartition(" ")[2]


def seconds(*arguments: str) -> tuple[float, int]:
    """Return the duration of a run of esm-host, s, and its exit code."""
    program = Path(sys.executable).with_name("esm-host")
    start = time.perf_counter()
    done = subprocess.run([program, *arguments], capture_output=True)
    return time.perf_counter() - start, done.returncode


def timings() -> list[dict[str, Any]]:
    """Time a model with default settings, except for a shorter ``--max-time``."""
    rows = []
    with running_agent() as address, tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "timing.json"
        for _ in range(RUNS + 1):
            options = ("--device", address, "--max-time", str(MAX_TIME_S))
            command = ("time", str(MODEL), *options, "--json", str(output))
            took_s, code = seconds(*command)
            timing = json.loads(output.read_text())
            (device,) = timing["context"]["devices"].values()
            (result,) = timing["results"]
            rows.append(
                {
                    "took_s": took_s,
                    "busy_s": device["busy_s"],
                    "latency_ms": result["trimmed_mean_ms"],
                    "verdict": result["verdict"],
                    "exit_code": code,
                }
            )
    return rows[1:]  # the first one warms the agent up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seconds("--help")
    helps = [seconds("--help")[0] for _ in range(RUNS)]
    rows = timings()
    print(f"esm-host --help: median {statistics.median(helps):.2f} s ({_span(helps)})")
    known = [row for row in rows if row["exit_code"] == 0]
    latency_ms = statistics.median(row["latency_ms"] for row in rows)
    print(f"esm-host time, {latency_ms:.2f} ms: known to 2 % in {len(known)} of {len(rows)} runs")
    for name, kind in (("known to 2 %", known), ("all", rows)):
        if kind:
            took = [row["took_s"] for row in kind]
            host = [row["took_s"] - row["busy_s"] for row in kind]
            print(
                f"  {name}: median {statistics.median(took):.2f} s ({_span(took)}), of which not "
                f"on the device {statistics.median(host):.2f} s"
            )
    if args.json:
        data = {"help_s": helps, "timings": rows, "aims": AIMS}
        args.json.write_text(json.dumps(data, indent=2) + "\n")


def _span(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


if __name__ == "__main__":
    main()
