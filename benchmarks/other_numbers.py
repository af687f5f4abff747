"""Ratio of what common timing loops print to what the agent's loop prints.

    python -m benchmarks.other_numbers [--rounds 30] [--json FILE]

MobileNetV3 at 224 px with weights. Every round visits each loop once, in random order, and a loop
that times as the agent does before each: one thread, inputs and outputs bound, ten uncounted runs,
the mean without the fastest and slowest fifth. The median of the ratios is printed with its 95 %
interval of order statistics. Needs torch for the last row.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.agreement import median_interval
from esm_host import torch_module
from esm_models.architecture import Architecture
from esm_models.spaces import load_space
from esm_protos.weights import draw_weights

UNITS = (  # as esm_models.examples has it
    ("k3e4", "k3e3"),
    ("k5e3", "k5e3", "k5e3"),
    ("k3e6", "k3e3", "k3e3", "k3e3"),
    ("k3e6", "k3e6"),
    ("k5e6", "k5e6", "k5e6"),
)
RUNS = 40
WARMUP = 10
SHAPE = (1, 3, 224, 224)


def timed(run: Callable[[], Any], runs: int = RUNS) -> list[float]:
    """Return seconds of each of ``runs`` calls."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def trimmed_mean(values: Sequence[float]) -> float:
    """Return the mean without the lowest and the highest fifth."""
    drop = len(values) // 5
    return statistics.fmean(sorted(values)[drop : len(values) - drop])


class Models:
    """Sessions of one model, by how they are made, and runs on them."""

    def __init__(self, data: bytes, shape: tuple[int, ...] = SHAPE) -> None:
        self._data = data
        self.image = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.one = self.session()
        self.default = self.session(threads=0)
        self.stop = self.session(threads=0, entries={"session.force_spinning_stop": "1"})
        self.no_arena = self.session(arena=False)
        self.basic = self.session(level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)

    def session(
        self,
        threads: int = 1,
        arena: bool = True,
        level: Any = ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
        entries: dict[str, str] | None = None,
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = arena
        options.graph_optimization_level = level
        for name, value in (entries or {}).items():
            options.add_session_config_entry(name, value)
        return ort.InferenceSession(self._data, options, providers=["CPUExecutionProvider"])

    def call(self, session: ort.InferenceSession) -> Callable[[], Any]:
        """Return a run as most scripts have it: arrays in, arrays out."""
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: self.image})

    def bound(self, session: ort.InferenceSession) -> Callable[[], Any]:
        """Return a run of bound inputs and outputs."""
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, self.image)
        binding.bind_output(session.get_outputs()[0].name)
        return lambda: session.run_with_iobinding(binding)


def loops(models: Models, other: Callable[[], Any]) -> dict[str, Callable[[], float]]:
    """Return loops by what they do otherwise than the agent; each returns seconds."""

    def warm(run: Callable[[], Any]) -> list[float]:
        timed(run, WARMUP)
        return timed(run)

    def fresh(runs: int) -> float:
        return statistics.fmean(timed(models.call(models.session()), runs))

    def drawn() -> None:
        models.image[:] = np.random.default_rng().standard_normal(SHAPE, np.float32)
        arrays()

    def in_turn(run: Callable[[], Any]) -> float:
        """Return the time of a run that follows one of another model."""
        seconds = []
        for _ in range(RUNS // 2):
            other()
            seconds += timed(run, 1)
        return trimmed_mean(seconds)

    arrays = models.call(models.one)
    one = models.bound(models.one)
    return {
        "session.run with arrays": lambda: trimmed_mean(warm(arrays)),
        "mean of all runs": lambda: statistics.fmean(warm(one)),
        "median": lambda: statistics.median(warm(one)),
        "fastest run": lambda: min(warm(one)),
        "no warm-up, mean of 10": lambda: fresh(10),
        "no warm-up, the first run": lambda: fresh(1),
        "input drawn within the timed call": lambda: trimmed_mean(warm(drawn)),
        "each run after one of another model": lambda: in_turn(one),
        "default threads": lambda: trimmed_mean(warm(models.bound(models.default))),
        "default threads, workers stopped": lambda: trimmed_mean(warm(models.bound(models.stop))),
        "memory arena off": lambda: trimmed_mean(warm(models.bound(models.no_arena))),
        "graph optimisations off": lambda: trimmed_mean(warm(models.bound(models.basic))),
    }


def torch_loops(image: Any) -> dict[str, Callable[[], float]]:
    """Return torch's own timers of the same network, batch normalisation included."""
    import torch
    from torch.utils.benchmark import Timer

    torch.set_num_threads(1)
    space = load_space("ofa", resolution=224)
    module = torch_module(space, Architecture("ofa", UNITS), seed=0).eval()
    tensor = torch.from_numpy(image)
    timer = Timer("module(tensor)", globals={"module": module, "tensor": tensor}, num_threads=1)

    def eager() -> float:
        with torch.inference_mode():
            return float(timer.timeit(RUNS // 2).mean)

    return {"torch.utils.benchmark, eager": eager}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    space = load_space("ofa", resolution=224)
    models = Models(space.build(Architecture("ofa", UNITS), draw_weights))
    small = load_space("resnet", resolution=64)
    second = Models(small.build(small.extremes()[0], draw_weights), (1, 3, 64, 64))
    ours = models.bound(models.one)
    everything = loops(models, second.bound(second.one)) | torch_loops(models.image)
    ratios: dict[str, list[float]] = {name: [] for name in everything}
    latencies = []
    order = list(everything)
    for _ in range(args.rounds):
        random.shuffle(order)
        for name in order:
            timed(ours, WARMUP)
            latencies.append(trimmed_mean(timed(ours)))
            ratios[name].append(everything[name]() / latencies[-1])
    print(f"as the agent: {1e3 * statistics.median(latencies):.2f} ms (median)")
    rows = {}
    for name, values in ratios.items():
        low, high = median_interval([math.log(value) for value in values])
        rows[name] = {
            "ratio": statistics.median(values),
            "low": math.exp(low),
            "high": math.exp(high),
        }
        print(f"{name:38}{rows[name]['ratio']:7.3f}  {math.exp(low):.3f} to {math.exp(high):.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
