"""Accuracy of ``auto`` in every depth bin of search spaces that are measured on this machine.

    python -m benchmarks.space_accuracy --space proxyless [--space detector] [--json FILE] [--quick]

The predictor of each space learns from 100 models in rounds of 20, which are chosen as in
``profile``. It is judged on 50 held-out models, random and of all depth bins alike, that it does
not learn from. Every round has its share of them. A round is one block, in random order, so the
drift of the machine affects both alike. The interval is the 95 % interval of the mean (Student).

*Over splits* is a check of that figure without further measurements: all models are split at random
into as many to learn from and as many held out. Its mean and standard deviation are over ten
splits. Chosen models are among the held-out ones there, and random ones among the others.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.provider_ranks import split, spread
from esm_host.cli.live import Live
from esm_host.dataset import collect
from esm_host.dataset.collect import Collector
from esm_host.dataset.lanes import Member
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.evaluation.accuracy import accuracy_by_bin, accuracy_percent
from esm_host.evaluation.check import Check
from esm_host.extension.loop import Loop
from esm_host.extension.settings import SamplingSettings, TrainingSettings
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins, depth_range
from esm_host.sampling.random import RandomSampler
from esm_host.transport.base import Profiler
from esm_host.transport.local import LocalProfiler
from esm_models.architecture import Architecture
from esm_models.errors import ModelsError
from esm_models.space import SearchSpace
from esm_models.spaces import load_space


@dataclass(frozen=True)
class Scale:
    """Settings with which a network of a space takes about 1 to 4 ms, and the wanted accuracy."""

    resolution: int
    width_mult: float
    wanted_percent: float = 96.0


SCALES = {
    "resnet": Scale(64, 0.25),
    "mobilenetv3": Scale(128, 0.5),
    "densenet": Scale(64, 0.5),
    "nasbench201": Scale(32, 1.0),
    "fbnet": Scale(64, 0.5),
    "ofa": Scale(128, 0.5),
    "ofa-resnet50": Scale(64, 0.5),
    "proxyless": Scale(128, 0.5),
    "autoformer": Scale(96, 0.5),
    "mobilenetv4": Scale(128, 0.5),
    "detector": Scale(96, 0.5, wanted_percent=95.0),
    "hat": Scale(16, 0.25),
    "hat-encoder": Scale(16, 0.25),
    "hat-step": Scale(30, 0.25),
    "lm-prefill": Scale(32, 0.125),
    "lm-decode": Scale(32, 0.125),
}
OTHERS = Scale(64, 0.25)
"""Scale of a space that is not in the table."""

STEP = 20


@dataclass(frozen=True)
class Sizes:
    """Numbers of models, of splits, and of a model's counted runs."""

    models: int = 100
    held_out: int = 50
    splits: int = 10
    runs: int = 150


QUICK = Sizes(models=40, held_out=15, splits=2, runs=10)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Campaign:
    """Measured models of a space, and the predictions of the held-out ones.

    Attributes:
        architectures: Measured models, those to learn from first.
        latency_ms: Their latencies, ms, ``(n,)``.
        interval: Relative half-widths of their 95 % intervals, ``(n,)``.
        predicted_ms: Predictions of the held-out models, ms, ``(held,)``.
    """

    space: SearchSpace
    bins: DepthBins
    architectures: list[Architecture]
    latency_ms: Floats
    interval: Floats
    predicted_ms: Floats

    @property
    def depth(self) -> NDArray[np.int64]:
        return np.array([a.depth for a in self.architectures])

    @property
    def held_out(self) -> slice:
        """Rows of the held-out models."""
        return slice(len(self.architectures) - len(self.predicted_ms), None)


# Measuring


def measure(
    space: SearchSpace,
    sizes: Sizes,
    sampling: str,
    seed: int,
    profiler: Profiler,
    store: Store,
    watcher: collect.Watcher,
) -> Campaign:
    """Measure models to learn from and held-out ones, in blocks of both."""
    chosen = SamplingSettings(
        sampling=sampling,
        initial=min(STEP, sizes.models),
        step=STEP,
        max_models=sizes.models,
        target_accuracy_percent=100,  # all models are used
        verify=0,
        seed=seed,
    )
    bins, rng = chosen.depth_bins(space), np.random.default_rng([seed, 2**32])
    references = RandomSampler(space, bins).sample(4, rng)
    held_out = drawn_by_bin(space, bins, sizes.held_out, rng, references)
    loop = Loop(space, chosen, TrainingSettings(predictor="auto", seed=seed))
    loop.restore([], exclude={a.key for a in (*references, *held_out)})

    rounds = -(-sizes.models // STEP)
    share = -(-len(held_out) // rounds)
    settings = MeasuringSettings("local", block_size=STEP + share)
    settings = replace(settings, spec=replace(settings.spec, runs=sizes.runs))
    store.add_plan(REFERENCE_ROUND, references)
    measurements = Measurements(store, settings.spec)
    members = [Member("local", profiler)]
    collector = Collector(store, measurements, members, space, references, settings, watcher)
    learnt: list[Architecture] = []
    number = 0
    while asked := loop.ask():
        store.add_plan(number, mixed([*asked, *held_out[number::rounds]], rng))
        collector.collect(number)
        learnt += asked
        # Later blocks tell more of the device's usual pace, so earlier latencies change too.
        loop.tell(learnt, *latencies(measurements, learnt))
        number += 1
    return judged(loop, space, bins, measurements, learnt, held_out)


def drawn_by_bin(
    space: SearchSpace,
    bins: DepthBins,
    n: int,
    rng: np.random.Generator,
    others: list[Architecture],
) -> list[Architecture]:
    """Return random architectures, as many of each bin, in random order."""
    sampler, seen = BalancedSampler(space, bins), {a.key for a in others}
    drawn: list[Architecture] = []
    for index, quota in enumerate(sampler.quotas(n)):
        drawn += sampler.sample(quota, rng, index, seen)
    return mixed(drawn, rng)


def mixed(architectures: list[Architecture], rng: np.random.Generator) -> list[Architecture]:
    """Return architectures in random order."""
    return [architectures[row] for row in rng.permutation(len(architectures))]


def latencies(
    measurements: Measurements, architectures: list[Architecture]
) -> tuple[Floats, Floats]:
    """Return latencies, ms, and the half-widths of their intervals; NaN for failed models."""
    dataset = measurements.dataset()
    row = {a.key: number for number, a in enumerate(dataset.architectures)}
    known = [row.get(a.key, -1) for a in architectures]
    ms, interval = (np.append(each, np.nan) for each in (dataset.latency_ms, dataset.interval))
    return ms[known], interval[known]


def judged(
    loop: Loop,
    space: SearchSpace,
    bins: DepthBins,
    measurements: Measurements,
    learnt: list[Architecture],
    held_out: list[Architecture],
) -> Campaign:
    """Return the measured models, and the predictions of those held out."""
    architectures = [*learnt, *held_out]
    ms, interval = latencies(measurements, architectures)
    known = ~np.isnan(ms)
    rows = np.flatnonzero(known).tolist()
    held = [a for a, there in zip(held_out, known[len(learnt) :], strict=True) if there]
    return Campaign(
        space,
        bins,
        [architectures[row] for row in rows],
        ms[known],
        interval[known],
        loop.predict(held),
    )


# Figures


def checks(campaign: Campaign) -> dict[str, Check]:
    """Return the accuracy on the held-out models with its interval: by depths, and of all."""
    truth, depth = campaign.latency_ms[campaign.held_out], campaign.depth[campaign.held_out]
    errors = campaign.predicted_ms / truth - 1
    bins = campaign.bins
    found = {}
    for index in range(bins.count if bins.count > 1 else 0):
        depths = bins.depths(index)
        found[depth_range(depths[0], depths[-1])] = Check.of(errors[bins.of(depth) == index])
    return {**found, "all": Check.of(errors)}


def over_splits(campaign: Campaign, splits: int) -> dict[str, list[float]]:
    """Return the accuracies of ``auto`` over random splits of all models, by depths and of all."""
    bins, depth, held_out = campaign.bins, campaign.depth, len(campaign.predicted_ms)
    found: dict[str, list[float]] = {name: [] for name in checks(campaign)}
    for seed in range(splits):
        train, held = split(bins.of(depth), held_out, seed)
        sampling = SamplingSettings(sampling="balanced", initial=len(train), max_models=len(train))
        loop = Loop(campaign.space, sampling, TrainingSettings(predictor="auto", seed=seed))
        own = [campaign.architectures[row] for row in train]
        loop.tell(own, campaign.latency_ms[train], campaign.interval[train])
        predicted = loop.predict([campaign.architectures[row] for row in held])
        truth = campaign.latency_ms[held]
        for each in accuracy_by_bin(depth[held], truth, predicted, bins):
            name = depth_range(each.depth_min, each.depth_max)
            if name in found:
                found[name].append(each.accuracy_percent)
        found["all"].append(accuracy_percent(truth, predicted))
    return found


HEAD = (
    "| space | blocks | held out | latency (ms) | `auto` | 95 % interval | over splits |\n"
    "| --- | --- | ---: | --- | --- | --- | --- |"
)


def lines(
    name: str, campaign: Campaign, found: dict[str, Check], splits: dict[str, list[float]]
) -> list[str]:
    """Return the rows of a space in the Markdown table, one per bin and one for all."""
    truth, depth = campaign.latency_ms[campaign.held_out], campaign.depth[campaign.held_out]
    rows = []
    for index, (depths, check) in enumerate(found.items()):
        own = truth if depths == "all" else truth[campaign.bins.of(depth) == index]
        reached = interval = latency = "-"
        if check.accuracy_percent is not None:
            reached = f"{check.accuracy_percent:.1f} %"
            latency = f"{own.min():.2g} to {own.max():.2g}"
        if check.low_percent is not None:
            interval = f"{check.low_percent:.1f} to {check.high_percent:.1f}"
        over = f"{spread(splits[depths], 1)} %" if splits[depths] else "-"
        first = f"`{name}`" if not index else ""
        rows.append(
            f"| {first} | {depths} | {check.models} | {latency} | {reached} | {interval} | {over} |"
        )
    return rows


def outcome(name: str, campaign: Campaign, found: dict[str, Check], scale: Scale) -> str:
    """Return one line on whether every bin has the wanted accuracy, and on the measurements."""
    wanted = scale.wanted_percent
    reached = [
        each.accuracy_percent for each in found.values() if each.accuracy_percent is not None
    ]
    below = sum(each < wanted for each in reached)
    said = "every bin has" if not below else f"{below} of {len(found)} rows are below"
    half = 100 * float(np.median(campaign.interval[campaign.held_out]))
    learnt = len(campaign.architectures) - len(campaign.predicted_ms)
    return (
        f"{name} ({scale.resolution} px, width x{scale.width_mult:g}), {learnt} models: {said} "
        f"{wanted:g} %; median half-width of a held-out latency {half:.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--space", action="append", required=True, help="Search space; may be given several times."
    )
    parser.add_argument("--sampling", default="informative", help="[default: informative]")
    parser.add_argument("--seed", type=int, default=0, help="Random seed. [default: 0]")
    parser.add_argument("--resolution", type=int, help="Replaces that of the table, pixels.")
    parser.add_argument("--width-mult", type=float, help="Replaces that of the table.")
    parser.add_argument("--quick", action="store_true", help="Few models, runs and splits.")
    parser.add_argument("--json", type=Path, help="File for the latencies and figures.")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    spaces = {}
    for name in args.space:
        scale = SCALES.get(name, OTHERS)
        given = {"resolution": args.resolution, "width_mult": args.width_mult}
        scale = replace(scale, **{key: value for key, value in given.items() if value is not None})
        try:
            space = load_space(name, resolution=scale.resolution, width_mult=scale.width_mult)
        except ModelsError as error:
            raise SystemExit(f"error: {error}") from error
        spaces[name] = space, scale
    results: list[dict[str, Any]] = []
    outcomes = []
    print(HEAD)
    for name, (space, scale) in spaces.items():
        began = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix="esm-") as folder,
            closing(Store(Path(folder) / "store.sqlite")) as store,
            LocalProfiler() as profiler,
            Live(quiet=True) as live,
        ):
            campaign = measure(space, sizes, args.sampling, args.seed, profiler, store, live)
        measured_s = time.monotonic() - began
        found, splits = checks(campaign), over_splits(campaign, sizes.splits)
        print("\n".join(lines(name, campaign, found, splits)), flush=True)
        outcomes.append(f"{outcome(name, campaign, found, scale)}; {measured_s:.0f} s")
        results.append(
            {
                "space": name,
                "scale": asdict(scale),
                "sampling": args.sampling,
                "seed": args.seed,
                "architectures": [a.to_json() for a in campaign.architectures],
                "latency_ms": campaign.latency_ms.tolist(),
                "interval": campaign.interval.tolist(),
                "predicted_ms": campaign.predicted_ms.tolist(),
                "held_out": {depths: asdict(check) for depths, check in found.items()},
                "over_splits": splits,
                "measured_s": measured_s,
            }
        )
        if args.json:
            args.json.write_text(json.dumps(results, indent=2) + "\n")
    print("", *outcomes, sep="\n")


if __name__ == "__main__":
    main()
