"""Campaigns on this machine: models, time, and accuracy on models that they have not seen.

    python -m benchmarks.campaigns_live [--seeds 10] [--target 95] [--json FILE]

Every campaign has its own folder, seed, and agent (``local``). *Wall* is the whole call of
:func:`esm_host.profile`, from the start of the agent to the plots. *Runs* are all runs of the
models of its blocks, references and warm-up included. *Between* is the time that the device waits
for the host: training, evaluation and choice. The accuracy is that of the campaign's last check.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import esm_host
from esm_host.campaign.folder import RunFolder


def campaign(seed: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one campaign and return its figures."""
    settings = esm_host.Settings(
        "local",
        resolution=args.resolution,
        width_mult=args.width_mult,
        sampling=args.sampling,
        target_accuracy_percent=args.target,
        verify=args.verify,
        seed=seed,
    )
    began = time.monotonic()
    run = esm_host.profile(settings, folder)
    wall_s = time.monotonic() - began
    with closing(RunFolder(folder).open_store()) as store:
        blocks = store.blocks()
    assert run.result is not None
    check = run.result["rounds"][-1]["check"] or {}
    busy_s = sum(block.busy_ns for block in blocks) / 1e9
    return {
        "seed": seed,
        "converged": run.converged,
        "models": run.result["measured_models"],
        "wall_s": wall_s,
        "busy_s": busy_s,
        "runs_s": sum(block.running_ns for block in blocks) / 1e9,
        "between_s": wall_s - sum(block.wall_seconds for block in blocks),
        "check_percent": check.get("accuracy_percent"),
        "check_low_percent": check.get("low_percent"),
        "check_high_percent": check.get("high_percent"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--target", type=float, default=95.0)
    parser.add_argument("--verify", type=int, default=20)
    parser.add_argument("--sampling", default="informative")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--width-mult", type=float, default=0.25)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    print("| seed | models | wall (s) | wall / runs | between / busy | checked accuracy (%) |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            row = campaign(seed, args, Path(folder) / "run")
        rows.append(row)
        end = "" if row["converged"] else ", not converged"
        checked = "-"
        if row["check_low_percent"] is not None:
            checked = (
                f"{row['check_percent']:.1f} ({row['check_low_percent']:.1f} to "
                f"{row['check_high_percent']:.1f})"
            )
        print(
            f"| {seed} | {row['models']}{end} | {row['wall_s']:.0f} "
            f"| {row['wall_s'] / row['runs_s']:.2f} | {row['between_s'] / row['busy_s']:.2f} "
            f"| {checked} |",
            flush=True,
        )
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")
    models = [row["models"] for row in rows]
    spread = statistics.stdev(models) if len(models) > 1 else 0.0
    print(
        f"| mean | {statistics.mean(models):.0f} ±{spread:.0f} "
        f"| {statistics.mean(row['wall_s'] for row in rows):.0f} "
        f"| {statistics.mean(row['wall_s'] / row['runs_s'] for row in rows):.2f} "
        f"| {statistics.mean(row['between_s'] / row['busy_s'] for row in rows):.2f} | |"
    )


if __name__ == "__main__":
    main()
