"""Peak memory as a metric of a campaign on this machine: repeatable, predictable, and as a limit.

    python -m benchmarks.memory_campaign

*Repeats* are the reference models, which every block measures. *Own memory* is the peak without
that of a model of one operator, so it leaves out the interpreter and the runtime. Ten searches,
each with a seed of its own, look for most FLOPs within a limit of memory. A few architectures of
each predicted front are measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

import esm_host
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run
from esm_host.campaign.watcher import Watcher
from esm_host.dataset.campaign_metric import PEAK_MEMORY
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.encoding import make_encoder
from esm_host.predictors.auto import AutoPredictor
from esm_host.search.genes import RowIndex, distinct
from esm_host.search.verify import spread
from esm_host.workflows.campaign_site import campaign_sites

PERCENTILE = 40
"""Percentile of the measured memories that is the limit of the searches."""

Floats = NDArray[np.float64]


def smallest_bytes(folder: Path) -> float:
    """Return the peak memory of a model of one operator, bytes."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17)]
    path = folder / "relu.onnx"
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    timing = esm_host.time(str(path), runs=5)
    return float(timing.results()["peak_rss_bytes"].iloc[0])


def repeats(run: Run) -> dict[str, list[float]]:
    """Return the peak memories of each reference model, one per block."""
    found: dict[str, list[float]] = defaultdict(list)
    with closing(RunFolder(run.path).open_store()) as store:
        references = {a.key for a in store.plan()[REFERENCE_ROUND]}
        for measured in store.measurements():
            if measured.model_id in references and measured.failure is None:
                found[measured.model_id].append(float(measured.metrics[PEAK_MEMORY.key]))
    return found


def held_out(run: Run, models: int, seed: int) -> tuple[Floats, Floats]:
    """Return measured and predicted memories of the models beyond the first, bytes."""
    dataset = run.of(PEAK_MEMORY.name).dataset()
    order = np.random.default_rng(seed).permutation(len(dataset))
    encoder = make_encoder("views", run.space)
    encodings = encoder.encode(dataset.architectures)
    learnt, rest = order[:models], order[models:]
    predictor = AutoPredictor(encoder.layout, seed)
    predictor.fit(encodings[learnt], dataset.latency_ms[learnt])
    return dataset.latency_ms[rest], predictor.predict(encodings[rest])


def searched(run: Run, limit: float, args: argparse.Namespace, folder: Path) -> list[Floats]:
    """Return the measured memories of architectures of each predicted front, bytes."""
    picked = []
    for seed in range(args.searches):
        settings = esm_host.SearchSettings(
            (str(run.path),), limits=(f"{PEAK_MEMORY.key}<={limit!r}",), measure=0, seed=seed
        )
        front = esm_host.run_search(settings, folder / f"search{seed}").front
        picked.append(front.codes[spread(len(front), args.picks, True)])
    watcher = Watcher()
    with campaign_sites([run], [""], 60.0, True, watcher, run.settings.metrics) as (site,):
        every = np.concatenate(picked)
        site.measure(every[distinct(every)])
    figures = esm_host.load_run(run.path).of(PEAK_MEMORY.name).figures()
    rows = RowIndex(run.space.encode(figures.architectures))
    return [figures.latency_ms[rows(codes)] for codes in picked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--searches", type=int, default=10)
    parser.add_argument("--picks", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--width-mult", type=float, default=0.25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as text:
        found = measured(args, Path(text))
    found["wall_s"] = time.monotonic() - began
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    print("| what | value |\n| --- | ---: |")
    for name, value in found.items():
        print(f"| {name} | {value:.4g} |")


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the campaign and the searches; return the figures by name."""
    total = args.models + args.held_out
    settings = esm_host.Settings(
        "local",
        resolution=args.resolution,
        width_mult=args.width_mult,
        sampling="random",
        initial=total,
        max_models=total,
        judge="overall",
        verify=0,
        seed=args.seed,
        metric="peak_memory,latency",
        spec=esm_host.MeasureSpec(runs=20, references=True),
    )
    began = time.monotonic()
    run = esm_host.profile(settings, folder / "run")
    profiled_s = time.monotonic() - began
    again = repeats(run)
    percent = [100 * (max(each) / min(each) - 1) for each in again.values()]
    truth, predicted = held_out(run, args.models, args.seed)
    smallest = smallest_bytes(folder)
    errors = np.abs(predicted - truth)
    memories = run.of(PEAK_MEMORY.name).dataset().latency_ms
    limit = float(np.percentile(memories, PERCENTILE))
    began = time.monotonic()
    kept = [each <= limit for each in searched(run, limit, args, folder)]
    searched_s = time.monotonic() - began
    return {
        "models": args.models,
        "held out": len(truth),
        "smallest (MB)": float(memories.min()) / 1e6,
        "largest (MB)": float(memories.max()) / 1e6,
        "model of one operator (MB)": smallest / 1e6,
        "repeats: blocks": float(np.mean([len(each) for each in again.values()])),
        "repeats: largest difference (%)": max(percent),
        "error of the peak (%)": 100 * float((errors / truth).mean()),
        "largest error of the peak (%)": 100 * float((errors / truth).max()),
        "error of own memory (%)": 100 * float((errors / (truth - smallest)).mean()),
        "limit (MB)": limit / 1e6,
        "searches": len(kept),
        "measured of their fronts": sum(map(len, kept)),
        "within the limit (%)": 100 * float(np.concatenate(kept).mean()),
        "campaign (s)": profiled_s,
        "searches (s)": searched_s,
    }


if __name__ == "__main__":
    main()
