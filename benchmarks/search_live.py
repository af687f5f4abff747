"""Whether what a search chooses keeps its budget, on this machine.

    python -m benchmarks.search_live --results runs/search-live

One campaign: 120 ResNet architectures that chance chooses. The budget is the 30th percentile of
what they took. Then ``esm-host search`` with ten seeds, each from the campaign as it was, each with
30 models to measure, most FLOPs within the budget. Of each search counts what has the most FLOPs on
its verified front. In the end all ten are measured once more, together, apart from the searches,
and set to the campaign's scale by its reference models. Beside them, of 1,000 random architectures
the one with most FLOPs among those that the campaign's predictor takes to be within the budget.
A results folder's campaigns and searches are not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_host.atomic import write_json
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.dataset.table import Measurements
from esm_host.folder import RunFolder
from esm_host.measuring import connected, measuring
from esm_host.run import Run, load_run
from esm_host.search.costs import NetworkCost
from esm_host.watcher import Watcher
from esm_models.architecture import Architecture

SPACE = ["--space", "resnet", "--resolution", "64", "--width-mult", "0.25"]
KNOWN, MEASURED, SEEDS, PERCENTILE, RANDOM = 120, 30, 10, 30, 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    results: Path = args.results
    campaign = results / "campaign"
    if not (campaign / "result.json").exists():
        counts = ["--initial", str(KNOWN), "--max-models", str(KNOWN), "--sampling", "random"]
        command("profile", "--run", str(campaign), *SPACE, *counts, "--judge", "overall")
    run = load_run(campaign)
    budget_ms = float(np.percentile(run.dataset().latency_ms, PERCENTILE))
    rows = [search(results, seed, budget_ms) for seed in range(args.seeds)]
    chosen = [Architecture.from_json(json.loads(row.pop("architecture"))) for row in rows]
    frame = pd.DataFrame(rows)
    again_ms, interval = measured_again(run, chosen, results / "again")
    frame["again_ms"], frame["interval_percent"] = again_ms, 100 * interval
    frame["kept"] = frame["again_ms"] <= budget_ms
    frame["random_mflops"] = [best_of_random(run, budget_ms, seed) for seed in range(args.seeds)]
    frame.to_csv(results / "live.csv", index=False)
    print(frame.round(3).to_string(index=False))
    kept, more = int(frame["kept"].sum()), int((frame["mflops"] >= frame["random_mflops"]).sum())
    print(f"budget {budget_ms:.3f} ms: kept by {kept} of {len(frame)} when measured again")
    print(f"at least the FLOPs of the best of {RANDOM} random ones: {more} of {len(frame)}")


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
    run: Run, chosen: list[Architecture], path: Path
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Latencies, ms, on the campaign's scale, and their intervals as shares, ``(n,)`` each."""
    folder, settings, space = RunFolder(path), run.settings, run.space
    resume = folder.settings.exists()
    watcher = Watcher()
    with ExitStack() as stack:
        found = stack.enter_context(connected(settings, space, resume, 60, True, watcher.warn))
        folder.prepare(resume)
        write_json(folder.settings, settings.to_json())
        stack.enter_context(folder.locked())
        parts = stack.enter_context(measuring(settings, folder, space, found, watcher))
        number = REFERENCE_ROUND - 1
        if number not in parts.store.plan():
            different = {a.key: a for a in chosen}
            parts.store.add_plan(number, list(different.values()))
        parts.collector.collect(number)
        dataset = parts.measurements.dataset()
        here = typical_ms(parts.measurements)
    with closing(RunFolder(run.path).open_store()) as store:
        there = typical_ms(Measurements(store, settings.spec))
    scale = float(np.median(there / here))
    place = {a.key: row for row, a in enumerate(dataset.architectures)}
    rows = [place[a.key] for a in chosen]
    return scale * dataset.latency_ms[rows], dataset.interval[rows]


def typical_ms(measurements: Measurements) -> NDArray[np.float64]:
    """Of the reference models, the pace of blocks divided out, ``(references,)``."""
    table = measurements.table()
    found: NDArray[np.float64] = np.nanmedian(
        table.references_ms / table.quality.factors[:, None], axis=0
    )
    return found


def best_of_random(run: Run, budget_ms: float, seed: int) -> float:
    """MFLOPs."""
    drawn = run.sample(RANDOM, "random", seed)
    within = run.predict(drawn) <= budget_ms
    flops = NetworkCost(run.space)(run.space.encode(drawn))["flops"]
    return float(flops[within].max() / 1e6) if within.any() else 0.0


if __name__ == "__main__":
    main()
