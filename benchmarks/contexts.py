"""Error of one predictor in contexts that its campaign never measured, on this machine.

    python -m benchmarks.contexts [--models 60] [--each 6] [--json FILE]   # 8 minutes

A campaign of ``lm-decode``, and one of ``lm-prefill``, measures networks of reduced width in the
contexts of the space: the tokens in the cache, and the tokens of a prompt. Networks that it has not
seen are then measured in other contexts, in blocks of the same campaign: between its values, and a
quarter beyond the largest one. The error is that of the predictor that the campaign wrote before.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import esm_host
from esm_host.campaign.run import Run
from esm_host.campaign.session import PATIENCE_S
from esm_host.campaign.watcher import complete
from esm_host.workflows.campaign_site import campaign_sites
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

SPACES = ("lm-decode", "lm-prefill")
WANTED_PERCENT = 5.0
BEYOND = 1.25


def held_out_values(values: Sequence[int]) -> tuple[list[int], int]:
    """Return the middles between values of a context, and one a quarter beyond the largest."""
    ordered = sorted(values)
    middles = [(one + two) // 2 for one, two in pairwise(ordered)]
    return middles, int(BEYOND * ordered[-1])


def measured_ms(run: Run, architectures: Sequence[Architecture]) -> NDArray[np.float64]:
    """Return the latencies of architectures, ms, measured in further blocks of a campaign."""
    with campaign_sites([run], [""], PATIENCE_S, True, complete(None)) as (site,):
        site.measure(run.space.encode(architectures))
    figures = esm_host.load_run(run.path).figures()
    keys = (architecture.key for architecture in figures.architectures)
    found = dict(zip(keys, figures.latency_ms.tolist(), strict=True))
    return np.array([found[architecture.key] for architecture in architectures])


def drawn(run: Run, space: SearchSpace, each: int) -> list[tuple[str, Architecture]]:
    """Return networks that the campaign has not measured, each with where its context is."""
    ((name, values),) = space.contexts.items()
    between, beyond = held_out_values(values)
    wanted = [*(("between", value) for value in between), ("beyond", beyond)]
    seen = {(a.choice, a.units) for a in run.figures().architectures}
    found = []
    for seed, (where, value) in enumerate(wanted):
        chosen = run.sample(2 * each, "random", seed, {name: value})
        fresh = [a for a in chosen if (a.choice, a.units) not in seen][:each]
        found += [(where, architecture) for architecture in fresh]
    return found


def campaign(name: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run one campaign, and return a row per held-out network."""
    settings = esm_host.Settings(
        "local",
        space=name,
        width_mult=args.width_mult,
        initial=min(20, args.models),
        max_models=args.models,
        target_accuracy_percent=100.0,
        verify=0,
        seed=args.seed,
    )
    run = esm_host.profile(settings, folder)
    held_out = drawn(run, run.space, args.each)
    architectures = [architecture for _, architecture in held_out]
    predicted_ms = run.predict(architectures)
    latency_ms = measured_ms(run, architectures)
    return [
        {
            "space": name,
            "where": where,
            "context": dict(architecture.contexts),
            "architecture": architecture.to_text(),
            "predicted_ms": predicted,
            "latency_ms": latency,
            "error_percent": 100 * (predicted / latency - 1),
        }
        for (where, architecture), predicted, latency in zip(
            held_out, predicted_ms.tolist(), latency_ms.tolist(), strict=True
        )
    ]


def report(rows: Sequence[dict[str, Any]]) -> None:
    print("| space | contexts | networks | mean error (%) | SD | largest | mean signed |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name in SPACES:
        for where in ("between", "beyond"):
            own = [r for r in rows if (r["space"], r["where"]) == (name, where)]
            signed = np.array([row["error_percent"] for row in own])
            signed = signed[np.isfinite(signed)]  # a network may have failed
            if not len(signed):
                continue
            errors = np.abs(signed)
            print(
                f"| {name} | {where} | {len(signed)} | {errors.mean():.1f} | {errors.std():.1f} "
                f"| {errors.max():.1f} | {signed.mean():+.1f} |"
            )
    print(f"wanted: a mean error of at most {WANTED_PERCENT:g} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--models", type=int, default=60, help="models of a campaign")
    add("--each", type=int, default=6, help="held-out networks in each context")
    add("--width-mult", type=float, default=0.125)
    add("--seed", type=int, default=0)
    add("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in SPACES:
        with tempfile.TemporaryDirectory() as folder:
            rows += campaign(name, args, Path(folder) / name)
        if args.json:
            args.json.write_text(json.dumps(rows, indent=2) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
