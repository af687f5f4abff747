"""Timing of an ONNX model in a plain loop, with onnxruntime alone.

    python benchmarks/direct_timing.py MODEL.onnx RUNS
    python benchmarks/direct_timing.py        (reads lines "RUNS MODEL.onnx", answers each)

Prints the trimmed mean and all samples as JSON. A second opinion on what esm-host says, so it
shares no code with it.
"""

import json
import sys
import time

import numpy as np
import onnxruntime

WARMUP = 10
TRIM = 0.2

TYPES = {"tensor(double)": np.float64, "tensor(int32)": np.int32, "tensor(int64)": np.int64}


def open_session(path: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def random_inputs(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Return random inputs; integers are 0 or 1, valid tokens and indices for most models."""
    rng = np.random.default_rng()
    inputs = {}
    for node in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in node.shape]
        if node.type == "tensor(float)":
            inputs[node.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            inputs[node.name] = rng.integers(0, 2, shape).astype(TYPES[node.type])
    return inputs


def time_model(path: str, runs: int) -> list[int]:
    """Return the latency of every run in a new session, ns."""
    session = open_session(path)
    inputs = random_inputs(session)
    for _ in range(WARMUP):
        session.run(None, inputs)
    samples = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        session.run(None, inputs)
        samples.append(time.perf_counter_ns() - start)
    return samples


def answer(path: str, runs: int) -> None:
    samples = time_model(path, runs)
    drop = int(TRIM * runs)
    kept = sorted(samples)[drop : runs - drop]
    result = {"trimmed_mean_ms": sum(kept) / len(kept) / 1e6, "latency_ns": samples}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        answer(sys.argv[1], int(sys.argv[2]))
    else:
        for line in sys.stdin:
            count, _, model = line.rstrip("\n").partition(" ")
            answer(model, int(count))
