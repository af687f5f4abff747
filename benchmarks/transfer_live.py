"""Settings of one machine as devices, transferred to each other by the command.

    python -m benchmarks.transfer_live --results runs/transfer-live

The settings are one thread, two threads, batch 8 on two threads, and int8 graphs on one thread, all
on this machine. Each is measured as a campaign of its own, 120 architectures of FBNet that chance
chooses; then esm-host transfer learns each from 20 measurements and one other, or all others, and
is judged by the campaign's architectures. From scratch: 20 of the campaign's own, five times. A
results folder's campaigns are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.run import load_run
from esm_host.sources.registry import load
from esm_host.sources.source import Source
from esm_host.transfer import make_method

Floats = NDArray[np.float64]

SETTINGS = {
    "1 thread": ["--threads", "1"],
    "2 threads": ["--threads", "2"],
    "batch 8": ["--threads", "2", "--batch", "8"],
    "int8": ["--threads", "1", "--dtype", "int8"],
}
SPACE, KNOWN, SAMPLES, SEEDS = ["--space", "fbnet"], 120, 20, 5


def folder_of(results: Path, name: str) -> Path:
    return results / name.replace(" ", "-")


def run(command: str, folder: Path, *options: str) -> None:
    if (folder / "result.json").exists():
        return
    print(f"{command} {folder}", flush=True)
    done = subprocess.run(
        ["esm-host", command, "--run", str(folder), *SPACE, "--quiet", *options],
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 3):  # 3: the target was not reached, of which there is none
        raise SystemExit(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    results = parser.parse_args().results
    for name, options in SETTINGS.items():
        counts = ["--initial", str(KNOWN), "--max-models", str(KNOWN)]
        run("profile", folder_of(results, name), *options, *counts, "--sampling", "random")
    rows = []
    for target, options in SETTINGS.items():
        truth = known(results, target)
        others = [name for name in SETTINGS if name != target]
        for sources in [*([name] for name in others), others]:
            folder = results / "transfer" / f"{target} from {' and '.join(sources)}"
            named = [option for s in sources for option in ("--source", str(folder_of(results, s)))]
            learn = ["--samples", str(SAMPLES), "--held-out", "0", "--seed", "1"]
            run("transfer", folder, *options, *named, *learn)
            told = json.loads((folder / "result.json").read_text())["transfer"]
            predicted_ms = load_run(folder).predict(truth.space.decode(truth.codes))
            rows += [
                {
                    "target": target,
                    "from": sources[0] if len(sources) == 1 else "all three",
                    **judged(truth.latency_ms, predicted_ms),
                    "left out, % off": told["left_out_error_percent"],
                    "without sources": told["without_sources_percent"],
                }
            ]
            if len(sources) == 1:
                found = by_chance(truth, "adaproxy", known(results, sources[0]))
                rows.append({"target": target, "from": f"{sources[0]}, AdaProxy", **found})
        rows.append({"target": target, "from": "nothing", **by_chance(truth, "scratch", truth)})
    text = pd.DataFrame(rows).round(3).to_string(index=False)
    (results / "tables.txt").write_text(text + "\n")
    print(text)


def known(results: Path, name: str) -> Source:
    (source,) = load(str(folder_of(results, name)))
    return source


def judged(truth_ms: Floats, predicted_ms: Floats) -> dict[str, float]:
    return {
        "spearman": float(spearmanr(predicted_ms, truth_ms).statistic),
        "accuracy": accuracy_percent(truth_ms, predicted_ms),
    }


def by_chance(truth: Source, method: str, source: Source) -> dict[str, float]:
    """Learnt from samples of the campaign's own, judged by the rest; mean of the seeds."""
    found = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(truth))
        own, rest = order[:SAMPLES], order[SAMPLES:]
        predictor = make_method(method, seed).learn([source])
        predictor.adapt(truth.codes[own], truth.latency_ms[own])
        found.append(judged(truth.latency_ms[rest], predictor.predict(truth.codes[rest])))
    return dict(pd.DataFrame(found).mean())


if __name__ == "__main__":
    main()
