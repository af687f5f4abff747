"""Number of models that campaigns need, and whether what they declare is true.

    python -m benchmarks.convergence --measure --run runs/convergence   # 50 minutes, once
    python -m benchmarks.few_models --run runs/convergence [--seeds 10] [--json FILE]
    python -m benchmarks.few_models --machines 60 --strategies "auto, informative"

Replays campaigns on the measured pool of ``benchmarks.convergence``: the loop that campaigns run
on draws from the pool instead of the space, with ``auto`` or the paper's perceptron. After each
round the predictor is judged on the held-out set, which the loop never sees. Two figures come from
it: the number of models until every depth bin has the target on the held-out set, and whether the
bins of a campaign that declares its target have it on all models of the pool that it did not use.

``--simulate MACHINE`` makes the latencies up; no figure comes from it. ``--machines N`` replays a
campaign on each of N simulated devices with random constants, to count declarations that are true.
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

from benchmarks.convergence import BINS, SIZES, SPACE, SPEC, draw, members
from benchmarks.simulated import MACHINES, Machine, latencies, random_machine
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.store import Store
from esm_host.evaluation.accuracy import accuracy_by_bin
from esm_host.extension.loop import Loop
from esm_host.extension.settings import SamplingSettings, TrainingSettings
from esm_host.sampling.base import Sampler
from esm_host.sampling.bins import DepthBins
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace

TARGETS = (90.0, 95.0, 97.0)
STRATEGIES = {
    "auto, informative": ("informative", "auto"),
    "auto, balanced": ("balanced", "auto"),
    "auto, random": ("random", "auto"),
    "paper's perceptron, balanced": ("balanced", "mlp-esm"),
}


@dataclass(frozen=True, eq=False)
class Pool:
    """Measured models.

    Attributes:
        parts: Models that samplers draw, and the held-out set, by name.
        told: Latency, ms, and relative half-width of its interval, by key.
    """

    parts: dict[str, list[Architecture]]
    told: dict[str, tuple[float, float]]

    def tell(self, loop: Loop, architectures: list[Architecture]) -> None:
        loop.tell(architectures, *zip(*(self.told[a.key] for a in architectures), strict=True))

    def worst_percent(self, loop: Loop, architectures: list[Architecture]) -> float:
        """Return the accuracy of the worst bin on these models, percent."""
        truth = np.array([self.told[a.key][0] for a in architectures])
        depth = np.array([a.depth for a in architectures])
        bins = accuracy_by_bin(depth, truth, loop.predict(architectures), BINS)
        return min(each.accuracy_percent for each in bins)


class Members(Sampler):
    """Sampler that draws the members of a pool."""

    def __init__(
        self,
        members: list[Architecture],
        chooses: bool,
        by_bin: bool,
        space: SearchSpace = SPACE,
        bins: DepthBins = BINS,
    ) -> None:
        super().__init__(space, bins)
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
            if a.key not in exclude
            and (bin_index is None or a.depth in self.bins.depths(bin_index))
        ]
        return [left[row] for row in rng.permutation(len(left))[:n]]


@dataclass(frozen=True)
class Campaign:
    """Replay of one campaign.

    Attributes:
        needed: Models to learn from until every bin has the target on the held-out set; None if
            never.
        declared: Models when the campaign declares the target, its checks included; None if never.
        worst_percent: Accuracy of its worst bin then, on all models that it did not use.
    """

    needed: int | None
    declared: int | None
    worst_percent: float | None


def replay(
    pool: Pool, strategy: str, target_percent: float, seed: int, step: int, most: int
) -> Campaign:
    sampling, predictor = STRATEGIES[strategy]
    drawn = pool.parts["random" if sampling == "random" else "balanced"]
    sampler = Members(drawn, sampling == "informative", sampling != "random")

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
        used = [a for architectures in loop.rounds for a in architectures]
        if needed is None and pool.worst_percent(loop, pool.parts["held_out"]) >= target_percent:
            needed = len(used)
        if declared is None and loop.converged:
            keys = {a.key for a in used}
            others = [a for part in pool.parts.values() for a in part if a.key not in keys]
            declared, worst = len(used), pool.worst_percent(loop, others)
            if needed is None:  # declared too early: go on until it is true
                further = loop_to(99.99)
                further.restore(loop.rounds)
                pool.tell(further, used)
                loop = further
        if needed is not None and declared is not None:
            break
    return Campaign(needed, declared, worst)


def with_all(pool: Pool) -> float:
    """Return the accuracy of the worst bin with every balanced model, percent.

    What is missing is mostly noise of the measurement.
    """
    drawn = pool.parts["balanced"]
    settings = SamplingSettings(sampling="balanced", initial=len(drawn), max_models=len(drawn))
    loop = Loop(SPACE, settings)
    loop.restore([drawn])
    pool.tell(loop, drawn)
    return pool.worst_percent(loop, pool.parts["held_out"])


def measured_pool(path: Path) -> Pool:
    path.mkdir(parents=True, exist_ok=True)
    store = Store(path / "store.sqlite")
    keys = members(store)
    dataset = Measurements(store, SPEC).dataset()
    known = {a.key: a for a in dataset.architectures}
    values = zip(dataset.latency_ms.tolist(), dataset.interval.tolist(), strict=True)
    parts = {name: [known[key] for key in part if key in known] for name, part in keys.items()}
    return Pool(parts, dict(zip(known, values, strict=True)))


def simulated_pool(machine: Machine) -> Pool:
    parts = draw(SIZES)[1]
    everything = [a for part in parts.values() for a in part]
    rng = np.random.default_rng(0)
    made_up = latencies(SPACE, SPACE.encode(everything), machine, rng)
    interval = 1.96 * machine.noise
    told = {a.key: (ms, interval) for a, ms in zip(everything, made_up.tolist(), strict=True)}
    return Pool(parts, told)


def row(campaigns: list[Campaign], target_percent: float, most: int) -> dict[str, Any]:
    """Return the figures of a strategy at a target; the mean is a lower bound if some never end."""
    needed = [each.needed or most for each in campaigns]
    declared = [each.declared for each in campaigns if each.declared is not None]
    worst = [each.worst_percent for each in campaigns if each.worst_percent is not None]
    return {
        "needed_mean": statistics.mean(needed),
        "needed_sd": statistics.stdev(needed) if len(needed) > 1 else 0.0,
        "never": sum(each.needed is None for each in campaigns),
        "declared": len(declared),
        "declared_mean": statistics.mean(declared) if declared else None,
        "kept": sum(each >= target_percent for each in worst),
        "campaigns": [asdict(each) for each in campaigns],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--simulate", choices=MACHINES, help="instead of a measured pool")
    parser.add_argument("--machines", type=int, help="simulated devices, a campaign on each")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--step", type=int, default=20)
    parser.add_argument("--most", type=int, default=600, help="models at which a replay ends")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    if args.simulate or args.machines:
        print("SIMULATED: nothing here was measured")
    if args.machines:
        pools = [simulated_pool(random_machine(seed)) for seed in range(args.machines)]
    elif args.simulate:
        pools = [simulated_pool(MACHINES[args.simulate])] * args.seeds
    else:
        pools = [measured_pool(args.run)] * args.seeds
        count, worst = len(pools[0].parts["balanced"]), with_all(pools[0])
        print(f"with all {count} balanced models the worst bin has {worst:.1f} %")
    result: dict[str, Any] = {}
    print("| strategy | target | models needed | never | declared | with models | true |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in args.strategies:
        for target in args.targets:
            campaigns = [
                replay(pool, name, target, seed, args.step, args.most)
                for seed, pool in enumerate(pools)
            ]
            found = result[f"{name}, {target:g}"] = row(campaigns, target, args.most)
            mean = found["declared_mean"]
            print(
                f"| {name} | {target:g} % | {'>= ' * bool(found['never'])}"
                f"{found['needed_mean']:.0f} ±{found['needed_sd']:.0f} "
                f"| {found['never']} | {found['declared']} of {len(pools)} "
                f"| {'-' if mean is None else f'{mean:.0f}'} | {found['kept']} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
