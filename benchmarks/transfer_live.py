"""Settings of one machine as devices, transferred to each other by the command.

    python -m benchmarks.transfer_live --results runs/transfer-live

The settings are one thread, two threads, batch 8 on two threads, and int8 graphs on one thread, all
on this machine. Each is measured as a campaign of its own, 120 architectures of FBNet that chance
chooses; then esm-host transfer learns each from 20 measurements and one other, or all others, and
is judged by 30 more that it measures in the same minutes: how fast the machine is as a whole may
have changed since the campaign. A results folder's campaigns are not measured again.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from esm_host.campaign.run import load_run
from esm_host.dataset.store import Store
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.sources.registry import load
from esm_host.transfer import make_method
from esm_host.transfer.gaussian import SourceGP
from esm_host.transfer.held_out import HELD_OUT_FACT
from esm_host.transfer.source import Source

SETTINGS = {
    "1 thread": ["--threads", "1"],
    "2 threads": ["--threads", "2"],
    "batch 8": ["--threads", "2", "--batch", "8"],
    "int8": ["--threads", "1", "--dtype", "int8"],
}
SPACE, KNOWN, SAMPLES, HELD_OUT = ["--space", "fbnet"], 120, 20, 30


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
        others = [name for name in SETTINGS if name != target]
        for sources in [*([name] for name in others), others]:
            folder = results / "transfer" / f"{target} from {' and '.join(sources)}"
            named = [option for s in sources for option in ("--source", str(folder_of(results, s)))]
            learn = ["--samples", str(SAMPLES), "--held-out", str(HELD_OUT), "--seed", "1"]
            run("transfer", folder, *options, *named, *learn)
            rows += judged(folder, target, [source(results, name) for name in sources])
    frame = pd.DataFrame(rows)
    frame.to_parquet(results / "results.parquet", index=False)
    columns = ["spearman", "accuracy", "covered"]
    text = "\n\n".join(
        frame.groupby(by, sort=False)[columns].mean().round(3).to_string()
        for by in (["target", "samples", "method"], ["from", "samples", "method"])
    )
    (results / "tables.txt").write_text(text + "\n")
    print(text)


def source(results: Path, name: str) -> Source:
    (found,) = load(str(folder_of(results, name)))
    return found


def judged(folder: Path, target: str, sources: Sequence[Source]) -> list[dict[str, object]]:
    """Return held-out figures, also for the first five and ten samples of the method."""
    keys = Store(folder / "store.sqlite").fact(HELD_OUT_FACT)
    dataset = load_run(folder).dataset()
    held = np.array([a.key in keys for a in dataset.architectures])
    codes, latency_ms = sources[0].space.encode(dataset.architectures), dataset.latency_ms
    truth_ms = latency_ms[held]
    ours = SourceGP()
    methods = {"transfer": ours, "without sources": make_method("scratch")}
    methods["AdaProxy"] = make_method("adaproxy")
    for method in methods.values():
        method.learn(sources)
    own = np.flatnonzero(~held)
    own = own[ours.choose(codes[own], SAMPLES)]
    rows: list[dict[str, object]] = []
    for samples in (5, 10, SAMPLES):
        for name, method in methods.items():
            method.adapt(codes[own[:samples]], latency_ms[own[:samples]])
            predicted_ms = method.predict(codes[held])
            rows.append(
                {
                    "target": target,
                    "from": len(sources),
                    "samples": samples,
                    "method": name,
                    "spearman": float(spearmanr(predicted_ms, truth_ms).statistic),
                    "accuracy": accuracy_percent(truth_ms, predicted_ms),
                }
            )
        low_ms, high_ms = ours.predict_interval(codes[held])
        covered = 100 * ((low_ms <= truth_ms) & (truth_ms <= high_ms)).mean()
        rows[-len(methods)]["covered"] = float(covered)
    return rows


if __name__ == "__main__":
    main()
