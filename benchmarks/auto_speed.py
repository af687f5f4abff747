"""Time to fit and to predict of the predictor `auto`, LightGBM and ESM's perceptron.

    python -m benchmarks.auto_speed [--samples 300 4000] [--architectures 1000000] [--repeats 3]

ResNet architectures whose latencies their costs explain, with 2 % of noise. All in turn, in one
process, on one thread; medians, with the smallest and the largest. Encoding is not in it: its own
time is below. `auto` says intervals as well.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from functools import partial

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy is there

import numpy as np
import torch

from benchmarks.prediction_speed import seconds
from esm_host.encoding import make_encoder
from esm_host.predictors.auto import AutoPredictor
from esm_host.predictors.baselines.lgbm import LightGBMPredictor
from esm_host.predictors.mlp import MLPPredictor
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_models.spaces import load_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[300, 4000])
    parser.add_argument("--architectures", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)

    space = load_space("resnet")
    encoder = make_encoder("views", space)
    rng = np.random.default_rng(0)
    sampler = RandomSampler(space, DepthBins(space.min_depth, space.max_depth, 1))
    codes = sampler._codes(args.architectures, None, rng)
    times_s: dict[str, list[float]] = defaultdict(list)
    times_s["encoding"].append(seconds(lambda: encoder.encode_codes(codes)))
    x = encoder.encode_codes(codes)
    mflops = x[:, encoder.columns.index("all.mflops")].astype(np.float64)
    operators = x[:, encoder.columns.index("all.operators")]
    latency_ms = 1 + 0.02 * mflops + 0.01 * operators + 0.3 * np.sqrt(mflops)
    latency_ms *= np.exp(0.02 * rng.standard_normal(len(x)))
    for _ in range(args.repeats):
        for n in args.samples:
            auto, trees = AutoPredictor(encoder.layout), LightGBMPredictor()
            perceptron = MLPPredictor()
            some_x, some_ms = x[:n], latency_ms[:n]
            for name, predictor in (("auto", auto), ("lightgbm", trees), ("mlp", perceptron)):
                times_s[f"{name}, fit to {n:,}"].append(
                    seconds(partial(predictor.fit, some_x, some_ms))
                )
                took = seconds(partial(predictor.predict, x))
                times_s[f"{name} of {n:,}, {len(x):,} predicted"].append(took)
            took = seconds(partial(auto.predict_interval, x))
            times_s[f"auto of {n:,}, {len(x):,} with intervals"].append(took)
    for name, measured in times_s.items():
        middle, low, high = statistics.median(measured), min(measured), max(measured)
        print(f"{name:45} {middle:7.2f} s ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
