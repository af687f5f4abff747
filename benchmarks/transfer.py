"""How well devices are ranked from few samples and what is known of others.

    ESM_DATA=... python -m benchmarks.transfer studies/transfer-fbnet.toml --results runs/transfer

Every method learns the sources of a task once per seed, then every target from every number of
samples. All architectures that are not among the samples are ranked. What a results folder holds
already is not computed again; tables.md there has means over the targets of a task, with standard
deviations between seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.sources.source import Source
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.gaussian import SourceGP
from esm_host.transfer.proxy import AdaProxyPredictor, ProxyPredictor

Rows = NDArray[np.intp]
Chooser = Callable[[FewShotPredictor, LatencyTable, Rows, int, np.random.Generator], Rows]
"""The predictor that has learnt, the table, a pool of its rows and how many to take of it."""


@dataclass(frozen=True)
class Method:
    """A predictor, by seed, and how it chooses what to measure."""

    make: Callable[[int], FewShotPredictor]
    choose: Chooser


def at_random(
    predictor: FewShotPredictor,
    table: LatencyTable,
    pool: Rows,
    count: int,
    rng: np.random.Generator,
) -> Rows:
    return rng.choice(pool, count, replace=False)


def by_information(
    predictor: FewShotPredictor,
    table: LatencyTable,
    pool: Rows,
    count: int,
    rng: np.random.Generator,
) -> Rows:
    assert isinstance(predictor, SourceGP)
    return pool[predictor.choose(table.codes[pool], count)]


METHODS = {
    "ours": Method(SourceGP, by_information),
    "ours, random samples": Method(SourceGP, at_random),
    "adaproxy": Method(lambda seed: AdaProxyPredictor(seed=seed), at_random),
    "proxy": Method(lambda seed: ProxyPredictor(), at_random),
}


@dataclass(frozen=True)
class Task:
    table: Path
    name: str
    sources: Sequence[str]
    targets: Sequence[str]
    per_source: int
    pool: int


def read_tasks(path: Path) -> list[Task]:
    settings = tomllib.loads(path.read_text())
    return [
        Task(
            Path(os.path.expandvars(settings["table"])),
            name,
            task["sources"],
            task["targets"],
            settings["per_source"],
            settings["pool"],
        )
        for name, task in settings["tasks"].items()
    ]


def compute(task: Task, label: str, seed: int, counts: Sequence[int]) -> list[dict[str, object]]:
    """A row per target and number of samples."""
    table = read_benchmark(task.table)
    rng = np.random.default_rng(seed)
    known = np.sort(rng.choice(len(table), task.per_source, replace=False))
    pool = rng.choice(len(table), task.pool, replace=False)
    method = METHODS[label]
    began = time.process_time()
    predictor = method.make(seed).learn([known_of(table, name, known) for name in task.sources])
    learn_s = time.process_time() - began
    rows: list[dict[str, object]] = []
    for count in counts:
        if count < predictor.least_samples:
            continue
        for target in task.targets:
            latency_ms = table.latency_of(target)
            there = np.isfinite(latency_ms)
            began = time.process_time()
            chosen = method.choose(
                predictor, table, pool[there[pool]], count, np.random.default_rng(seed)
            )
            choose_s = time.process_time() - began
            predictor.adapt(table.codes[chosen], latency_ms[chosen])
            adapt_s = time.process_time() - began - choose_s
            rest = np.setdiff1d(np.flatnonzero(there), chosen)
            predicted, truth = predictor.predict(table.codes[rest]), latency_ms[rest]
            row: dict[str, object] = {
                "task": task.name,
                "method": label,
                "seed": seed,
                "samples": count,
                "target": target,
                "spearman": float(spearmanr(predicted, truth).statistic),
                "tau": float(kendalltau(predicted, truth).statistic),
                "learn_s": learn_s,
                "choose_s": choose_s,
                "adapt_s": adapt_s,
                "predict_s": time.process_time() - began - choose_s - adapt_s,
            }
            if predictor.absolute:
                row["mape_percent"] = float(100 * np.abs(predicted / truth - 1).mean())
            if isinstance(predictor, SourceGP):
                low, high = predictor.predict_interval(table.codes[rest])
                row["coverage_percent"] = float(100 * ((low <= truth) & (truth <= high)).mean())
                with_sources, without = predictor.left_out_errors
                row |= {"left_out_error": with_sources, "without_sources": without}
            rows.append(row)
    return rows


def known_of(table: LatencyTable, device: str, rows: Rows) -> Source:
    latency_ms = table.latency_of(device)[rows]
    there = np.isfinite(latency_ms)
    return Source(device, table.space, table.codes[rows][there], latency_ms[there])


def kept(path: Path, task: Task, label: str, seed: int, counts: Sequence[int]) -> None:
    rows = compute(task, label, seed, counts)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(rows))
    draft.replace(path)
    means = pd.DataFrame(rows).groupby("samples")["spearman"].mean()
    said = ", ".join(f"{count}: {value:.3f}" for count, value in means.items())
    print(f"{task.name} {label} seed {seed}: {said}", flush=True)


def tables(frame: pd.DataFrame) -> str:
    """By number of samples: Spearman's correlation, its mean over the targets of a task, mean over
    seeds and standard deviation between them; the geometric mean over tasks; and times."""
    parts = []
    order = list(dict.fromkeys(frame["task"]))
    for count, some in frame.groupby("samples"):
        by_seed = some.groupby(["method", "task", "seed"])["spearman"].mean()
        mean, sd = (by_seed.groupby(level=[0, 1]).agg(how).unstack() for how in ("mean", "std"))
        times = some.groupby("method")[["learn_s", "adapt_s"]].median()
        lines = [
            f"### {count} samples",
            "",
            f"| method | {' | '.join(order)} | geometric mean | to learn | to adapt |",
            "| --- |" + " ---: |" * (len(order) + 3),
        ]
        for method in [m for m in METHODS if m in mean.index]:
            values = mean.loc[method].reindex(order)
            cells = [f"{values[t]:.3f} ±{sd.loc[method].get(t):.3f}" for t in order]
            overall = float(np.exp(np.log(values.clip(1e-3)).mean()))
            learn_s, adapt_s = times.loc[method]
            lines.append(
                f"| {method} | {' | '.join(cells)} | {overall:.3f} | {learn_s:.1f} s | "
                f"{adapt_s:.2f} s |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--methods", default="", help="comma-separated; all unless given")
    parser.add_argument("--only", default="", help="tasks, comma-separated; all unless given")
    parser.add_argument("--samples", default="20", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    labels = args.methods.split(",") if args.methods else list(METHODS)
    counts = [int(count) for count in args.samples.split(",")]
    wanted = args.only.split(",") if args.only else None
    pending = []
    for task in read_tasks(args.tasks):
        if wanted and task.name not in wanted:
            continue
        for label in labels:
            for seed in range(args.seeds):
                name = f"{task.name}-{label}-{'_'.join(map(str, counts))}-{seed}.json"
                path = args.results / name.replace(" ", "_").replace(",", "")
                if not path.exists():
                    pending.append((path, task, label, seed, counts))
    joblib.Parallel(n_jobs=args.jobs)(joblib.delayed(kept)(*each) for each in pending)
    rows = [
        row for path in sorted(args.results.glob("*.json")) for row in json.loads(path.read_text())
    ]
    frame = pd.DataFrame(rows).drop_duplicates(["task", "method", "seed", "samples", "target"])
    frame.to_parquet(args.results / "results.parquet", index=False)
    (args.results / "tables.md").write_text(tables(frame))
    print(tables(frame))


if __name__ == "__main__":
    main()
