"""Rank correlations of transferred predictors, from few samples and other devices' data.

    ESM_DATA=... python -m benchmarks.transfer benchmarks/transfer-fbnet.toml --results FOLDER

Every method learns the sources of a task once per seed, then every target from every number of
samples. Methods are those of METHODS below, or of the file, where it has any: so have the ablations
of NASFLAT, benchmarks/nasflat-ablation-*.toml. All architectures that are not among the samples are
ranked. What a results folder holds
already is not computed again; tables.md there has means over the targets of a task, with standard
deviations between seeds, and by-target.md every target.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import kendalltau, spearmanr

from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.encoding.views import ViewsEncoder
from esm_host.research.encodings.arch2vec import Arch2VecEncoder
from esm_host.research.encodings.cate import CATEEncoder
from esm_host.research.encodings.learned import LearnedEncoder
from esm_host.research.encodings.zero_cost import (
    AnalyticProxies,
    Concatenated,
    ProxyTable,
    Supplement,
)
from esm_host.transfer import make_method
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.choose import choose as choose_first
from esm_host.transfer.gaussian import SourceGP
from esm_host.transfer.samplers import sample
from esm_host.transfer.source import Source

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Method:
    """Few-shot predictor by name, and its sampling.

    Attributes:
        sampler: ``"own"``, ``"informative"`` as campaigns without sources choose, or of
            :data:`esm_host.transfer.samplers.POOL_SAMPLERS`.
        encoding: of that sampler: names joined by ``+``, of the space's learnt encodings and
            ``zcp``.
        supplement: of NASFLAT, in the same way.
        params: in place of the predictor's defaults.
        samples: that it learns from, whatever is asked.
    """

    name: str
    sampler: str = "random"
    encoding: str = ""
    supplement: str = ""
    samples: int | None = None
    params: dict[str, Any] = field(default_factory=dict)


CAZ = "cate+arch2vec+zcp"
METHODS = {
    "ours": Method("gaussian", "own"),
    "ours, random samples": Method("gaussian"),
    "from scratch": Method("scratch"),
    "from scratch, chosen": Method("scratch", "informative"),
    "ours, chosen without sources": Method("gaussian", "informative"),
    "NASFLAT": Method("nasflat", "cosine", CAZ, "zcp", params={"epochs": 20, "standardise": False}),
    "NASFLAT, 150 epochs": Method("nasflat", "cosine", CAZ, "zcp", params={"standardise": False}),
    "NASFLAT, Arch2Vec": Method("nasflat", "cosine", "cate", "arch2vec", params={"epochs": 20}),
    "HELP": Method("help"),
    "MultiPredict": Method("multipredict"),
    "AdaProxy": Method("adaproxy"),
    "AdaProxy, network": Method("adaproxy-network"),
    "proxy": Method("proxy"),
    "BRP-NAS, 900 samples": Method("brp-nas", samples=900),
    "layer-wise": Method("layer-wise"),
    "FLOPs": Method("flops"),
    "parameters": Method("parameters"),
}
LEARNT: dict[str, type[LearnedEncoder]] = {"arch2vec": Arch2VecEncoder, "cate": CATEEncoder}


def encodings(names: str, table: LatencyTable, task: Task, folder: Path) -> Concatenated:
    """Return supplementary encodings, trained once per space and kept in the results' folder."""
    parts: list[Supplement] = []
    for name in names.split("+"):
        if name == "zcp":
            has = any(column.startswith("zc_") for column in pq.read_schema(task.table).names)
            parts.append(ProxyTable.read(task.table) if has else AnalyticProxies(table.space))
            continue
        path = folder / f"{name}.npz"
        if not path.exists():
            LEARNT[name](table.space).fit().save(path)
        parts.append(LEARNT[name].load(path, table.space))
    return Concatenated(*parts)


def chooser(
    method: Method, predictor: FewShotPredictor, table: LatencyTable, task: Task, folder: Path
) -> Callable[[Rows, int, int], Rows]:
    """Return a sampler: a function of a pool of rows, the number to choose and a seed."""
    encoded = None
    if method.encoding:
        encoded = encodings(method.encoding, table, task, folder).encode_codes(table.codes)
        encoded = (encoded - encoded.mean(axis=0)) / np.maximum(encoded.std(axis=0), 1e-9)

    def choose(pool: Rows, count: int, seed: int) -> Rows:
        if method.sampler == "own":
            assert isinstance(predictor, SourceGP)
            return pool[predictor.choose(table.codes[pool], count)]
        if method.sampler == "informative":
            return pool[choose_first(ViewsEncoder(table.space), table.codes[pool], count)]
        rng = np.random.default_rng(seed)
        own = None if encoded is None else encoded[pool]
        return pool[
            sample(method.sampler, table.space, table.codes[pool], count, rng, encodings=own)
        ]

    return choose


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


def read_methods(path: Path) -> dict[str, Method]:
    """Return the methods of a file of tasks by label, or :data:`METHODS` if it has none."""
    own = tomllib.loads(path.read_text()).get("methods")
    return METHODS if own is None else {label: Method(**each) for label, each in own.items()}


def compute(
    task: Task, label: str, method: Method, seed: int, counts: Sequence[int], folder: Path
) -> list[dict[str, object]]:
    """Return a row per target and number of samples."""
    table = read_benchmark(task.table)
    rng = np.random.default_rng(seed)
    known = np.sort(rng.choice(len(table), task.per_source, replace=False))
    pool = rng.choice(len(table), task.pool, replace=False)
    sources = [known_of(table, name, known) for name in task.sources]
    predictor, learn_s = learnt(method, task, sources, seed, table, folder)
    choose = chooser(method, predictor, table, task, folder)
    rows: list[dict[str, object]] = []
    for count in counts if method.samples is None else [method.samples]:
        if count < predictor.least_samples:
            continue
        for target in task.targets:
            latency_ms = table.latency_of(target)
            there = np.isfinite(latency_ms)
            began = time.process_time()
            chosen = choose(pool[there[pool]], count, seed)
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


def learnt(
    method: Method,
    task: Task,
    sources: Sequence[Source],
    seed: int,
    table: LatencyTable,
    folder: Path,
) -> tuple[FewShotPredictor, float]:
    """Return a predictor trained on the sources, and the processor seconds of the training.

    It is cached, as several methods differ only in their sampling.
    """
    params = "".join(f"-{name}={value}" for name, value in method.params.items())
    kind = f"{task.name}-{method.name}-{method.supplement}{params}"
    path = folder / "learnt" / f"{kind}-{seed}.joblib"
    if path.exists():
        found: tuple[FewShotPredictor, float] = joblib.load(path)
        return found
    more = dict(method.params)
    if method.name == "nasflat":
        names = method.supplement
        more["supplement"] = encodings(names, table, task, folder) if names else None
    predictor = make_method(method.name, seed, **more)
    began = time.process_time()
    predictor.learn(sources)
    learn_s = time.process_time() - began
    path.parent.mkdir(exist_ok=True)
    joblib.dump((predictor, learn_s), path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    return predictor, learn_s


def known_of(table: LatencyTable, device: str, rows: Rows) -> Source:
    latency_ms = table.latency_of(device)[rows]
    there = np.isfinite(latency_ms)
    return Source(device, table.space, table.codes[rows][there], latency_ms[there])


def kept(
    path: Path, task: Task, label: str, method: Method, seed: int, counts: Sequence[int]
) -> None:
    rows = compute(task, label, method, seed, counts, path.parent)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(rows))
    draft.replace(path)
    means = pd.DataFrame(rows).groupby("samples")["spearman"].mean()
    said = ", ".join(f"{count}: {value:.3f}" for count, value in means.items())
    print(f"{task.name} {label} seed {seed}: {said}", flush=True)


def tables(frame: pd.DataFrame, order: Sequence[str], labels: Sequence[str]) -> str:
    """Return tables of Spearman's correlation and of times, by number of samples.

    A correlation is the mean over the targets of a task and over seeds, with the standard
    deviation between seeds. The last column is the geometric mean over tasks.
    """
    parts = []
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
        for method in [m for m in labels if m in mean.index]:
            values = mean.loc[method].reindex(order)
            cells = [
                "" if np.isnan(values[t]) else f"{values[t]:.3f} ±{sd.loc[method].get(t):.3f}"
                for t in order
            ]
            product = np.exp(np.log(values.clip(1e-3)).mean(skipna=False))
            overall = "" if np.isnan(product) else f"{product:.3f}"
            learn_s, adapt_s = times.loc[method]
            lines.append(
                f"| {method} | {' | '.join(cells)} | {overall} | {learn_s:.1f} s | "
                f"{adapt_s:.2f} s |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def by_target(frame: pd.DataFrame, measure: str, labels: Sequence[str]) -> str:
    """Return a row per target and a column per method and number of samples: means over seeds."""
    targets = list(dict.fromkeys(frame["target"]))
    known = [method for method in labels if method in set(frame["method"])]
    wide = frame.pivot_table(measure, ["task", "target"], ["method", "samples"]).reindex(
        columns=known, level=0
    )
    wide = wide.reindex(targets, level=1)
    heads = [f"{method}, {samples}" for method, samples in wide.columns]
    lines = [f"| task | target | {' | '.join(heads)} |", "| --- | --- |" + " ---: |" * len(heads)]
    for (task, target), row in wide.iterrows():
        cells = ["" if np.isnan(value) else f"{value:.3f}" for value in row]
        lines.append(f"| {task} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(path: Path, frame: pd.DataFrame, tasks: Sequence[str], labels: Sequence[str]) -> None:
    """Plot rank correlation over the number of samples: every seed, and the mean.

    A correlation is the geometric mean over tasks.
    """
    import altair as alt

    from esm_host.report import plots

    several = frame.groupby("method")["samples"].nunique()
    some = frame[frame["method"].isin(several.index[several > 1])]
    keys = ["method", "samples", "seed"]
    values = some.groupby([*keys, "task"])["spearman"].mean().unstack()
    values = np.exp(np.log(values[list(tasks)].clip(1e-3)).mean(axis=1, skipna=False)).dropna()
    methods = [method for method in labels if method in set(values.index.get_level_values(0))]
    base = alt.Chart(values.rename("spearman").reset_index()).encode(
        alt.X(
            "samples:Q",
            title="samples on the new device",
            scale=alt.Scale(type="log", nice=False),
            axis=alt.Axis(values=sorted(set(some["samples"])), format="d"),
        ),
        alt.Color("method:N", scale=alt.Scale(domain=methods), legend=alt.Legend(title=None)),
    )
    y = alt.Y("mean(spearman):Q", title="rank correlation", scale=alt.Scale(zero=False))
    dash = alt.StrokeDash("method:N", scale=alt.Scale(domain=methods), legend=None)
    points = base.mark_point(size=20, filled=True, opacity=0.5).encode(alt.Y("spearman:Q"))
    plots.save(plots.styled(base.mark_line().encode(y, dash) + points), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--methods", default="", help="separated by ;, all unless given")
    parser.add_argument("--only", default="", help="tasks, comma-separated; all unless given")
    parser.add_argument("--samples", default="20", help="comma-separated")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    methods = read_methods(args.tasks)
    labels = args.methods.split(";") if args.methods else list(methods)
    counts = [int(count) for count in args.samples.split(",")]
    wanted = args.only.split(",") if args.only else None
    pending = []
    tasks = read_tasks(args.tasks)
    for task in tasks:
        if wanted and task.name not in wanted:
            continue
        for label in labels:
            for seed in range(args.seeds):
                name = f"{task.name}-{label}-{'_'.join(map(str, counts))}-{seed}.json"
                path = args.results / name.replace(" ", "_").replace(",", "")
                if not path.exists():
                    pending.append((path, task, label, methods[label], seed, counts))
    joblib.Parallel(n_jobs=args.jobs)(joblib.delayed(kept)(*each) for each in pending)
    rows = [
        row for path in sorted(args.results.glob("*.json")) for row in json.loads(path.read_text())
    ]
    frame = pd.DataFrame(rows).drop_duplicates(["task", "method", "seed", "samples", "target"])
    frame.to_parquet(args.results / "results.parquet", index=False)
    text = tables(frame, [task.name for task in tasks], list(methods))
    (args.results / "tables.md").write_text(text)
    (args.results / "by-target.md").write_text(by_target(frame, "spearman", list(methods)))
    print(text)
    if args.plot:
        plot(args.plot, frame, [task.name for task in tasks], list(methods))


if __name__ == "__main__":
    main()
