"""Differences between sessions of one model, and their causes.

    python -m benchmarks.sessions [--processes 5] [--json FILE]

Opens several sessions of a model in one process and times them in turn, so that the device's pace
is the same for all. What is left between their means, less what their runs explain, is the standard
deviation between sessions. Once as programs run, and once with the C library's allocator asking
for huge pages (glibc.malloc.hugetlb=1): pages of 2 MB in place of 4 KB take away most of what
depends on where a session's memory lies.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SESSIONS, SECONDS, WARMUP, COUNTED = 6, 4.0, 6, 6
SETTINGS = {"as programs run": {}, "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}


def models() -> dict[str, Any]:
    from esm_agent.measure.references import reference_models

    return {model.model_id: model for model in reference_models()}


def one_process(name: str) -> dict[str, Any]:
    """Measure every session in this process; return the log latencies of its visits."""
    from esm_agent.providers.cpu import CpuProvider
    from esm_protos.messages import MeasureSpec

    backend = CpuProvider()
    sessions = [backend.load(models()[name], MeasureSpec()) for _ in range(SESSIONS)]
    visits: list[list[float]] = [[] for _ in sessions]
    order = list(range(SESSIONS))
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        random.shuffle(order)
        for index in order:
            run = sessions[index].run
            for _ in range(WARMUP):
                run()
            began = time.perf_counter_ns()
            for _ in range(COUNTED):
                run()
            visits[index].append((time.perf_counter_ns() - began) / COUNTED)
    return {"visits_ns": visits}


def between_percent(processes: list[list[list[float]]]) -> tuple[float, float]:
    """Return the standard deviation between sessions, and the part that runs explain."""
    seen, explained = [], []
    for visits in processes:
        logs = [np.log(each) for each in visits]
        means = np.array([np.median(each) for each in logs])
        seen.append(means.var(ddof=1))
        explained.append(np.mean([math.pi / 2 * each.var(ddof=1) / len(each) for each in logs]))
    left = max(float(np.mean(seen) - np.mean(explained)), 0.0)
    return 100 * math.sqrt(left), 100 * math.sqrt(float(np.mean(explained)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_process(args.one)))
        return
    taken: dict[str, dict[str, list[Any]]] = {n: {s: [] for s in SETTINGS} for n in models()}
    for _ in range(args.processes):
        for name in taken:
            for setting, variables in SETTINGS.items():
                command = [sys.executable, "-m", "benchmarks.sessions", "--one", name]
                environment = {**os.environ, **variables}
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
                taken[name][setting].append(json.loads(done.stdout)["visits_ns"])
    rows = []
    print(f"{'model':12}{'setting':18}{'latency':>11}{'between sessions':>18}{'runs explain':>14}")
    for name, settings in taken.items():
        for setting, processes in settings.items():
            between, runs = between_percent(processes)
            latency_ms = float(np.median(np.concatenate([v for p in processes for v in p])) / 1e6)
            rows.append(
                {
                    "model": name,
                    "setting": setting,
                    "latency_ms": latency_ms,
                    "between_sessions_percent": between,
                    "runs_percent": runs,
                }
            )
            print(f"{name:12}{setting:18}{latency_ms:8.3f} ms{between:16.1f} %{runs:12.1f} %")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
