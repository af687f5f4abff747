"""Speed of evaluating architectures in a search, by method and by predictor.

    python -m benchmarks.search_speed [--candidates 1000000]

ResNet architectures (8e26 of them), latency by a predictor and FLOPs counted, no limit. The
single-weight preset (population 1,000, 50 generations) takes as many weights as make the
candidates; NSGA-II runs with its defaults. Predictors are fitted to 300 random architectures with
made-up latencies. Whole searches, on as many processors as there are; encoding, predicting,
counting, and keeping the front are included, fitting is not.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from esm_host.encoding import make_encoder
from esm_host.predictors import encoding_for, make_predictor
from esm_host.search.bounds import LatencyBounds
from esm_host.search.costs import NetworkCost
from esm_host.search.front import hypervolume
from esm_host.search.genes import GeneEncoding
from esm_host.search.latency import LATENCY, LatencyMeasure
from esm_host.search.method import SearchMethod
from esm_host.search.methods.single_weight import SingleWeight
from esm_host.search.methods.with_pymoo import PymooSearch
from esm_host.search.problem import Objective, Problem
from esm_models.spaces import load_space

SAMPLES = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--candidates", type=int, default=1_000_000)
    parser.add_argument("--predictors", default="mlp,ridge,auto")
    args = parser.parse_args()
    rows = []
    for name in args.predictors.split(","):
        problem = posed(name)
        preset = SingleWeight()
        per_weight = preset.population + preset.generations * round(
            preset.population * (1 - preset.parents)
        )
        preset.weights = -(-args.candidates // per_weight)
        methods: dict[str, SearchMethod] = {"single-weight": preset, "nsga2": PymooSearch()}
        for method, search in methods.items():
            began = time.perf_counter()
            outcome = search.search(problem)
            seconds = time.perf_counter() - began
            rows.append(
                {
                    "predictor": name,
                    "method": method,
                    "scored": outcome.evaluations,
                    "seconds": round(seconds, 2),
                    "s per million": round(1e6 * seconds / outcome.evaluations, 2),
                    "on the front": len(outcome.front),
                    "hypervolume": round(hypervolume(outcome.front.costs, (20.0, 0.0)) / 1e9, 3),
                }
            )
            print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


def posed(name: str) -> Problem:
    space = load_space("resnet")
    rng = np.random.default_rng(0)
    encoding = GeneEncoding(space)
    cost = NetworkCost(space)
    codes = encoding.to_codes(encoding.random(SAMPLES, rng))
    latency_ms = (cost(codes)["flops"] / 1e9) ** 0.8 * rng.lognormal(0, 0.03, SAMPLES)
    encoder = make_encoder(encoding_for(name, space), space)
    predictor = make_predictor(name, encoder, 0)
    predictor.fit(encoder.encode_codes(codes), latency_ms)
    promise = LatencyBounds(predictor, encoder, latency_ms, latency_ms)
    nothing = np.zeros(0)
    latency = LatencyMeasure(promise, codes[:0], nothing, nothing, 0.9)
    return Problem(space, [latency, cost], [Objective(LATENCY), Objective("flops", maximise=True)])


if __name__ == "__main__":
    main()
