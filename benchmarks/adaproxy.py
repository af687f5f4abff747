"""Adaptation of one proxy to every other device, with the paper's samples and step by step.

    ESM_DATA=... python -m benchmarks.adaproxy fbnet --results runs/adaproxy

pixel3 is the proxy, known by 1,000 architectures (Lu et al. 2021, appendices B.3, B.4 and B.5.3).
Rank correlations with every other device of the table, by all of its architectures but the
samples: of the proxy's predictor as it is; adapted to random samples, as many as the paper has
for such a device, 20 more of them to choose the penalty on; ours, which learns the same proxy and
samples, and which chooses as many itself. Last, Algorithm 1 with 30 samples and steps of 20, up to
110. Means over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.public_tables import table_path
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.research.transfer.one_proxy import OneProxySettings, one_proxy
from esm_host.transfer import make_method
from esm_host.transfer.base import FewShotPredictor
from esm_host.transfer.gaussian import SourceGP
from esm_host.transfer.source import Source
from esm_models.space import Codes

PROXY, KNOWN, POOL, MOST = "pixel3", 1000, 1500, 110
VALIDATION = 20
# By the start of a device's name; phones, processors and graphics cards of the tables have no
# counterpart in B.4 but the edge GPU.
SAMPLES = {
    "fbnet": {"eyeriss": 20, "fpga": 30, "raspi4": 40, "": 80},
    "nasbench201": {"eyeriss": 20, "fpga": 20, "raspi4": 30, "pixel2": 30, "samsung": 30, "": 60},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("space", choices=list(SAMPLES))
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    table = read_benchmark(table_path(args.space))
    found = joblib.Parallel(n_jobs=args.jobs)(
        joblib.delayed(compute)(table, args.space, seed) for seed in range(args.seeds)
    )
    frame = pd.concat(found)
    args.results.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(args.results / f"{args.space}.parquet", index=False)
    means = frame.groupby("target", sort=False).mean(numeric_only=True).drop(columns="seed")
    text = means.round(3).to_string()
    (args.results / f"{args.space}.txt").write_text(text + "\n")
    print(text)


def compute(table: LatencyTable, space: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    known = rng.choice(len(table), KNOWN, replace=False)
    pool = rng.choice(len(table), POOL, replace=False)
    latency_ms = table.latency_of(PROXY)[known]
    there = np.isfinite(latency_ms)
    source = Source(PROXY, table.space, table.codes[known][there], latency_ms[there])
    methods = {
        name: make_method(name, seed).learn([source])
        for name in ("proxy", "adaproxy", "adaproxy-network", "gaussian")
    }
    rows = []
    for target in table.latency_ms:
        if target == PROXY:
            continue
        rows.append({"target": target, "seed": seed, **on(table, space, target, methods, pool)})
        truth = table.latency_of(target)
        own = pool[np.isfinite(truth[pool])]
        asked = {row.tobytes(): ms for row, ms in zip(table.codes[own], truth[own], strict=True)}

        def measure(codes: Codes, asked: dict[bytes, float] = asked) -> NDArray[np.float64]:
            return np.array([asked[row.tobytes()] for row in codes])

        settings = OneProxySettings(seed=seed)
        stepwise = one_proxy([source], measure, table.codes[own[:MOST]], settings)
        rest = np.setdiff1d(np.flatnonzero(np.isfinite(truth)), own[: stepwise.samples])
        rows[-1] |= {
            "step by step": rank(stepwise.predictor, table.codes[rest], truth[rest]),
            "took": stepwise.samples,
        }
    return pd.DataFrame(rows)


def on(
    table: LatencyTable,
    space: str,
    target: str,
    methods: dict[str, FewShotPredictor],
    pool: NDArray[np.intp],
) -> dict[str, float]:
    """Return the rank correlations of one target, by method."""
    truth = table.latency_of(target)
    own = pool[np.isfinite(truth[pool])]
    count = VALIDATION + next(
        count for start, count in SAMPLES[space].items() if target.startswith(start)
    )
    everything = np.flatnonzero(np.isfinite(truth))
    ours = methods["gaussian"]
    assert isinstance(ours, SourceGP)

    def learnt(method: FewShotPredictor, rows: NDArray[np.intp]) -> float:
        method.adapt(table.codes[rows], truth[rows])
        rest = np.setdiff1d(everything, rows)
        return rank(method, table.codes[rest], truth[rest])

    found = {name: learnt(method, own[:count]) for name, method in methods.items()}
    chosen = learnt(ours, own[ours.choose(table.codes[own], count)])
    return {"samples": float(count), **found, "gaussian, own samples": chosen}


def rank(predictor: FewShotPredictor, codes: Codes, latency_ms: NDArray[np.float64]) -> float:
    return float(spearmanr(predictor.predict(codes), latency_ms).statistic)


if __name__ == "__main__":
    main()
