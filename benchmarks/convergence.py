"""Number of models needed until every depth bin is accurate, by sampling strategy.

    python -m benchmarks.convergence --measure --run runs/convergence   # 30 minutes, once
    python -m benchmarks.convergence --run runs/convergence [--json FILE] [--plot FILE.png]

Measures a pool of ResNet subnets (64 px, width x0.25) on this machine: a part drawn balanced over
five depth bins, a part drawn at random, and a held-out set drawn balanced. Resumes where it was
broken off. Then replays the train-evaluate-extend loop with the pool in the device's place: random
sampling draws from the random part; Algorithm 1 draws by chance, and the cost-aware extension
chooses, among the balanced part's members of a bin. A seed draws the first models, and the weights.

All are judged alike, and otherwise than a campaign judges itself: the paper's network, trained on
what has been chosen so far, predicts the held-out set; its accuracy there, bin by bin, ends the
loop and guides the next step. (A campaign cross-validates, which would cost the replay five
trainings a round for each.) ``--simulate MACHINE`` makes the latencies up; no figure comes from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulated import MACHINES, latencies
from esm_host.cli.live import Live
from esm_host.dataset.collect import Collector
from esm_host.dataset.cost import DeviceTime, device_time
from esm_host.dataset.lanes import Member
from esm_host.dataset.measurements import Measurements
from esm_host.dataset.settings import MeasuringSettings
from esm_host.dataset.store import REFERENCE_ROUND, Store
from esm_host.encoding import make_encoder
from esm_host.encoding.base import Encoding
from esm_host.evaluation.accuracy import accuracy_by_bin, accuracy_percent
from esm_host.extension.allocate import allocate, by_shortfall
from esm_host.extension.committee import choose, cross_validate
from esm_host.predictors.base import Predictor
from esm_host.predictors.mlp import MLPPredictor
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.transport.local import LocalProfiler
from esm_models.architecture import Architecture
from esm_models.spaces.resnet import ResNetSpace

SPACE = ResNetSpace(resolution=64, width_mult=0.25)
BINS = DepthBins(SPACE.min_depth, SPACE.max_depth, 5)
SPEC = MeasuringSettings("local").spec
ROUND = 200  # planned at a time; judging reads the whole store, so not too few

SIZES = {"balanced": 1800, "random": 2200, "held_out": 500}
"""Numbers of models of the pool's parts."""

# The same for all that are compared. The paper begins with 300 and adds 100; where balanced
# sampling needs some 400, that would resolve nothing.
INITIAL = 100
STEP = 50
LONG_STEP = 100  # random sampling beyond LONG_FROM, where 50 more or less no longer matter
LONG_FROM = 600
WEIGHT_BELOW, WEIGHT_ABOVE = 0.8, 0.2  # W_B, W_A: what `esm-host profile` takes
FOLDS = 5  # of the committee: as `esm-host profile` does
CHECKPOINTS = (100, 200, 300, 400)  # every replay goes on to the last, so that means are of all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--measure", action="store_true", help="measure what is missing, no replay")
    parser.add_argument("--simulate", choices=MACHINES, help="instead of a measured pool")
    add = parser.add_argument
    add("--balanced", type=int, default=SIZES["balanced"], help="models drawn balanced")
    add("--random", type=int, default=SIZES["random"], help="models drawn at random")
    add("--held-out", type=int, default=SIZES["held_out"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--target-accuracy", type=float, default=95.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()

    sizes = {"balanced": args.balanced, "random": args.random, "held_out": args.held_out}
    if args.simulate:
        print(f"SIMULATED ({args.simulate}): nothing here was measured")
        pool = simulated_pool(args.simulate, sizes)
    else:
        args.run.mkdir(parents=True, exist_ok=True)
        store = Store(args.run / "store.sqlite")
        if args.measure:
            measure(store, sizes)
            return
        pool = measured_pool(store)
    curves = {
        name: [replay(pool, name, seed, args.target_accuracy) for seed in range(args.seeds)]
        for name in STRATEGIES
    }
    result = summary(curves)
    report(result)
    if args.json:
        origin = {"simulated": args.simulate} if args.simulate else {"run": str(args.run)}
        args.json.write_text(json.dumps({**origin, "strategies": result}, indent=2) + "\n")
    if args.plot:
        plot(args.plot, curves, args.target_accuracy)


# The pool


@dataclass(frozen=True, eq=False)
class Pool:
    """Measured models. ``n`` rows; ``parts`` holds the rows of each part.

    Attributes:
        cost: Device time for models of a latency, including loading.
        depth, bin: of each, ``(n,)``.
    """

    encodings: Encoding
    latency_ms: NDArray[np.float64]
    depth: NDArray[np.int64]
    bin: NDArray[np.int64]
    cost: DeviceTime
    parts: dict[str, NDArray[np.int64]]

    @property
    def seconds(self) -> NDArray[np.float64]:
        return self.cost.seconds(self.latency_ms)


def draw(sizes: dict[str, int]) -> tuple[list[Architecture], dict[str, list[Architecture]]]:
    """Return the reference models and the disjoint parts of the pool, the same every time."""
    rng = np.random.default_rng(2025)
    balanced, random = BalancedSampler(SPACE, BINS), RandomSampler(SPACE, BINS)
    references = random.sample(4, rng)
    seen = {a.key for a in references}
    parts: dict[str, list[Architecture]] = {}
    for name, size in sizes.items():
        if name == "random":
            drawn = random.sample(size, rng, exclude=seen)
        else:
            drawn = []
            for index, quota in enumerate(balanced.quotas(size)):
                drawn += balanced.sample(quota, rng, index, seen)
        seen |= {a.key for a in drawn}
        parts[name] = drawn
    return references, parts


def measure(store: Store, sizes: dict[str, int]) -> None:
    """Measure the missing models of the pool, with mixed parts, so that drift affects all alike."""
    references, parts = draw(sizes)
    known = store.fact("pools")
    if known is None:
        store.add_fact("pools", {name: [a.key for a in part] for name, part in parts.items()})
    elif {name: len(keys) for name, keys in known.items()} != sizes:
        had = " ".join(f"--{name.replace('_', '-')} {len(keys)}" for name, keys in known.items())
        where = store.database.campaign
        raise SystemExit(f"{where} was begun with {had}: give these, or another --run")
    planned = [a for part in parts.values() for a in part]
    order = np.random.default_rng(0).permutation(len(planned))
    rounds = {REFERENCE_ROUND: references}
    for number, start in enumerate(range(0, len(order), ROUND)):
        rounds[number] = [planned[index] for index in order[start : start + ROUND]]
    there = store.plan()
    for number, architectures in rounds.items():
        if number not in there:
            store.add_plan(number, architectures)
    with LocalProfiler() as profiler, Live(quiet=False) as live:
        collector = Collector(
            store,
            Measurements(store, SPEC),
            [Member("local", profiler)],
            SPACE,
            references,
            MeasuringSettings("local", spec=SPEC),
            live,
        )
        for number, architectures in rounds.items():
            if number != REFERENCE_ROUND:
                live.on_round(number, len(architectures))
                collector.collect(number)


def members(store: Store) -> dict[str, list[str]]:
    """Return the keys of the pool's models by part.

    Raises:
        SystemExit: there is no pool.
    """
    pools: dict[str, list[str]] | None = store.fact("pools")
    if pools is None:
        where = store.database.campaign
        raise SystemExit(
            f"{where} holds no pool: measure one with python -m benchmarks.convergence --measure "
            "first"
        )
    return pools


def measured_pool(store: Store) -> Pool:
    """Return the measured pool, without failed models."""
    parts = members(store)
    dataset = Measurements(store, SPEC).dataset()
    row = {a.key: index for index, a in enumerate(dataset.architectures)}
    return _pool(
        dataset.architectures,
        dataset.latency_ms,
        device_time(store, SPEC),
        {name: [row[k] for k in keys if k in row] for name, keys in parts.items()},
    )


def simulated_pool(machine: str, sizes: dict[str, int]) -> Pool:
    """Return the same pool with made-up latencies."""
    _, parts = draw(sizes)
    architectures = [a for part in parts.values() for a in part]
    rng = np.random.default_rng(0)
    latency_ms = latencies(SPACE, SPACE.encode(architectures), MACHINES[machine], rng)
    ends = np.cumsum([0, *sizes.values()]).tolist()
    rows = {
        name: list(range(start, end))
        for name, start, end in zip(parts, ends[:-1], ends[1:], strict=True)
    }
    return _pool(architectures, latency_ms, DeviceTime(SPEC.runs, 25.0), rows)


def _pool(
    architectures: list[Architecture],
    latency_ms: NDArray[np.float64],
    cost: DeviceTime,
    parts: dict[str, list[int]],
) -> Pool:
    depth = np.array([a.depth for a in architectures])
    encodings = make_encoder("fcc", SPACE).encode(architectures)
    rows = {name: np.array(part, dtype=np.int64) for name, part in parts.items()}
    return Pool(encodings, latency_ms, depth, BINS.of(depth), cost, rows)


# The replay


@dataclass
class State:
    """State of a strategy: the rows taken so far, and the predictor's accuracy with them."""

    pool: Pool
    taken: NDArray[np.int64]
    accuracy_percent: list[float]
    target_percent: float
    seed: int
    rng: np.random.Generator
    make_predictor: Callable[[int], Predictor]

    def left(self, part: str, bin_index: int | None = None) -> NDArray[np.int64]:
        """Return the remaining rows of a part, or of one bin of it."""
        rows = np.setdiff1d(self.pool.parts[part], self.taken)
        return rows if bin_index is None else rows[self.pool.bin[rows] == bin_index]


Rows = NDArray[np.int64]


def by_chance(state: State, step: int) -> Rows:
    """Choose rows at random from the random part, without regard to bins."""
    return _some(state.left("random"), step, state.rng)


def by_algorithm_1(state: State, step: int) -> Rows:
    """Choose by the paper's extension: more from bins below the target, at random in each bin."""
    passing = [accuracy >= state.target_percent for accuracy in state.accuracy_percent]
    quotas = allocate(step, passing, WEIGHT_BELOW, WEIGHT_ABOVE)
    return _fill(state, step, quotas, lambda rows, n: _some(rows, n, state.rng))


def by_cost(state: State, step: int) -> Rows:
    """Choose by the cost-aware extension: the most informative models per second, by bin."""
    pool, taken = state.pool, state.taken
    *_, committee = cross_validate(
        state.make_predictor,
        pool.encodings[taken],
        pool.latency_ms[taken],
        np.ones(len(taken)),
        pool.bin[taken],
        FOLDS,
        state.seed,
    )
    quotas = by_shortfall(step, state.accuracy_percent, state.target_percent)

    def best(rows: Rows, n: int) -> Rows:
        return rows[choose(committee, pool.encodings[rows], pool.cost.seconds, n)]

    return _fill(state, step, quotas, best)


STRATEGIES: dict[str, Callable[[State, int], Rows]] = {
    "random": by_chance,
    "balanced": by_algorithm_1,
    "cost-aware": by_cost,
}


def _some(rows: Rows, n: int, rng: np.random.Generator) -> Rows:
    return rng.permutation(rows)[:n]


def _fill(state: State, step: int, quotas: list[int], pick: Callable[[Rows, int], Rows]) -> Rows:
    """Choose each bin's quota; the others make up for a bin without enough rows."""
    picked = [pick(state.left("balanced", i), quota) for i, quota in enumerate(quotas)]
    missing = step - sum(map(len, picked))
    if missing:
        others = np.setdiff1d(state.left("balanced"), np.concatenate(picked))
        picked.append(pick(others, missing))
    return np.concatenate(picked)


@dataclass
class Curve:
    """Replay of a strategy, a list entry per round. ``needed`` is None if the pool ran out."""

    needed: int | None
    needed_seconds: float
    models: list[int]
    worst_bin_percent: list[float]
    overall_percent: list[float]


def replay(
    pool: Pool,
    strategy: str,
    seed: int,
    target_percent: float,
    make_predictor: Callable[[int], Predictor] = lambda seed: MLPPredictor(seed=seed),
) -> Curve:
    """Replay the loop until every bin has reached the target and all checkpoints are passed."""
    rng = np.random.default_rng(seed)
    state = State(
        pool,
        np.zeros(0, np.int64),
        [],
        target_percent,
        seed,
        rng,
        lambda member: make_predictor(seed + member),
    )
    if strategy == "random":
        state.taken = by_chance(state, INITIAL)
    else:  # the same first models for both
        quotas = BalancedSampler(SPACE, BINS).quotas(INITIAL)
        state.taken = _fill(state, INITIAL, quotas, lambda rows, n: _some(rows, n, rng))
    test = pool.parts["held_out"]
    curve = Curve(None, float("nan"), [], [], [])
    while True:
        predictor = make_predictor(seed)
        predictor.fit(pool.encodings[state.taken], pool.latency_ms[state.taken])
        measured, predicted = pool.latency_ms[test], predictor.predict(pool.encodings[test])
        bins = accuracy_by_bin(pool.depth[test], measured, predicted, BINS)
        state.accuracy_percent = [entry.accuracy_percent for entry in bins]
        models, worst = len(state.taken), min(state.accuracy_percent)
        curve.models.append(models)
        curve.worst_bin_percent.append(worst)
        curve.overall_percent.append(accuracy_percent(measured, predicted))
        if curve.needed is None:
            curve.needed_seconds = float(pool.seconds[state.taken].sum())
            if worst >= target_percent:
                curve.needed = models
        if curve.needed is not None and models >= CHECKPOINTS[-1]:
            return curve
        step = LONG_STEP if strategy == "random" and models >= LONG_FROM else STEP
        fresh = STRATEGIES[strategy](state, step)
        if not len(fresh):
            return curve
        state.taken = np.concatenate([state.taken, fresh])


# The report


def summary(curves: dict[str, list[Curve]]) -> dict[str, Any]:
    """Return the table's figures per strategy; means are lower bounds if a seed ran out."""
    result: dict[str, Any] = {}
    for name, runs in curves.items():
        ran_out = [run.models[-1] for run in runs if run.needed is None]
        needed = [run.needed or run.models[-1] for run in runs]
        result[name] = {
            "models": [run.needed for run in runs],
            "models_mean": statistics.mean(needed),
            "models_sd": statistics.stdev(needed) if len(needed) > 1 else 0.0,
            "more_than": max(ran_out, default=None),
            "device_seconds": [run.needed_seconds for run in runs],
            "worst_bin_percent_at": {
                str(at): statistics.mean(
                    run.worst_bin_percent[run.models.index(at)] for run in runs
                )
                for at in CHECKPOINTS
                if all(at in run.models for run in runs)
            },
        }
    for row in result.values():
        row["fewer_than_random"] = result["random"]["models_mean"] / row["models_mean"]
    return result


def report(result: dict[str, Any]) -> None:
    header = f"{'models needed':>18}{'device seconds':>18}{'random / it':>14}"
    print(f"\n{'strategy':12}{header}  each seed")
    for name, row in result.items():
        bound = ">= " if row["more_than"] else ""
        models = f"{bound}{row['models_mean']:.0f} +- {row['models_sd']:.0f}"
        seconds = f"{bound}{statistics.mean(row['device_seconds']):.0f}"
        if name == "random":
            factor = "1"
        elif row["more_than"]:  # a bound divided by a bound says nothing
            factor = "unknown"
        else:
            factor = f"{'>= ' * bool(result['random']['more_than'])}{row['fewer_than_random']:.1f}"
        each = ", ".join(str(n or f"more than {row['more_than']}") for n in row["models"])
        print(f"{name:12}{models:>18}{seconds:>18}{factor:>14}  {each}")
    print(
        f"resolution {STEP} models, for random sampling {LONG_STEP} beyond {LONG_FROM}\n\n"
        "accuracy of the worst bin, mean over seeds (%)"
    )
    print(f"{'models':12}" + "".join(f"{at:>8}" for at in CHECKPOINTS))
    for name, row in result.items():
        values = [row["worst_bin_percent_at"].get(str(at), float("nan")) for at in CHECKPOINTS]
        print(f"{name:12}" + "".join(f"{value:8.1f}" for value in values))


def plot(path: Path, curves: dict[str, list[Curve]], target_percent: float) -> None:
    """Plot the accuracy of the worst bin over the number of models, for every seed."""
    import altair as alt
    import pandas as pd

    from esm_host.report import plots

    target = f"target {target_percent:g} %"
    frame = pd.DataFrame(
        {"strategy": name, "seed": seed, "models": models, "accuracy": accuracy, "reached": reached}
        for name, runs in curves.items()
        for seed, run in enumerate(runs)
        for models, accuracy in zip(run.models, run.worst_bin_percent, strict=True)
        for reached in ["target reached" if models == run.needed else None]
    )
    least = target_percent - 12
    x = alt.X(
        "models:Q",
        title="measured models",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=[100, 150, 200, 300, 400, 500, 700, 1000, 1500, 2000], format="d"),
    )
    y = alt.Y(
        "accuracy:Q",
        title="accuracy of the worst depth bin (%)",
        scale=alt.Scale(domainMin=least, zero=False),
    )
    order, legend = alt.Scale(domain=list(curves)), alt.Legend(symbolType="stroke")
    base = alt.Chart(frame).encode(x, y, alt.Color("strategy:N", scale=order, legend=legend))
    lines = base.mark_line(opacity=0.7, clip=True).encode(
        alt.StrokeDash("strategy:N", scale=order, legend=legend), alt.Detail("seed:N")
    )
    marks = (
        base.transform_filter(f"datum.reached && datum.accuracy >= {least}")
        .mark_point(size=70, opacity=1)
        .encode(alt.Shape("reached:N", legend=alt.Legend(symbolFillColor="gray")))
    )
    rule = (
        alt.Chart(pd.DataFrame({"accuracy": [target_percent], "line": [target]}))
        .mark_rule(style="target")
        .encode(y, alt.Opacity("line:N", scale=alt.Scale(range=[1, 1])))
    )
    plots.save(plots.styled(rule + lines + marks), path)


if __name__ == "__main__":
    main()
