"""Speed of predicting many latencies, from arrays of codes and one by one.

    python -m benchmarks.prediction_speed [--architectures 1000000] [--repeats 5]

ResNet architectures are encoded with FCC and predicted by ESM's MLP, as codes in one array, and,
of a hundredth of them, as objects that are encoded and predicted one at a time. Both in turn, in
one process; medians, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from esm_host.encoding import make_encoder
from esm_host.predictors.mlp import MLPPredictor
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_models.spaces import load_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architectures", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    space = load_space("resnet")
    encoder = make_encoder("fcc", space)
    rng = np.random.default_rng(0)
    sampler = RandomSampler(space, DepthBins(space.min_depth, space.max_depth, 1))
    codes = sampler._codes(args.architectures, None, rng)
    few = codes[: max(args.architectures // 100, 1)]
    known = encoder.encode_codes(codes[:500])
    predictor = MLPPredictor(epochs=20).fit(known, 1 + known @ rng.uniform(0.1, 1, len(encoder)))
    architectures = space.decode(few)

    def as_array() -> None:
        predictor.predict(encoder.encode_codes(codes))

    def encoded() -> None:
        encoder.encode_codes(codes)

    def one_by_one() -> None:
        for architecture in architectures:
            predictor.predict(encoder.encode([architecture]))

    times_s: dict[str, list[float]] = {"array": [], "of it encoding": [], "objects": []}
    for _ in range(args.repeats):
        times_s["array"].append(seconds(as_array))
        times_s["of it encoding"].append(seconds(encoded))
        times_s["objects"].append(seconds(one_by_one) * len(codes) / len(few))
    for name, measured in times_s.items():
        middle, low, high = statistics.median(measured), min(measured), max(measured)
        print(f"{name:15} {middle:8.2f} s ({low:.2f} to {high:.2f}) for {len(codes):,}")
    ratios = [b / a for a, b in zip(times_s["array"], times_s["objects"], strict=True)]
    print(f"objects / array {statistics.median(ratios):8.0f}")


def seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
