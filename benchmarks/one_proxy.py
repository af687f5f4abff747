"""Procedure of One Proxy on other devices, compared with search in measured rounds.

    ESM_DATA=... python -m benchmarks.one_proxy nasbench201 --results runs/one-proxy
    ESM_DATA=... python -m benchmarks.one_proxy ofa_mobilenetv3 --results runs/one-proxy

NAS-Bench-201: Pixel 3 is the proxy (Lu et al. 2021, Sections 6.2 and B.3), the six devices of task
ND the targets, CIFAR-10's and CIFAR-100's accuracies known. Once-for-all's MobileNetV3: the proxy
is the device that ranks as most of the others do (Section 5.3.1), the other five are the targets;
the table has no accuracies, and FLOPs, as many as possible, stand in for them. Candidates are the
table's rows alone, of which each method looks at all.

- one proxy: Algorithm 1 with 30 samples and steps of 20, up to 50 (which the paper says is mostly
  enough) or up to 110; the proxy's predictor knows 1,000 architectures, and
  the proxy's front is the true one, as if all of the table had been measured there;
- ours: 20 samples and then what the search finds, as in benchmarks.search_fronts; sources are
  either those of the task (nine devices, or all others of the table; 300 architectures each) or
  the proxy alone, known as well as One Proxy knows it;
- per device: learnt from 900 random samples, its front measured;
- depth scaling: the middle of the proxy's front, up to two blocks deeper or shallower (Section
  6.1.2). Those networks are not in the table: their latencies are what a predictor says that has
  learnt all of its rows. To see what this alone changes, "all, by the predictor" is the front of
  the table as that predictor says it.

Of all that a method measured on the target the front is kept. Its worth is a share of the true
front's hypervolume, in both of search_fronts' definitions; "below" is how much less accuracy (or
FLOPs) its architectures have, in percent, than the best of the table that is as fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.gathered import gathered, keep
from benchmarks.public_tables import table_path
from benchmarks.search_fronts import (
    FIRST,
    PER_DEVICE,
    PER_SOURCE,
    POOL,
    TASKS,
    Simulated,
    Truth,
    by_target,
    front_of,
    learnt,
    source_of,
    verify,
)
from benchmarks.transfer import read_tasks
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.encoding import make_encoder
from esm_host.evaluation.selection import pareto_front
from esm_host.research.depth_scaling import scaled_in_depth
from esm_host.research.search_by_proxy import search_by_proxy
from esm_host.research.transfer.one_proxy import OneProxySettings
from esm_host.search.costs import NetworkCost
from esm_host.search.genes import RowIndex as Places
from esm_host.search.latency import LATENCY
from esm_host.search.method import Evaluate, SearchMethod
from esm_host.search.problem import Measure, Objective, Problem
from esm_host.search.table import TableMeasure
from esm_host.transfer.gaussian import SourceGP
from esm_host.transfer.monotonicity import best_proxy, correlation_matrix
from esm_models.space import Codes

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

NASBENCH201, OFA = "nasbench201", "ofa_mobilenetv3"
PROXY, KNOWN = "pixel3", 1000
MOST_SAMPLES = (50, 110)
COUNTS = (40, 60, 80)


class Listed(SearchMethod):
    """Search method that evaluates given architectures only."""

    def __init__(self, codes: Codes) -> None:
        self._codes = codes

    def _run(self, problem: Problem, evaluate: Evaluate, start: Codes) -> None:
        evaluate(self._codes)


class Setting:
    """Table with a proxy, targets, sources and objectives."""

    def __init__(self, name: str) -> None:
        self.table = read_benchmark(table_path(name))
        if name == NASBENCH201:
            (task,) = read_tasks(Path(__file__).parent / "transfer-nasbench201.toml")
            self.proxy, self.targets = PROXY, list(task.targets)
            self.sources = {target: list(task.sources) for target in self.targets}
            self.worth = {name: self.table.accuracy_percent[name] for name in TASKS}
            return
        devices = list(self.table.latency_ms)
        matrix = correlation_matrix(np.stack([self.table.latency_of(d) for d in devices], axis=1))
        everything = range(len(devices))
        self.proxy = devices[best_proxy(matrix, everything, everything)]
        self.targets = [device for device in devices if device != self.proxy]
        self.sources = {t: [device for device in devices if device != t] for t in self.targets}
        self.worth = {"FLOPs": self.flops(self.table.codes)}

    def flops(self, codes: Codes) -> Floats:
        return NetworkCost(self.table.space)(codes)["flops"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", choices=[NASBENCH201, OFA])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    setting = Setting(args.table)
    print(f"proxy {setting.proxy}", flush=True)
    references: dict[str, Callable[[Codes], Floats]] = {}
    if args.table == OFA:
        references = {target: reference(setting.table, target) for target in setting.targets}
    parts = (
        joblib.delayed(compute)(setting, target, references.get(target), seed)
        for target in setting.targets
        for seed in range(args.seeds)
    )
    keep(gathered(parts, args.jobs, ["target", "seed"]), args.results, args.table, tables)


def reference(table: LatencyTable, target: str) -> Callable[[Codes], Floats]:
    """Return a predictor trained on all rows; print its accuracy from five folds."""
    views = make_encoder("views", table.space)
    truth = table.latency_of(target)
    fold = np.random.default_rng(0).permutation(len(table)) % 5
    guess = np.empty(len(table))
    for number in range(5):
        rows = np.flatnonzero(fold != number)
        predictor = learnt(table, truth, rows, views, 0)
        rest = fold == number
        guess[rest] = predictor.predict(views.encode_codes(table.codes[rest]))
    off = 100 * float(np.abs(guess / truth - 1).mean())
    alike = float(pd.Series(guess).corr(pd.Series(truth), method="spearman"))
    print(f"reference of {target}: {off:.1f} % off, rank correlation {alike:.3f}", flush=True)
    predictor = learnt(table, truth, np.arange(len(table)), views, 0)

    def predict(codes: Codes) -> Floats:
        return predictor.predict(views.encode_codes(codes))

    return predict


def compute(
    setting: Setting, target: str, reference: Callable[[Codes], Floats] | None, seed: int
) -> pd.DataFrame:
    table = setting.table
    rng = np.random.default_rng(seed)
    known = rng.choice(len(table), PER_SOURCE, replace=False)
    truth = table.latency_of(target)
    there = rng.permutation(np.flatnonzero(np.isfinite(truth)))
    pool, samples = there[:POOL], there[POOL:]
    proxy = source_of(table, setting.proxy, rng.choice(len(table), KNOWN, replace=False))
    learners = {
        "ours": [source_of(table, name, known) for name in setting.sources[target]],
        "ours, the proxy alone": [proxy],
    }
    ours = {name: SourceGP(seed).learn(sources) for name, sources in learners.items()}
    views = make_encoder("views", table.space)
    per_device = learnt(table, truth, samples[:PER_DEVICE], views, seed)
    per_device_ms = per_device.predict(views.encode_codes(table.codes))
    method, place = Listed(table.codes), Places(table.codes)
    rows: list[dict[str, object]] = []
    for task, worth in setting.worth.items():
        worths = Truth(truth, worth)

        def keep(
            method: str,
            latency_ms: Floats,
            accuracy: Floats,
            samples: int,
            decision: str = "",
            fronts: tuple[int, int] | None = None,
            worths: Truth = worths,
            task: str = task,
        ) -> None:
            rows.append(
                {
                    "target": target,
                    "task": task,
                    "seed": seed,
                    "method": method,
                    "decision": decision,
                    "samples": samples,
                    "measured": len(latency_ms),
                    "before": fronts[0] if fronts else np.nan,
                    "after": fronts[1] if fronts else np.nan,
                    "below": below(worths, latency_ms, accuracy),
                    **worths.shares_of(latency_ms, accuracy),
                }
            )

        def of_rows(measured: Rows, worths: Truth = worths) -> tuple[Floats, Floats]:
            return worths.latency_ms[measured], worths.accuracy[measured]

        proxy_front = front_of(table.latency_of(setting.proxy), worth)
        for most in MOST_SAMPLES:

            def measure(codes: Codes) -> Floats:
                return truth[place(codes)]

            found = search_by_proxy(
                _problem(table, worth),
                proxy,
                measure,
                table.codes[samples[:most]],
                method,
                OneProxySettings(seed=seed),
                table.codes[proxy_front],
            )
            measured = np.union1d(place(found.proposed.codes), samples[: found.samples])
            assert len(measured) == found.measured
            fronts = len(found.unpruned), len(found.front)
            name = f"one proxy, up to {most} samples"
            keep(name, *of_rows(measured), found.samples, found.decision.value, fronts)
        for name, learner in ours.items():
            chosen = pool[learner.choose(table.codes[pool], FIRST)]
            site = Simulated(table, truth, chosen, learner.encoder_, seed)
            progress = verify(table, worth, site, method)
            for count in COUNTS:
                at = [each for each in progress if len(each) <= count]
                keep(f"{name}, {count}", *of_rows(at[-1]), FIRST)
        own = samples[:PER_DEVICE]
        keep("per device", *of_rows(np.union1d(front_of(per_device_ms, worth), own)), PER_DEVICE)
        if reference is not None:
            middle = proxy_front[np.argsort(table.latency_of(setting.proxy)[proxy_front])]
            scaled = scaled_in_depth(table.space, table.codes[middle[len(middle) // 2]])
            keep("depth scaling", reference(scaled), setting.flops(scaled), 0)
            smooth = reference(table.codes)
            front = front_of(smooth, worth)
            keep("all, by the predictor", smooth[front], worth[front], 0)
    return pd.DataFrame(rows)


def _problem(table: LatencyTable, worth: Floats) -> Callable[[Sequence[Measure]], Problem]:
    known = TableMeasure("accuracy", table.codes, worth)
    objectives = [Objective(LATENCY), Objective("accuracy", maximise=True)]

    def problem(measures: Sequence[Measure]) -> Problem:
        return Problem(table.space, [*measures, known], objectives)

    return problem


def below(truth: Truth, latency_ms: Floats, accuracy: Floats) -> float:
    """Return the mean accuracy loss of a front against the best of the same latency, percent.

    It is negative if the front is better.
    """
    kept = np.flatnonzero(pareto_front(latency_ms, accuracy) & (accuracy > 0))
    order = np.argsort(truth.latency_ms, kind="stable")
    best = np.maximum.accumulate(truth.accuracy[order])
    as_fast = np.searchsorted(truth.latency_ms[order], latency_ms[kept], side="right") - 1
    there = as_fast >= 0  # nothing of the table is as fast: none is better
    reached = np.where(there, best[as_fast], accuracy[kept])
    return 100 * float((1 - accuracy[kept] / reached).mean())


def tables(results: pd.DataFrame) -> str:
    """Return Markdown: means over seeds by target and task, with the spread of the shares."""
    figures = by_target(results, {"share": ".3f", "strict": ".3f", "below": ".1f"}, ["below"])
    return f"{figures}\n{_decisions(results)}"


def _decisions(results: pd.DataFrame) -> str:
    """Return a table of One Proxy's decisions and their cost."""
    lines = [
        "### Decisions\n",
        "| method | target | task | reuse | adapt | samples | front | after pruning | measured |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    mine = results[results["decision"] != ""]
    for keys, group in mine.groupby(["method", "target", "task"], sort=False):
        decided: Mapping[str, int] = group["decision"].value_counts().to_dict()
        numbers = group[["samples", "before", "after", "measured"]].mean()
        counts = [str(decided.get(kind, 0)) for kind in ("reuse", "adapt")]
        cells = [*keys, *counts, *(f"{number:.0f}" for number in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
