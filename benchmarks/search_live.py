"""Share of a search's architectures within their latency budget, on this machine.

    python -m benchmarks.search_live --results runs/search-live [--space autoformer]

One campaign: 120 architectures of the space, reduced in size, that chance chooses. The budget is
the 30th percentile of what they took. Then ``esm-host search`` with ten seeds, each from the
campaign as it was, each with 30 models to measure, most FLOPs within the budget. Of each search
counts what has the most FLOPs on its verified front.

Beside them, of 1,000 random architectures per seed, the one with most FLOPs within the budget: by
the campaign's predictor alone (`random_mflops`), and of the ten with most FLOPs that it takes to be
within 1.1 times the budget what is measured to keep it (`random_kept_mflops`; 0: none did).

In the end all of these are measured together, apart from the searches, and set to the campaign's
scale by networks of the campaign that are like what was chosen (`anchors`): the machine is seldom
what it was an hour ago. A results folder's campaigns and searches are not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.atomic import write_json
from esm_host.campaign.folder import RunFolder
from esm_host.campaign.run import Run, load_run
from esm_host.campaign.session import connect_devices, open_session
from esm_host.campaign.watcher import Watcher
from esm_host.search.anchors import most_alike
from esm_host.search.costs import NetworkCost
from esm_models.architecture import Architecture

SIZES = {"resnet": ("64", "0.25"), "autoformer": ("64", "0.5")}
"""Resolution and multiplier of the width by space."""

KNOWN, MEASURED, SEEDS, PERCENTILE = 120, 30, 10, 30
RANDOM, NEAR, TRIED, ANCHORS = 1000, 1.1, 10, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--space", choices=SIZES, default="resnet")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    results: Path = args.results
    campaign = results / "campaign"
    if not (campaign / "result.json").exists():
        counts = ["--initial", str(KNOWN), "--max-models", str(KNOWN), "--sampling", "random"]
        resolution, width = SIZES[args.space]
        space = ["--space", args.space, "--resolution", resolution, "--width-mult", width]
        command("profile", "--run", str(campaign), *space, *counts, "--judge", "overall")
    run = load_run(campaign)
    budget_ms = float(np.percentile(run.dataset().latency_ms, PERCENTILE))
    rows = [search(results, seed, budget_ms) for seed in range(args.seeds)]
    chosen = [Architecture.from_json(json.loads(row.pop("architecture"))) for row in rows]
    frame = pd.DataFrame(rows)
    drawn = [run.sample(RANDOM, "random", seed) for seed in range(args.seeds)]
    frame["random_mflops"] = [
        mflops(run, each)[run.predict(each) <= budget_ms].max(initial=0) for each in drawn
    ]
    tried = [large_ones(run, each, budget_ms) for each in drawn]
    again = measured_again(run, chosen, [a for each in tried for a in each], results / "again")
    frame["again_ms"] = [again[a.key] for a in chosen]
    frame["kept"] = frame["again_ms"] <= budget_ms
    within = [[a for a in each if again[a.key] <= budget_ms] for each in tried]
    frame["random_kept_mflops"] = [mflops(run, each).max(initial=0) for each in within]
    frame.to_csv(results / "live.csv", index=False)
    print(frame.round(3).to_string(index=False))
    held = frame["kept"].sum()
    print(f"budget {budget_ms:.3f} ms: kept by {held} of {len(frame)} when measured again")
    for name, text in (("random_mflops", "predicted"), ("random_kept_mflops", "measured")):
        more = (frame["mflops"] >= frame[name]).sum()
        print(
            f"FLOPs of the best of {RANDOM} random ones, {text} to keep it: {more} of {len(frame)}"
        )


def command(name: str, *options: str) -> None:
    print(f"{name} {' '.join(options)}", flush=True)
    done = subprocess.run(["esm-host", name, *options, "--quiet"], capture_output=True, text=True)
    if done.returncode not in (0, 3):  # 3: the target was not reached, of which there is none
        raise SystemExit(done.stderr)


def search(results: Path, seed: int, budget_ms: float) -> dict[str, object]:
    run = results / f"seed-{seed}"
    if not (run / "search" / "front.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(results / "campaign", run)
        limits = ["--max-latency", repr(budget_ms), "--measure", str(MEASURED)]
        command("search", str(run), *limits, "--seed", str(seed))
    found = json.loads((run / "search" / "front.json").read_text())
    best = max(found["results"], key=lambda row: row["flops"])
    return {
        "seed": seed,
        "measured": found["measured"],
        "stable": found["stable"],
        "latency_ms": best["latency_ms"],
        "at_most_ms": best["latency_at_most_ms"],
        "mflops": best["flops"] / 1e6,
        "architecture": json.dumps(best["architecture"]),
    }


def measured_again(
    run: Run, chosen: list[Architecture], others: list[Architecture], path: Path
) -> dict[str, float]:
    """Return latencies, ms, on the campaign's scale, by key; NaN for failed models."""
    folder, settings, space = RunFolder(path), run.settings, run.space
    encoder = run.encoder
    known = run.dataset()
    wanted = encoder.encode(chosen)
    rows = most_alike(encoder.encode(known.architectures), wanted, ANCHORS).tolist()
    anchors = [known.architectures[row] for row in rows]
    resume = folder.settings.exists()
    watcher = Watcher()
    with ExitStack() as stack:
        found = stack.enter_context(
            connect_devices(settings, space, resume, 60, True, watcher.warn)
        )
        folder.prepare(resume)
        write_json(folder.settings, settings.to_json())
        stack.enter_context(folder.locked())
        parts = stack.enter_context(open_session(settings, folder, space, found, watcher))
        for number, architectures in ((0, anchors), (1, [*chosen, *others])):
            plan = parts.store.plan()
            if number not in plan:
                there = {a.key for each in plan.values() for a in each}
                fresh = {a.key: a for a in architectures if a.key not in there}
                parts.store.add_plan(number, list(fresh.values()))
            parts.collector.collect(number, (lambda _: anchors) if number else None)
        figures = parts.measurements.figures()
    here = {a.key: ms for a, ms in zip(figures.architectures, figures.latency_ms, strict=True)}
    scale = np.median([known.latency_ms[row] / here[known.architectures[row].key] for row in rows])
    return {key: float(scale * latency_ms) for key, latency_ms in here.items()}


def large_ones(run: Run, drawn: list[Architecture], budget_ms: float) -> list[Architecture]:
    """Return the architectures with the most FLOPs that may be within the budget."""
    near = np.flatnonzero(run.predict(drawn) <= NEAR * budget_ms)
    order = np.argsort(-mflops(run, drawn)[near], kind="stable")
    return [drawn[row] for row in near[order][:TRIED]]


def mflops(run: Run, architectures: list[Architecture]) -> NDArray[np.float64]:
    return NetworkCost(run.space)(run.space.encode(architectures))["flops"] / 1e6


if __name__ == "__main__":
    main()
