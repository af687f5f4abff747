"""Overhead of a cluster over processes of one machine, and bytes sent to its workers.

    python -m benchmarks.cluster [--rounds 9] [--json FILE]

The tasks of a study (four predictors, two training sizes, three made-up devices, all cells of
NAS-Bench-201) on a Dask cluster of two workers on this machine, and in two processes without one;
both in turn, after a round of each that is not counted. Ratios of wall times, from the first task's
packing to the last result, and of processor times of all processes, which others on the machine
disturb less (3 minutes).
"""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import statistics
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from esm_host.parallel import _packed, map_unordered, parallel
from esm_host.research.study.data import read_data
from esm_host.research.study.plan import plan
from esm_host.research.study.settings import read_study
from esm_host.research.study.task import Task, compute

PROCESSES = 2
OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
STUDY = """
[study]
predictors = ["ridge", "gp", "forest", "mlp-small"]
sizes = [60, 124]
seeds = 3
test = 2000
[[data]]
table = "cells.parquet"
"""


def main() -> None:
    from distributed import LocalCluster

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    tasks = study_tasks()
    arrays: dict[str, np.ndarray] = {}
    sent = [len(task) for task in _packed(tasks, arrays)]
    once = sum(array.nbytes for array in arrays.values())
    whole = [len(pickle.dumps(task)) for task in tasks]
    print(
        f"{len(tasks)} tasks: {statistics.mean(sent):,.0f} bytes each and {once / 1e6:.1f} MB "
        f"once; as they are, {statistics.mean(whole) / 1e6:.2f} MB each"
    )

    here, there = [], []
    with LocalCluster(
        PROCESSES, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:
        spec = cluster.scheduler_address.replace("tcp", "dask")
        for _ in range(args.rounds + 1):
            here.append(seconds(PROCESSES, tasks))
            there.append(seconds(spec, tasks))
    ratios = {}
    for number, name in enumerate(("wall", "processor")):
        own, others = ([took[number] for took in each[1:]] for each in (here, there))
        ratios[name] = [b / a for a, b in zip(own, others, strict=True)]
        print(
            f"{name}: processes {statistics.median(own):.2f} s, cluster "
            f"{statistics.median(others):.2f} s, ratio {statistics.median(ratios[name]):.2f} "
            f"({min(ratios[name]):.2f} to {max(ratios[name]):.2f}, {args.rounds} rounds)"
        )
    if args.json:
        data = {"ratios": ratios, "sent_bytes": sent, "once_bytes": once, "whole_bytes": whole}
        args.json.write_text(json.dumps(data, indent=2) + "\n")


def study_tasks() -> list[Task]:
    rng = np.random.default_rng(0)
    cells = np.array(list(product(range(len(OPS)), repeat=6)))
    text = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
    table: dict[str, object] = {
        "arch": [text.format(*(OPS[number] for number in cell)) for cell in cells]
    }
    for device in range(3):
        table[f"lat_ms_{device}"] = 1 + cells @ rng.uniform(0, 1, 6) + rng.uniform(0, 1, len(cells))
    with tempfile.TemporaryDirectory() as folder:
        pd.DataFrame(table).to_parquet(Path(folder) / "cells.parquet")
        file = Path(folder) / "study.toml"
        file.write_text(STUDY)
        settings = read_study(file)
        return [planned.task for planned in plan(settings, read_data(settings))]


def seconds(spec: str | int, tasks: list[Task]) -> tuple[float, float]:
    """Return the wall time and the processor time, s."""
    with parallel(spec):
        began, busy = time.perf_counter(), processor_s()
        outcomes = list(map_unordered(compute, tasks))
        took = time.perf_counter() - began, processor_s() - busy
    assert all((outcome.rows["failure"] == "").all() for outcome in outcomes)
    return took


def processor_s() -> float:
    """Return the processor time of this process and its living descendants so far, s."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
