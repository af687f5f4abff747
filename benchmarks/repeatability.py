"""Does a measurement repeat, and what does it cost: our protocol beside the paper's.

    python -m benchmarks.repeatability [--passes 8] [--json FILE]

Measures the same 24 ResNet subnets (64 px, width x0.25) pass after pass, at least 20 seconds
apart, in every pass by each protocol in turn (the order rotates): interleaved with references
until every interval is within 2 %; interleaved, exactly 150 runs; 150 runs in a row (the
paper's); and in a row with as many runs as take the device as long as the first. Repeatability is
the standard deviation of the log latency between passes, averaged over the models.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from esm_host.bins import DepthBins
from esm_host.evaluation.quality import judge
from esm_host.sampling import BalancedSampler, RandomSampler
from esm_host.transport.local import LocalProfiler
from esm_models.spaces import load_space
from esm_protos.messages import Block, BlockResult, MeasureSpec, Model, Protocol
from esm_protos.statistics import estimate_block

MODELS, REFERENCES, APART_S = 24, 4, 20.0
ADAPTIVE, FIXED = "until 2 %", "150 runs, interleaved"
IN_A_ROW, MATCHED = "150 in a row", "in a row, same time"

Logs = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--width-mult", type=float, default=0.25)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    models = chosen(args.resolution, args.width_mult)
    results = measure(models, args.passes)
    rows = table(results)
    report(rows)
    found = drift(results, models)
    for name, value in found.items():
        print(f"{name}: {value:.2f} %")
    if args.json:
        args.json.write_text(json.dumps({"protocols": rows, "drift": found}, indent=2) + "\n")


def chosen(resolution: int, width_mult: float) -> list[Model]:
    """References first, then models balanced over depth."""
    space = load_space("resnet", resolution=resolution, width_mult=width_mult)
    bins = DepthBins(space.min_depth, space.max_depth, 4)
    rng = np.random.default_rng(5)
    sampler = BalancedSampler(space, bins)
    architectures = RandomSampler(space, bins).sample(REFERENCES, rng)
    for index, quota in enumerate(sampler.quotas(MODELS)):
        architectures += sampler.sample(quota, rng, index)
    return [Model(a.key, space.build(a)) for a in architectures]


def measure(models: list[Model], passes: int) -> dict[str, list[BlockResult]]:
    specs = {
        ADAPTIVE: MeasureSpec(precision=0.02),
        FIXED: MeasureSpec(),
        IN_A_ROW: MeasureSpec(protocol=Protocol.SEQUENTIAL, warmup=10),
        MATCHED: MeasureSpec(protocol=Protocol.SEQUENTIAL, warmup=10),
    }
    results: dict[str, list[BlockResult]] = {name: [] for name in specs}
    with LocalProfiler() as profiler:
        profiler.measure(Block("warm up", MeasureSpec(runs=30), tuple(models)))
        for number in range(passes):
            began = time.monotonic()
            # The matched row needs to know how long the adaptive block took.
            order = [FIXED, IN_A_ROW]
            order.insert(number % 3, ADAPTIVE)
            for name in [*order, MATCHED]:
                spec = replace(specs[name], seed=number)
                if name == MATCHED:
                    ratio = results[ADAPTIVE][-1].running_ns / results[IN_A_ROW][-1].running_ns
                    spec = replace(spec, runs=max(round(150 * ratio), 10))
                row = spec.protocol is Protocol.SEQUENTIAL
                block = Block(uuid.uuid4().hex, spec, tuple(models[REFERENCES if row else 0 :]))
                results[name].append(profiler.measure(block))
            took = {name: f"{found[-1].running_ns / 1e9:.1f} s" for name, found in results.items()}
            print(f"pass {number + 1} of {passes}: {took}", flush=True)
            time.sleep(max(0.0, APART_S - (time.monotonic() - began)))
    return results


def logs(results: list[BlockResult], interleaved: bool, pace: bool, factor: bool) -> Logs:
    """Log latencies, ``(passes, models)``, with what drift is divided out."""
    found = []
    for result in results:
        block = estimate_block(
            [m.latency_ns for m in result.measurements],
            [m.start_ns for m in result.measurements],
            runs_per_visit=1,
            trim=0.2,
            common_pace=interleaved,
        )
        found.append([np.log(m.latency_ns if pace else m.raw_ns) for m in block.models])
    table = np.array(found)
    if not interleaved:
        return table
    if factor:
        table -= np.log(judge(np.exp(table[:, :REFERENCES]), common_pace=True).factors)[:, None]
    return table[:, REFERENCES:]


def spread_percent(table: Logs) -> float:
    return float(100 * table.std(axis=0, ddof=1).mean())


def table(results: dict[str, list[BlockResult]]) -> list[dict[str, object]]:
    """One row per protocol and drift model."""
    variants = [
        ("ours: until 2 %, pace and block factor", ADAPTIVE, True, True),
        ("   the same, block factor from references only", ADAPTIVE, False, True),
        ("   the same, nothing divided out", ADAPTIVE, False, False),
        ("interleaved 150, pace and block factor", FIXED, True, True),
        ("   the same, block factor from references only", FIXED, False, True),
        ("150 in a row (the paper's)", IN_A_ROW, False, False),
        ("in a row, as long as ours", MATCHED, False, False),
    ]
    row_logs = logs(results[IN_A_ROW], False, False, False)
    rows: list[dict[str, object]] = []
    for text, name, pace, factor in variants:
        values = logs(results[name], name in (ADAPTIVE, FIXED), pace, factor)
        # Against the row in the same pass: both met the same noise, more or less.
        bias = (values - row_logs).mean(axis=1)
        runs = [len(m.latency_ns) for result in results[name] for m in result.measurements]
        rows.append(
            {
                "protocol": text,
                "sd_percent": spread_percent(values),
                "device_s_per_pass": float(np.mean([r.busy_ns for r in results[name]]) / 1e9),
                "counted_runs_per_model": float(np.mean(runs)),
                "mean_against_row_percent": float(100 * bias.mean()),
                "mean_against_row_se_percent": float(100 * bias.std(ddof=1) / len(bias) ** 0.5),
            }
        )
    return rows


def drift(results: dict[str, list[BlockResult]], models: list[Model]) -> dict[str, float]:
    """Whether models limited by memory drift like those limited by the clock."""
    values = logs(results[FIXED], True, True, True)
    mean_latency = values.mean(axis=0)
    sizes = [
        sum(4 * int(np.prod(tensor.dims)) for tensor in graph.initializer)
        for graph in (onnx.ModelProto.FromString(m.data).graph for m in models[REFERENCES:])
    ]
    order = np.argsort(np.log(sizes) - mean_latency)  # bytes of weights per millisecond
    light, heavy = order[: MODELS // 2], order[MODELS // 2 :]
    left = values - mean_latency
    apart = left[:, heavy].mean(axis=1) - left[:, light].mean(axis=1)
    own = left - np.where(np.isin(np.arange(MODELS), heavy)[None, :], apart[:, None] / 2, 0)
    own += np.where(np.isin(np.arange(MODELS), light)[None, :], apart[:, None] / 2, 0)
    return {
        "between passes, the memory-heavier half drifts apart from the lighter by": float(
            100 * apart.std(ddof=1)
        ),
        "SD that would be left with that divided out as well": spread_percent(own),
    }


def report(rows: list[dict[str, object]]) -> None:
    print(f"\n{'protocol':50}{'SD':>8}{'device':>10}{'runs':>7}{'mean against the row':>24}")
    for row in rows:
        print(
            f"{row['protocol']:50}{row['sd_percent']:6.1f} %{row['device_s_per_pass']:8.1f} s"
            f"{row['counted_runs_per_model']:7.0f}{row['mean_against_row_percent']:+13.1f} % "
            f"+- {row['mean_against_row_se_percent']:.1f}"
        )


if __name__ == "__main__":
    main()
