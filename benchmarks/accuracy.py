"""Accuracy of a predictor, by timing protocol and by encoding.

    python -m benchmarks.accuracy --run runs/accuracy [--json FILE]

Measures the same ResNet subnets (64 px, width x0.25) on this machine under both protocols, in
turn, a hundred models at a time: interleaved with references until every interval is tight, as
`esm-host profile` does, and all runs in a row as in the paper. Then trains the paper's MLP on 800
of them and tests it on the other 400, for every encoding and five seeds (a seed draws the split and
the initial weights).
Resumes where it was broken off; with everything measured it only trains.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np

from esm_host.cli.live import Live
from esm_host.dataset.collect import Collector
from esm_host.dataset.lanes import Member
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.dataset.table import Dataset, best_attempts
from esm_host.encoding import ENCODERS, encoder_class, make_encoder
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.predictors.mlp import MLPPredictor
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.transport.local import LocalProfiler
from esm_models.space import SearchSpace
from esm_models.spaces import load_space
from esm_protos.messages import MeasureSpec, RunOrder

ROUND = 100
SPECS = {
    "interleaved": MeasuringSettings("local").spec,
    "in a row": MeasureSpec(run_order=RunOrder.SEQUENTIAL),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--space", default="resnet")
    parser.add_argument("--models", type=int, default=1200)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=150, help="counted runs per model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    space = load_space(args.space, resolution=64, width_mult=0.25)
    bins = DepthBins(space.min_depth, space.max_depth, 5)
    args.run.mkdir(parents=True, exist_ok=True)
    stores = {name: Store(args.run / f"{name.replace(' ', '-')}.sqlite") for name in SPECS}
    specs = {name: replace(spec, runs=args.runs) for name, spec in SPECS.items()}
    measure(space, bins, stores, specs, args.models)

    measured = {name: Measurements(store, specs[name]) for name, store in stores.items()}
    interleaved = measured["interleaved"].dataset()
    datasets = {
        "at the usual pace": interleaved,
        "as measured": as_measured(measured["interleaved"], interleaved),
        "in a row": measured["in a row"].dataset(),
    }
    table = {
        encoding: {
            name: accuracies(space, dataset, encoding, args.held_out, args.seeds)
            for name, dataset in datasets.items()
        }
        for encoding in ENCODERS
        if encoder_class(encoding).suits(space)
    }
    report(table, datasets, measured)
    if args.json:
        args.json.write_text(json.dumps({"accuracy_percent": table}, indent=2) + "\n")


def measure(
    space: SearchSpace,
    bins: DepthBins,
    stores: dict[str, Store],
    specs: dict[str, MeasureSpec],
    models: int,
) -> None:
    """Measure one plan by each protocol, in alternating rounds."""
    rng = np.random.default_rng(0)
    sampler = BalancedSampler(space, bins)
    references = RandomSampler(space, bins).sample(4, rng)
    seen = {a.key for a in references}
    planned = []
    for index, quota in enumerate(sampler.quotas(models)):
        planned += sampler.sample(quota, rng, index, seen)
    planned = [planned[i] for i in rng.permutation(len(planned))]
    for store in stores.values():
        known = store.plan()
        if not known:
            store.add_plan(REFERENCE_ROUND, references)
        for number, start in enumerate(range(0, models, ROUND)):
            if number not in known:
                store.add_plan(number, planned[start : start + ROUND])
    with LocalProfiler() as profiler, Live(quiet=False) as live:
        for number in range(-(-models // ROUND)):
            for name, store in stores.items():
                sequential = specs[name].run_order is RunOrder.SEQUENTIAL
                collector = Collector(
                    store,
                    Measurements(store, specs[name]),
                    [Member("local", profiler)],
                    space,
                    references,
                    MeasuringSettings(
                        "local",
                        spec=specs[name],
                        # Sequential references deviate on noisy machines; repeating does not help.
                        max_remeasurements=0 if sequential else 2,
                    ),
                    live,
                )
                live.on_round(number, min(ROUND, models - number * ROUND))
                collector.collect(number)


def as_measured(measurements: Measurements, dataset: Dataset) -> Dataset:
    """Return the measurements without correction for pace, and with the runs of cold models."""
    table = measurements.table()
    best = best_attempts(table)
    latency_ms = np.array([table.models[best[a.key]][a.key].raw_ms for a in dataset.architectures])
    return replace(dataset, latency_ms=latency_ms)


def accuracies(
    space: SearchSpace,
    dataset: Dataset,
    encoding: str,
    held_out: int,
    seeds: int,
) -> list[float]:
    """Return the held-out accuracy of each seed, percent."""
    encodings = make_encoder(encoding, space).encode(dataset.architectures)
    result = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(dataset))
        test, train = order[:held_out], order[held_out:]
        predictor = MLPPredictor(seed=seed).fit(encodings[train], dataset.latency_ms[train])
        predicted = predictor.predict(encodings[test])
        result.append(accuracy_percent(dataset.latency_ms[test], predicted))
    return result


def report(
    table: dict[str, dict[str, list[float]]],
    datasets: dict[str, Dataset],
    measured: dict[str, Measurements],
) -> None:
    print(f"\n{'encoding':12}" + "".join(f"{name:>24}" for name in datasets))
    for encoding, row in table.items():
        cells = [f"{statistics.mean(v):.1f} +- {statistics.stdev(v):.1f} %" for v in row.values()]
        print(f"{encoding:12}" + "".join(f"{cell:>24}" for cell in cells))
    for name, measurements in measured.items():
        blocks = measurements.table()
        spread = np.log(blocks.references_ms).std(axis=0).mean()
        left = blocks.quality.deviations.mean()
        print(
            f"{name}: {len(blocks.blocks)} blocks, device busy "
            f"{sum(b.busy_ns for b in blocks.blocks) / 60e9:.1f} min; references vary by "
            f"{100 * spread:.1f} % between blocks, {100 * left:.1f} % at the usual pace"
        )


if __name__ == "__main__":
    main()
