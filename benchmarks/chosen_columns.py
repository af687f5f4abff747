"""Accuracy of `auto` on public latencies, by informative against random samples.

    ESM_DATA=DIR python -m benchmarks.chosen_columns fbnet nasbench201 ofa_mobilenetv3 [--json FILE]

The loop that campaigns run on draws from a table instead of a device, without other devices to
learn from. It is judged on 1,000 architectures that it never sees. Rows are means over devices and
seeds; ± is the standard deviation between seeds of the mean over devices.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from benchmarks.few_models import Members
from benchmarks.public_tables import table_path
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.extension.loop import Loop
from esm_host.extension.settings import SamplingSettings, TrainingSettings
from esm_host.sampling.bins import DepthBins

SIZES = (20, 40, 80, 160)
HELD_OUT = 1000
MOST = 5000
"""Largest number of architectures of a table that are used."""


def replay(table: LatencyTable, device: str, sampling: str, seed: int) -> list[dict[str, object]]:
    """Return the figures of one loop, a row per number of samples."""
    latency_ms = table.latency_of(device)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(latency_ms > 0))[:MOST]
    test, rest = rows[:HELD_OUT], rows[HELD_OUT:]
    members = table.space.decode(table.codes[rest])
    known = dict(zip((a.key for a in members), latency_ms[rest].tolist(), strict=True))
    held_out, truth = table.space.decode(table.codes[test]), latency_ms[test]
    bins = DepthBins.by_default(table.space.min_depth, table.space.max_depth)
    chooses = sampling == "informative"
    settings = SamplingSettings(
        sampling=sampling,
        initial=20,
        step=20,
        max_models=SIZES[-1],
        target_accuracy_percent=100.0,  # never reached: every loop has all samples
        judge="overall",
        verify=0,
        seed=seed,
    )
    loop = Loop(
        table.space,
        settings,
        TrainingSettings(seed=seed),
        sampler=Members(members, chooses, chooses, table.space, bins),
    )
    found: list[dict[str, object]] = []
    while asked := loop.ask():
        loop.tell(asked, [known[a.key] for a in asked])
        samples = sum(map(len, loop.rounds))
        if samples in SIZES:
            predicted = loop.predict(held_out)
            figures = {
                "accuracy": accuracy_percent(truth, predicted),
                "tau": float(kendalltau(truth, predicted).statistic),
            }
            about = {"device": device, "sampling": sampling, "seed": seed, "samples": samples}
            found.append({**about, **figures})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", nargs="+", help="names of files in ESM_DATA, without .parquet")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--devices", type=int, default=6, help="of each table, evenly by name")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    every: list[dict[str, object]] = []
    print("| table | samples | accuracy, chosen | random | Kendall's tau, chosen | random |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in args.tables:
        table = read_benchmark(table_path(name))
        devices = sorted(table.latency_ms)[:: max(1, len(table.latency_ms) // args.devices)]
        found = [
            row
            for device in devices[: args.devices]
            for seed in range(args.seeds)
            for sampling in ("informative", "random")
            for row in replay(table, device, sampling, seed)
        ]
        every += [{"table": name, **row} for row in found]
        by_seed = (
            pd.DataFrame(found).groupby(["samples", "sampling", "seed"])[["accuracy", "tau"]].mean()
        )
        for samples in SIZES:
            cells = [
                f"{values.mean():.{digits}f} ±{values.std():.{digits}f}"
                for metric, digits in (("accuracy", 1), ("tau", 3))
                for sampling in ("informative", "random")
                for values in [by_seed.loc[(samples, sampling), metric]]
            ]
            print(f"| {name} | {samples} | {' | '.join(cells)} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(every, indent=2) + "\n")


if __name__ == "__main__":
    main()
