"""Timing of an ONNX model in a plain loop, with onnxruntime alone.

    python benchmarks/direct_timing.py MODEL.onnx RUNS
    python benchmarks/direct_timing.py        (reads lines "RUNS MODEL.onnx", answers each)

Prints the trimmed mean and all samples as JSON. A second opinion on what esm-host says, so it
shares no code with it. MODEL.npz beside a model holds its inputs; without it they are random.

    --bound                 bind inputs and outputs once instead of passing arrays to every run
    --provider NAME JSON    execution provider by its name in ONNX Runtime, and its options
"""

import json
import sys
import time

import numpy as np
import onnxruntime

WARMUP = 10
TRIM = 0.2
CPU = ("CPUExecutionProvider", {})

TYPES = {"tensor(double)": np.float64, "tensor(int32)": np.int32, "tensor(int64)": np.int64}


def open_session(
    path: str, provider: tuple[str, dict[str, str]] = CPU
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    name, own = provider
    session = onnxruntime.InferenceSession(
        path, options, providers=[(name, own)] if own else [name]
    )
    if session.get_providers()[0] != name:  # the runtime only warns
        sys.exit(f"{path}: {name} did not load, the session has {session.get_providers()}")
    return session


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


def inputs_of(path: str, session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    try:
        with np.load(path.removesuffix(".onnx") + ".npz") as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return random_inputs(session)


def bind(
    session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]
) -> onnxruntime.IOBinding:
    """Return a binding whose outputs the first run has allocated."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    names = [node.name for node in session.get_outputs()]
    for name in names:
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    for name, value in zip(names, binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(name, value)
    return binding


def time_model(
    path: str, runs: int, provider: tuple[str, dict[str, str]] = CPU, bound: bool = False
) -> list[int]:
    """Return the latency of every run in a new session, ns."""
    session = open_session(path, provider)
    inputs = inputs_of(path, session)
    run, given = (
        (session.run_with_iobinding, (bind(session, inputs),))
        if bound
        else (session.run, (None, inputs))
    )
    for _ in range(WARMUP):
        run(*given)
    samples = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        run(*given)
        samples.append(time.perf_counter_ns() - start)
    return samples


def summary(samples: list[int]) -> dict[str, object]:
    drop = int(TRIM * len(samples))
    kept = sorted(samples)[drop : len(samples) - drop]
    return {"trimmed_mean_ms": sum(kept) / len(kept) / 1e6, "latency_ns": samples}


def main(words: list[str]) -> None:
    provider, bound = CPU, False
    while words and words[0].startswith("--"):
        if words[0] == "--bound":
            bound, words = True, words[1:]
        elif words[0] == "--provider":
            provider, words = (words[1], json.loads(words[2])), words[3:]
        else:
            sys.exit(f"unknown option '{words[0]}': give --bound or --provider NAME JSON")
    lines = [f"{words[1]} {words[0]}"] if words else sys.stdin
    for line in lines:
        count, _, model = line.rstrip("\n").partition(" ")
        print(json.dumps(summary(time_model(model, int(count), provider, bound))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
