"""Ranks of one search space on OpenVINO and on the CPU provider, and transfer between the two.

    python -m benchmarks.provider_ranks [--json FILE] [--results FOLDER] [--quick]

The same 150 ResNet subnets (64 px, width x0.25), drawn balanced over five depth bins, are measured
in a campaign on ``cpu`` and in one on ``openvino`` in float32, by one agent in an environment with
the wheel onnxruntime-openvino. Three figures come from it:

- rank correlations between the two providers, with 95 % intervals by bootstrap over the models;
- the accuracy of ``auto`` with 100 models on each, overall and in the worst depth bin, on the
  other 50;
- what 10 random models of the 100 on OpenVINO reach on these 50, with the 100 on ``cpu`` as a
  source and without.

The last two are means and standard deviations over seeds. A seed draws the 50 of all bins alike,
and the 10. A results folder's campaigns are not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.provider_wheels import OPENVINO_FLOAT32, WHEELS, WheelMissingError, agent
from esm_host import Loop, SamplingSettings, Settings, TrainingSettings, load_run, profile
from esm_host.evaluation.accuracy import accuracy_by_bin, accuracy_percent
from esm_host.evaluation.ranking import rank_correlations
from esm_host.sampling.bins import DepthBins
from esm_host.transfer import make_method
from esm_host.transfer.source import Source
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

SPACE = {"space": "resnet", "resolution": 64, "width_mult": 0.25, "bins": 5}
PROVIDERS: dict[str, dict[str, str]] = {"cpu": {}, "openvino": OPENVINO_FLOAT32}
CPU, OPENVINO = PROVIDERS
METHODS = {"cpu as source": "gaussian", "without source": "scratch"}
RESAMPLES = 1000

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Sizes:
    """Numbers of models, of repetitions, and of a model's counted runs."""

    models: int = 150
    held_out: int = 50
    samples: int = 10
    seeds: int = 20
    runs: int = 150


QUICK = Sizes(models=15, held_out=5, samples=5, seeds=2, runs=10)


@dataclass(frozen=True, eq=False)
class Measured:
    """Models that were measured on both providers.

    Attributes:
        latency_ms: Latencies by provider, ms, ``(n,)``.
        interval: Relative half-widths of their 95 % intervals by provider, ``(n,)``.
    """

    space: SearchSpace
    bins: DepthBins
    architectures: list[Architecture]
    latency_ms: Mapping[str, Floats]
    interval: Mapping[str, Floats]

    @property
    def depth(self) -> NDArray[np.int64]:
        return np.array([a.depth for a in self.architectures])


def measure(folder: Path, sizes: Sizes) -> Measured:
    """Measure a campaign on each provider, unless the folder holds it."""
    runs = {}
    with ExitStack() as stack:
        address = ""
        for provider, options in PROVIDERS.items():
            runs[provider] = folder / provider
            if (runs[provider] / "result.json").exists():
                continue
            address = address or stack.enter_context(agent("openvino", "--take-turns"))
            spec = Settings(address).spec
            settings = Settings(
                address,
                sampling="balanced",
                initial=sizes.models,
                max_models=sizes.models,
                verify=0,
                max_remeasurements=0 if sizes == QUICK else 2,
                spec=replace(spec, runs=sizes.runs, provider=provider, provider_options=options),
                **SPACE,
            )
            profile(settings, runs[provider])
    return common({provider: load_run(run) for provider, run in runs.items()})


def common(runs: Mapping[str, Any]) -> Measured:
    """Return the models that all campaigns measured, in the order of the first."""
    datasets = {provider: run.dataset() for provider, run in runs.items()}
    rows = {
        provider: {a.key: row for row, a in enumerate(dataset.architectures)}
        for provider, dataset in datasets.items()
    }
    first = next(iter(datasets.values()))
    shared = [a for a in first.architectures if all(a.key in known for known in rows.values())]
    own = {provider: [known[a.key] for a in shared] for provider, known in rows.items()}
    run = next(iter(runs.values()))
    return Measured(
        run.space,
        run.settings.depth_bins(run.space),
        shared,
        {provider: each.latency_ms[own[provider]] for provider, each in datasets.items()},
        {provider: each.interval[own[provider]] for provider, each in datasets.items()},
    )


# Figures


def bootstrap(
    figure: Callable[[Floats, Floats], float], a: Floats, b: Floats, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a figure of pairs: percentiles over resampled pairs."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, len(a), len(a)) for _ in range(RESAMPLES))
    low, high = np.percentile([figure(a[rows], b[rows]) for rows in drawn], [2.5, 97.5])
    return float(low), float(high)


def ranks(a_ms: Floats, b_ms: Floats) -> dict[str, tuple[float, float, float]]:
    """Return each rank correlation with the ends of its 95 % interval."""
    figures: dict[str, Callable[[Floats, Floats], float]] = {
        "Spearman": lambda a, b: rank_correlations(a, b).spearman,
        "Kendall's tau": lambda a, b: rank_correlations(a, b).tau,
    }
    return {
        name: (figure(a_ms, b_ms), *bootstrap(figure, a_ms, b_ms))
        for name, figure in figures.items()
    }


def split(stratum: NDArray[np.int64], held_out: int, seed: int) -> tuple[Rows, Rows]:
    """Return rows to train on, in random order, and held-out rows, equally many per stratum."""
    order = np.random.default_rng(seed).permutation(len(stratum))
    rank = np.empty(len(stratum), dtype=np.int64)
    for each in np.unique(stratum):
        own = order[stratum[order] == each]
        rank[own] = np.arange(len(own))
    first = order[np.argsort(rank[order], kind="stable")]  # one of each stratum in turn
    held = first[:held_out]
    return order[~np.isin(order, held)], np.sort(held)


def auto_accuracy(data: Measured, provider: str, train: Rows, held: Rows) -> dict[str, float]:
    """Return the held-out accuracy of ``auto``, percent: overall and of the worst bin."""
    told, interval = data.latency_ms[provider], data.interval[provider]
    sampling = SamplingSettings(sampling="balanced", initial=len(train), max_models=len(train))
    loop = Loop(data.space, sampling, TrainingSettings(predictor="auto"))
    loop.tell([data.architectures[i] for i in train], told[train], interval[train])
    predicted = loop.predict([data.architectures[i] for i in held])
    bins = accuracy_by_bin(data.depth[held], told[held], predicted, data.bins)
    return {
        "overall": accuracy_percent(told[held], predicted),
        "worst bin": min(each.accuracy_percent for each in bins if each.samples),
    }


def few_shot(data: Measured, train: Rows, held: Rows, samples: int) -> dict[str, dict[str, float]]:
    """Return held-out figures on OpenVINO by method, with the first ``samples`` rows to train on.

    The source knows all rows to train on, and none that is held out.
    """
    codes, own = data.space.encode(data.architectures), train[:samples]
    truth_ms = data.latency_ms[OPENVINO]
    source = Source(CPU, data.space, codes[train], data.latency_ms[CPU][train])
    found = {}
    for name, method in METHODS.items():
        predictor = make_method(method)
        predictor.learn([source])
        predictor.adapt(codes[own], truth_ms[own])
        predicted = predictor.predict(codes[held])
        found[name] = {
            "Spearman": rank_correlations(truth_ms[held], predicted).spearman,
            "accuracy": accuracy_percent(truth_ms[held], predicted),
        }
    return found


# Tables


def spread(values: Sequence[float], digits: int) -> str:
    """Return mean and standard deviation as text."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def rank_table(found: Mapping[str, tuple[float, float, float]], models: int) -> str:
    """Return the rank correlations between the providers as a Markdown table."""
    lines = [
        f"| `openvino` against `cpu`, {models} models | correlation | 95 % interval |",
        "| --- | --- | --- |",
    ]
    for name, (value, low, high) in found.items():
        lines.append(f"| {name} | {value:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def accuracy_table(found: Mapping[str, Sequence[Mapping[str, float]]], trained: int) -> str:
    """Return the accuracies of ``auto`` by provider as a Markdown table."""
    lines = [
        f"| `auto` with {trained} models | accuracy | worst bin |",
        "| --- | --- | --- |",
    ]
    for provider, rows in found.items():
        overall, worst = (spread([row[k] for row in rows], 1) for k in ("overall", "worst bin"))
        lines.append(f"| `{provider}` | {overall} % | {worst} % |")
    return "\n".join(lines)


def few_table(found: Mapping[str, Sequence[Mapping[str, float]]], samples: int) -> str:
    """Return what few samples reach as a Markdown table."""
    lines = [
        f"| {samples} samples on `openvino` | Spearman | accuracy |",
        "| --- | --- | --- |",
    ]
    for method, rows in found.items():
        spearman = spread([row["Spearman"] for row in rows], 3)
        accuracy = spread([row["accuracy"] for row in rows], 1)
        lines.append(f"| {method} | {spearman} | {accuracy} % |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="Few models and two seeds.")
    parser.add_argument(
        "--results", type=Path, help="Folder that keeps the campaigns. [default: temporary]"
    )
    parser.add_argument("--json", type=Path, help="File for the figures of every seed.")
    args = parser.parse_args()
    sizes, began = QUICK if args.quick else Sizes(), time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="esm-") as folder:
            data = measure(args.results or Path(folder), sizes)
    except WheelMissingError as error:
        raise SystemExit(f"error: {error}") from error
    measured_s = time.monotonic() - began
    correlations = ranks(data.latency_ms[CPU], data.latency_ms[OPENVINO])
    accuracies: dict[str, list[dict[str, float]]] = {provider: [] for provider in PROVIDERS}
    few: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for seed in range(sizes.seeds):
        train, held = split(data.bins.of(data.depth), sizes.held_out, seed)
        for provider, rows in accuracies.items():
            rows.append(auto_accuracy(data, provider, train, held))
        for name, reached in few_shot(data, train, held, sizes.samples).items():
            few[name].append(reached)
    if args.json:
        figures = {
            "space": SPACE,
            "wheel": WHEELS["openvino"],
            "options": PROVIDERS,
            "architectures": [a.to_json() for a in data.architectures],
            "latency_ms": {name: own.tolist() for name, own in data.latency_ms.items()},
            "ranks": correlations,
            "auto": accuracies,
            "few_samples": few,
        }
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    models = len(data.architectures)
    print(rank_table(correlations, models), end="\n\n")
    print(accuracy_table(accuracies, models - sizes.held_out), end="\n\n")
    print(few_table(few, sizes.samples), end="\n\n")
    given = ", ".join(f"{key}={value}" for key, value in OPENVINO_FLOAT32.items())
    print(f"{WHEELS['openvino']}, {given}; {sizes.held_out} held out, {sizes.seeds} seeds,")
    print(f"{measured_s:.0f} s of measuring, {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
