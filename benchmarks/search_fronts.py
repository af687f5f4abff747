"""Verified fronts from few measurements, compared with the true fronts.

    ESM_DATA=... python -m benchmarks.search_fronts --results runs/search-fronts

NAS-Bench-201, accuracy known, latencies of six devices of which nothing is known at first (task ND
of the transfer benchmarks; nine other devices are known by 300 architectures each). Compared are,
by what they measured on the target:

- ours: 20 architectures that tell most, learnt beside the sources, then what the search finds,
  measured ten at a time, until the front is stable;
- from scratch: the same, 20 random architectures and no sources;
- proxy: the front of another device whose latencies are known all, the one that ranks the 20
  random architectures most alike, measured on the target;
- AdaProxy: the same device's linear model, adapted to 40 random samples, its front measured;
- per device: learnt from 900 random samples, its front measured;
- random: as many random architectures as ours measured.

Of what was measured the front is kept. Figures are shares of the true front's hypervolume: up to
the slowest latency and down to no accuracy at all, as in the selection study; and, stricter, up to
a tenth beyond the extent of the true front in either direction, which the cheap part of the space
does not fill.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.gathered import gathered, keep
from benchmarks.public_tables import table_path
from benchmarks.transfer import read_tasks
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.encoding import make_encoder
from esm_host.encoding.base import Encoder
from esm_host.evaluation.selection import hypervolume, pareto_front
from esm_host.predictors.auto import AutoPredictor
from esm_host.research.transfer.proxy import AdaProxyPredictor
from esm_host.search.genes import keys
from esm_host.search.latency import LATENCY, LatencyMeasure
from esm_host.search.method import SearchMethod
from esm_host.search.methods.exhaustive import Exhaustive
from esm_host.search.problem import Measure, Objective, Problem
from esm_host.search.table import TableMeasure
from esm_host.search.verify import Round, verified_search
from esm_host.transfer.gaussian import SourceGP
from esm_host.transfer.source import Source
from esm_models.space import Codes

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

TASKS = ("cifar10_test", "cifar100_test")
PER_SOURCE, POOL, FIRST, BATCH, MOST = 300, 1500, 20, 10, 80
ADAPTED, PER_DEVICE = 40, 900


class Simulated:
    """Device whose latencies are read from a table.

    Args:
        truth: ``(n,)`` of the table's rows, NaN where it is missing.
        rows: that are measured at first.
    """

    def __init__(
        self, table: LatencyTable, truth: Floats, rows: Rows, encoder: Encoder, seed: int
    ) -> None:
        self._table = table
        self._truth = truth
        self._encoder = encoder
        self._seed = seed
        self._place = {key.tobytes(): row for row, key in enumerate(keys(table.codes))}
        self.rows = rows
        self.fit_s = 0.0

    def known(self) -> Codes:
        return self._table.codes[self.rows]

    def latency(self, probability: float) -> Measure:
        rows = self.rows[np.isfinite(self._truth[self.rows])]
        predictor = AutoPredictor(self._encoder.layout, self._seed)
        began = time.perf_counter()
        predictor.fit(self._encoder.encode_codes(self._table.codes[rows]), self._truth[rows])
        self.fit_s += time.perf_counter() - began

        def predict(codes: Codes, wanted: float) -> tuple[Floats, Floats]:
            return predictor.predict_at_most(self._encoder.encode_codes(codes), wanted)

        known_ms = self._truth[self.rows]
        return LatencyMeasure(predict, self.known(), known_ms, known_ms, probability)

    def measure(self, codes: Codes, number: int = 0) -> None:
        fresh = [self._place[key.tobytes()] for key in keys(codes)]
        self.rows = np.concatenate([self.rows, fresh])


class Truth:
    """Latencies and accuracies of a table, and the hypervolume of selections."""

    def __init__(self, latency_ms: Floats, accuracy: Floats) -> None:
        there = np.isfinite(latency_ms)
        self._slowest = float(latency_ms[there].max())
        # Missing architectures are slow and inaccurate, so that none is chosen.
        self.latency_ms = np.where(there, latency_ms, 10 * self._slowest)
        self.accuracy = np.where(there, accuracy, 0.0)
        front = self.front(np.arange(len(latency_ms)))
        ends = self.latency_ms[front], self.accuracy[front]
        self._corner = (
            ends[0].max() + 0.1 * np.ptp(ends[0]),
            ends[1].min() - 0.1 * np.ptp(ends[1]),
        )
        self._best = self._volumes(*ends)

    def front(self, rows: Rows) -> Rows:
        return rows[pareto_front(self.latency_ms[rows], self.accuracy[rows])]

    def shares(self, rows: Rows) -> dict[str, float]:
        return self.shares_of(self.latency_ms[rows], self.accuracy[rows])

    def shares_of(self, latency_ms: Floats, accuracy: Floats) -> dict[str, float]:
        """Return the same figures for architectures outside the table."""
        whole, strict = self._volumes(latency_ms, accuracy)
        return {"share": whole / self._best[0], "strict": strict / self._best[1]}

    def _volumes(self, latency_ms: Floats, accuracy: Floats) -> tuple[float, float]:
        slowest, least = self._corner
        inside = (latency_ms < slowest) & (accuracy > least)
        strict = (
            hypervolume(latency_ms[inside], accuracy[inside] - least, slowest)
            if inside.any()
            else 0.0
        )
        return hypervolume(latency_ms, accuracy, self._slowest), strict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    table = read_benchmark(table_path("nasbench201"))
    (task,) = read_tasks(Path(__file__).parent / "transfer-nasbench201.toml")
    parts = (
        joblib.delayed(compute)(table, task.sources, target, seed)
        for target in task.targets
        for seed in range(args.seeds)
    )
    keep(gathered(parts, args.jobs, ["target", "seed"]), args.results, "fronts", tables)


def compute(table: LatencyTable, sources: Sequence[str], target: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    known = rng.choice(len(table), PER_SOURCE, replace=False)
    ours = SourceGP(seed)
    ours.learn([source_of(table, name, known) for name in sources])
    truth = table.latency_of(target)
    there = rng.permutation(np.flatnonzero(np.isfinite(truth)))
    pool, samples = there[:POOL], there[POOL:]
    chosen = pool[ours.choose(table.codes[pool], FIRST)]
    views = make_encoder("views", table.space)
    per_device = learnt(table, truth, samples[:PER_DEVICE], views, seed)
    proxy = max(sources, key=lambda name: _alike(table.latency_of(name), truth, samples[:FIRST]))
    adapted = AdaProxyPredictor(seed=seed).learn([source_of(table, proxy, known)])
    adapted.adapt(table.codes[samples[:ADAPTED]], truth[samples[:ADAPTED]])
    proxy_ms = table.latency_of(proxy)
    rows = []
    for task in TASKS:
        accuracy = table.accuracy_percent[task]
        worth = Truth(truth, accuracy)

        def keep(
            method: str, measured: Rows, samples: int, worth: Truth = worth, task: str = task
        ) -> None:
            rows.append(
                {
                    "target": target,
                    "task": task,
                    "seed": seed,
                    "method": method,
                    "samples": samples,
                    "measured": len(measured),
                    **worth.shares(measured),
                }
            )

        sites = {
            "ours": Simulated(table, truth, chosen, ours.encoder_, seed),
            "from scratch": Simulated(table, truth, samples[:FIRST], views, seed),
        }
        for name, site in sites.items():
            progress = verify(table, accuracy, site, Exhaustive())
            for count in (20, 30, 40, 50, 60, 70, 80):
                at = [each for each in progress if len(each) <= count]
                keep(f"{name}, {count}", at[-1], FIRST)
            keep(f"{name}, until stable", progress[-1], FIRST)
        picks = {
            "proxy": (front_of(proxy_ms, accuracy), samples[:FIRST]),
            "AdaProxy": (front_of(adapted.predict(table.codes), accuracy), samples[:ADAPTED]),
            "per device": (
                front_of(per_device.predict(views.encode_codes(table.codes)), accuracy),
                samples[:PER_DEVICE],
            ),
        }
        for name, (front, known_rows) in picks.items():
            keep(name, np.union1d(front, known_rows), len(known_rows))
        keep("random", samples[: len(sites["ours"].rows)], 0)
    return pd.DataFrame(rows)


def verify(
    table: LatencyTable, accuracy: Floats, site: Simulated, method: SearchMethod
) -> list[Rows]:
    """Return the measured rows after each round."""
    known = TableMeasure("accuracy", table.codes, accuracy)
    progress = [site.rows]

    def problem(measures: Sequence[Measure]) -> Problem:
        return Problem(
            table.space,
            [*measures, known],
            [Objective(LATENCY), Objective("accuracy", maximise=True)],
        )

    def on_round(rounds: Sequence[Round]) -> None:
        if len(site.rows) > len(progress[-1]):
            progress.append(site.rows)

    verified_search(problem, [site], method, MOST - FIRST, BATCH, on_round=on_round)
    return progress if len(site.rows) == len(progress[-1]) else [*progress, site.rows]


def source_of(table: LatencyTable, name: str, rows: Rows) -> Source:
    latency_ms = table.latency_of(name)[rows]
    there = np.isfinite(latency_ms)
    return Source(name, table.space, table.codes[rows][there], latency_ms[there])


def learnt(
    table: LatencyTable, truth: Floats, rows: Rows, encoder: Encoder, seed: int
) -> AutoPredictor:
    predictor = AutoPredictor(encoder.layout, seed)
    return predictor.fit(encoder.encode_codes(table.codes[rows]), truth[rows])


def _alike(one: Floats, other: Floats, rows: Rows) -> float:
    return float(pd.Series(one[rows]).corr(pd.Series(other[rows]), method="spearman"))


def front_of(latency: Floats, accuracy: Floats) -> Rows:
    there = np.flatnonzero(np.isfinite(latency))
    return there[pareto_front(latency[there], accuracy[there])]


def tables(results: pd.DataFrame) -> str:
    """Return Markdown: means over seeds by target and task, with their spread."""
    return by_target(results, {"share": ".4f", "strict": ".4f"})


def by_target(results: pd.DataFrame, digits: Mapping[str, str], large: Sequence[str] = ()) -> str:
    """Return Markdown: a table per figure and task, with means over seeds, spread and the worst.

    Args:
        digits: format of every figure.
        large: figures of which the largest is worst.
    """
    parts = []
    for figure, form in digits.items():
        for task, mine in results.groupby("task", sort=False):
            targets = list(dict.fromkeys(mine["target"]))
            lines = [
                f"### {task}, {figure}\n",
                "| method | samples | measured | " + " | ".join(targets) + " | least |",
                "| --- | ---: | ---: |" + " ---: |" * (len(targets) + 1),
            ]
            for method, group in mine.groupby("method", sort=False):
                by = group.groupby("target")[figure]
                cells = [f"{by.mean()[t]:{form}} ±{by.std()[t]:{form}}" for t in targets]
                worst = group[figure].max() if figure in large else group[figure].min()
                counts = (f"{group[name].mean():.0f}" for name in ("samples", "measured"))
                lines.append(
                    f"| {method} | {' | '.join(counts)} | {' | '.join(cells)} | {worst:{form}} |"
                )
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
