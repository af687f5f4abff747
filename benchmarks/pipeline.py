"""Overhead of a campaign in time and in bytes sent.

    python -m benchmarks.pipeline [--json FILE]

Two whole campaigns by the default protocol on an agent of this machine: ResNet at 64 px, width
x0.25 (models of about a millisecond) and at 224 px, width x0.5. Wall time, from before the agent
is started to after the result is written, training included, over the time inside counted runs
and their warm-ups; and bytes sent per model, without weights (as measured) and with (as the same
graphs would have been).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from esm_host.campaign.folder import RunFolder
from esm_host.cli.campaign import run_campaign
from esm_host.cli.live import Live
from esm_host.dataset.store import REFERENCE_ROUND
from esm_host.extension.settings import Settings
from esm_protos.weights import draw_weights


@dataclass(frozen=True)
class Case:
    resolution: int
    width_mult: float
    models: int


CASES = (Case(64, 0.25, 200), Case(224, 0.5, 60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(campaign(case, Path(folder) / "run"))
    print(f"\n{'campaign':22}{'models':>8}{'wall':>9}{'running':>10}{'ratio':>8}", end="")
    print(f"{'loading':>10}{'training':>10}{'sent/model':>13}{'with weights':>14}{'fewer':>9}")
    for row in rows:
        print(
            f"{row['campaign']:22}{row['models']:8.0f}{row['wall_s']:7.0f} s"
            f"{row['running_s']:8.0f} s{row['ratio']:8.2f}{row['loading_s']:8.0f} s"
            f"{row['training_s']:8.0f} s{row['bytes_per_model'] / 1e3:10.1f} KB"
            f"{row['bytes_with_weights'] / 1e6:11.1f} MB{row['times_fewer']:8.0f}x"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def campaign(case: Case, folder: Path) -> dict[str, float | str]:
    settings = Settings(
        device="local",
        resolution=case.resolution,
        width_mult=case.width_mult,
        initial=case.models // 2,
        step=case.models // 4,
        max_models=case.models,
        target_accuracy_percent=100,  # to the end, whatever it learns
    )
    run = RunFolder(folder)
    began = time.monotonic()
    with Live(quiet=False) as live:
        run_campaign(settings, run, resume=False, patience_s=60, live=live)
    wall_s = time.monotonic() - began
    store = run.open_store()
    blocks = store.blocks()
    plan = store.plan()
    space = settings.search_space()
    references = plan.pop(REFERENCE_ROUND)
    planned = [a for architectures in plan.values() for a in architectures]
    sent = sum(block.bytes_sent for block in blocks)
    models = len(store.measurements())
    with_weights = [len(space.build(a, draw_weights)) for a in (references + planned)[:40]]
    running_s = sum(block.running_ns for block in blocks) / 1e9
    busy_s = sum(block.busy_ns for block in blocks) / 1e9
    bytes_per_model = sent / models
    bytes_with_weights = sum(with_weights) / len(with_weights)
    return {
        "campaign": f"resnet {case.resolution} px x{case.width_mult:g}",
        "models": len(planned),
        "blocks": len(blocks),
        "wall_s": wall_s,
        "running_s": running_s,
        "ratio": wall_s / running_s,
        "loading_s": busy_s - running_s,
        "training_s": sum(r["training_seconds"] for r in store.rounds()),
        "bytes_per_model": bytes_per_model,
        "bytes_with_weights": bytes_with_weights,
        "times_fewer": bytes_with_weights / bytes_per_model,
    }


if __name__ == "__main__":
    main()
