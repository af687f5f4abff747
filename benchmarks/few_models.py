"""Number of models that campaigns need, and whether what they declare is true.

    python -m benchmarks.convergence --measure --run runs/convergence   # 30 minutes, once
    python -m benchmarks.few_models --run runs/convergence [--seeds 10] [--json FILE]

Replays campaigns on the measured pool of ``benchmarks.convergence``: the loop that campaigns run
on draws from the pool instead of the space, with ``auto`` or the paper's perceptron. After each
round the predictor is judged on the held-out set, which the loop never sees. Two figures come from
it: the number of models until every depth bin has the target on the held-out set, and whether the
bins of a campaign that declares its target have it on all models of the pool that it did not use.

``--simulate MACHINE`` makes the latencies up; no figure comes from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.convergence import BINS, SPACE, SPEC, draw
from benchmarks.simulated import MACHINES, latencies
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import Store
from esm_host.extension.loop import Loop
from esm_host.extension.settings import SamplingSettings, TrainingSettings
from esm_host.sampling.base import Sampler
from esm_models.architecture import Architecture

TARGETS = (90.0, 95.0, 97.0)
STRATEGIES = {
    "auto, informative": ("informative", "auto"),
    "auto, balanced": ("balanced", "auto"),
    "auto, random": ("random", "auto"),
    "paper's perceptron, balanced": ("balanced", "mlp-esm"),
}


@dataclass(frozen=True, eq=False)
class Pool:
    """Measured models, the members that a sampler may draw, and the held-out set."""

    members: dict[str, list[Architecture]]
    held_out: list[Architecture]
    latency_ms: dict[str, float]
    interval: dict[str, float]

    def tell(self, loop: Loop, asked: list[Architecture]) -> None:
        loop.tell(
            asked, [self.latency_ms[a.key] for a in asked], [self.interval[a.key] for a in asked]
        )

    def worst_percent(self, loop: Loop, architectures: list[Architecture]) -> float:
        """Return the accuracy of the worst bin on these models, percent."""
        truth = np.array([self.latency_ms[a.key] for a in architectures])
        errors = np.abs(loop.predict(architectures) / truth - 1)
        bins = BINS.of(np.array([a.depth for a in architectures]))
        return float(min(100 - 100 * errors[bins == number].mean() for number in range(BINS.count)))


class Members(Sampler):
    """Sampler of a pool's members, as another sampler draws from the space."""

    def __init__(self, members: list[Architecture], chooses: bool, by_bin: bool) -> None:
        super().__init__(SPACE, BINS)
        self._members = members
        self.chooses = chooses  # type: ignore[misc]  # of this pool, not of the class
        self.by_bin = by_bin  # type: ignore[misc]

    def _codes(self, n: int, bin_index: int | None, rng: np.random.Generator) -> NDArray[np.int16]:
        raise NotImplementedError

    def sample(
        self,
        n: int,
        rng: np.random.Generator,
        bin_index: int | None = None,
        exclude: Collection[str] = (),
    ) -> list[Architecture]:
        left = [
            a
            for a in self._members
            if a.key not in exclude and (bin_index is None or a.depth in BINS.depths(bin_index))
        ]
        return [left[row] for row in rng.permutation(len(left))[:n]]


@dataclass(frozen=True)
class Campaign:
    """Replay of one campaign.

    Attributes:
        needed: Models until every bin has the target on the held-out set; None if never.
        declared: Models when the campaign declares the target; None if never.
        worst_percent: Accuracy of its worst bin then, on all models that it did not use.
    """

    needed: int | None
    declared: int | None
    worst_percent: float | None


def replay(
    pool: Pool, strategy: str, target_percent: float, seed: int, step: int, most: int
) -> Campaign:
    sampling, predictor = STRATEGIES[strategy]
    members = pool.members["random" if sampling == "random" else "balanced"]
    sampler = Members(members, sampling == "informative", sampling != "random")

    def loop_to(target: float) -> Loop:
        settings = SamplingSettings(
            sampling=sampling,
            initial=20,
            step=step,
            max_models=most,
            target_accuracy_percent=target,
            seed=seed,
        )
        return Loop(
            SPACE, settings, TrainingSettings(predictor=predictor, seed=seed), sampler=sampler
        )

    loop, needed, declared, worst = loop_to(target_percent), None, None, None
    while asked := loop.ask():
        pool.tell(loop, asked)
        models = sum(map(len, loop.rounds))
        if needed is None and pool.worst_percent(loop, pool.held_out) >= target_percent:
            needed = models
        if declared is None and loop.converged:
            used = {a.key for architectures in loop.rounds for a in architectures}
            others = [
                a
                for part in (*pool.members.values(), pool.held_out)
                for a in part
                if a.key not in used
            ]
            declared, worst = models, pool.worst_percent(loop, others)
            if needed is None:  # declared too early: go on until it is true
                further = loop_to(99.99)
                further.restore(loop.rounds)
                for architectures in loop.rounds:
                    pool.tell(further, architectures)
                loop = further
        if needed is not None and declared is not None:
            break
    return Campaign(needed, declared, worst)


def measured_pool(path: Path) -> Pool:
    store = Store(path / "store.sqlite")
    dataset = Measurements(store, SPEC).dataset()
    known = {a.key: a for a in dataset.architectures}
    parts = {
        name: [known[key] for key in keys if key in known]
        for name, keys in store.fact("pools").items()
    }
    held_out = parts.pop("held_out")
    return Pool(
        parts,
        held_out,
        dict(zip(known, dataset.latency_ms.tolist(), strict=True)),
        dict(zip(known, dataset.interval.tolist(), strict=True)),
    )


def simulated_pool(machine: str) -> Pool:
    parts = draw({"balanced": 1800, "random": 2200, "held_out": 500})[1]
    everything = [a for part in parts.values() for a in part]
    rng = np.random.default_rng(0)
    made_up = latencies(SPACE, SPACE.encode(everything), MACHINES[machine], rng)
    keys = [a.key for a in everything]
    held_out = parts.pop("held_out")
    return Pool(
        parts,
        held_out,
        dict(zip(keys, made_up.tolist(), strict=True)),
        dict.fromkeys(keys, 1.96 * MACHINES[machine].noise),
    )


def row(campaigns: list[Campaign], target_percent: float, most: int) -> dict[str, Any]:
    """Return the figures of a strategy at a target."""
    needed = [each.needed or most for each in campaigns]
    declared = [each for each in campaigns if each.declared is not None]
    kept = [each for each in declared if (each.worst_percent or 0) >= target_percent]
    return {
        "needed_mean": statistics.mean(needed),
        "needed_sd": statistics.stdev(needed) if len(needed) > 1 else 0.0,
        "never": sum(each.needed is None for each in campaigns),
        "declared": len(declared),
        "declared_mean": statistics.mean(each.declared or 0 for each in declared)
        if declared
        else None,
        "kept": len(kept),
        "campaigns": [asdict(each) for each in campaigns],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--simulate", choices=MACHINES, help="instead of a measured pool")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--step", type=int, default=20)
    parser.add_argument("--most", type=int, default=600, help="models at which a replay ends")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    if args.simulate:
        print(f"SIMULATED ({args.simulate}): nothing here was measured")
    pool = simulated_pool(args.simulate) if args.simulate else measured_pool(args.run)
    result: dict[str, Any] = {}
    print("| strategy | target | models needed | never | declared | with models | true |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in args.strategies:
        for target in args.targets:
            campaigns = [
                replay(pool, name, target, seed, args.step, args.most) for seed in range(args.seeds)
            ]
            found = result[f"{name}, {target:g}"] = row(campaigns, target, args.most)
            mean = found["declared_mean"]
            print(
                f"| {name} | {target:g} % | {found['needed_mean']:.0f} ±{found['needed_sd']:.0f} "
                f"| {found['never']} | {found['declared']} of {args.seeds} "
                f"| {'-' if mean is None else f'{mean:.0f}'} | {found['kept']} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
