"""Check of the agent's provider cuda on this machine's GPU.

    python -m benchmarks.gpu_check [--gpu 0] [--json FILE]

Runs every check that needs a GPU, prints what it saw, and takes a few minutes. Needs
onnxruntime-gpu, onnx and numpy; nvidia-ml-py for what NVML tells. Exit codes: 0; 1 a check
failed; 3 there is no GPU to check.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import esm_agent
from esm_agent.device.telemetry import Telemetry
from esm_agent.errors import ProviderMissingError
from esm_agent.measure import feeds, timing
from esm_agent.measure.backends import (
    DeviceModel,
    ModelError,
)
from esm_agent.measure.block import UploadedBlock, UploadedModel
from esm_agent.measure.worker import Worker
from esm_agent.providers import make_provider
from esm_agent.providers.base import DeviceLostError, Use
from esm_agent.providers.cpu import CpuProvider
from esm_agent.providers.cuda import CudaProvider
from esm_protos.messages import FailureKind, MeasureSpec, RunOrder
from esm_protos.statistics import trimmed_mean
from esm_protos.weights import draw_weights

SPEC = MeasureSpec(provider="cuda")
CUDA = partial(make_provider, "cuda")
NO_GPU = 3

DEPTHS = (4, 40)
LAYER = (8, 256, 56)
"""Batch, channels and side of a convolution that keeps any GPU busy far longer than its launch."""
RESOLUTION, WIDTH = 224, 1.0
SECONDS = 1.0
PASSES, RUNS = 3, 100

Figures = dict[str, Any]


class CheckFailedError(Exception):
    """Failed check, with its figures."""

    def __init__(self, text: str, **figures: Any) -> None:
        super().__init__(text)
        self.figures = figures


class SkippedError(Exception):
    """Check that this machine cannot run."""


class Box:
    """GPU under test, and a folder for models."""

    def __init__(self, gpu: int, backend: CudaProvider, folder: Path) -> None:
        self.gpu, self.backend, self.folder = gpu, backend, folder
        self._saved = 0

    def save(self, data: bytes) -> UploadedModel:
        self._saved += 1
        path = self.folder / f"{self._saved}.onnx"
        path.write_bytes(data)
        return UploadedModel(path.stem, path)

    def load(self, data: bytes, spec: MeasureSpec = SPEC) -> DeviceModel:
        return self.backend.load(self.save(data), spec)

    @contextmanager
    def worker(self, gpu: int) -> Iterator[Worker]:
        """Return a measuring process as the agent starts it."""
        worker = Worker(
            make_provider, partial(Telemetry, gpu=gpu), make_others=(partial(CUDA, gpu),)
        )
        try:
            yield worker
        finally:
            worker.stop()


def stated_options() -> dict[str, str]:
    return {option.name: option.default for option in CudaProvider.options}


def with_option(name: str, value: str) -> MeasureSpec:
    return replace(SPEC, provider_options={name: value})


def reference_folder() -> Path:
    return Path(esm_agent.__file__).parent / "reference_models"


# Models


def chain(depth: int) -> bytes:
    from esm_models.graph import Network

    batch, channels, side = LAYER
    net = Network((batch, channels, side, side))
    x = net.input
    for _ in range(depth):
        x = net.relu(net.conv(x, channels, kernel=3))
    return net.serialize(f"chain{depth}", x)


def subnets(name: str, resolution: int, width_mult: float) -> tuple[bytes, bytes]:
    """Return the smallest and the largest subnet of a search space."""
    from esm_models.spaces import load_space

    space = load_space(name, resolution=resolution, width_mult=width_mult)
    smallest, largest = space.extremes()
    return space.build(smallest), space.build(largest)


def determinants() -> bytes:
    """Return a model with an operator that ONNX Runtime supports on the CPU only."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("Det", ["r"], ["d"], "det"),
        helper.make_node("Exp", ["d"], ["y"], "exp"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 16, 16])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])]
    graph = helper.make_graph(nodes, "determinants", inputs, outputs)
    opsets = [helper.make_opsetid("", 17)]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


SPACES = ("resnet", "mobilenetv3", "densenet")


# Timing


def latency_ms(run: Callable[[], object]) -> float:
    """Return the trimmed mean of consecutive runs, ms, after equally long uncounted ones."""
    for _ in ("uncounted", "counted"):
        taken = []
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end or len(taken) < 10:
            start = time.perf_counter_ns()
            run()
            taken.append(time.perf_counter_ns() - start)
    return trimmed_mean(np.array(taken, dtype=np.int64), 0.2) / 1e6


def error_between(got: Any, expected: Any) -> float:
    """Return the largest difference, as a share of the largest value."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def output(model: DeviceModel) -> Any:
    model.run()
    copied: Any = model.copy_out()
    return copied[0]


def on_cpu(model: UploadedModel) -> Any:
    loaded = CpuProvider().load(model, SPEC)
    loaded.run()
    (expected,) = loaded.outputs()
    return expected.numpy()


# Checks


def nodes_on_cuda(box: Box) -> Figures:
    """Check that every node of the spaces' smallest and largest models runs on CUDA."""
    figures: Figures = {}
    for name in SPACES:
        for size, data in zip(
            ("smallest", "largest"), subnets(name, RESOLUTION, WIDTH), strict=True
        ):
            try:
                figures[f"{name} {size}"] = dict(box.load(data).ran_on)
            except ModelError as error:
                raise CheckFailedError(f"{name} {size}: {error}", **figures) from error
    return figures


def same_results_as_cpu(box: Box) -> Figures:
    """Check that weightless models give the CPU's results, within 1e-3."""
    figures = {}
    for name in SPACES:
        for size, data in zip(("smallest", "largest"), subnets(name, 64, 0.5), strict=True):
            expected = on_cpu(box.save(data))
            figures[f"{name} {size}"] = error_between(output(box.load(data)), expected)
    if not max(figures.values()) < 1e-3:
        raise CheckFailedError("results differ from the CPU's", **figures)
    return figures


def synchronised(box: Box) -> Figures:
    """Check that a run has ended when it returns.

    Ten times the depth takes ten times as long, later calls do not wait, and the runs add up to
    their total time.
    """
    shallow, deep = (box.load(chain(depth)) for depth in DEPTHS)
    shallow_ms, deep_ms = latency_ms(shallow.run), latency_ms(deep.run)
    depth_ratio = DEPTHS[1] / DEPTHS[0]

    def copy_after_run_ms() -> float:
        deep.run()
        start = time.perf_counter_ns()
        deep.copy_out()
        return (time.perf_counter_ns() - start) / 1e6

    idle_copy_ms = float(np.median(timing.copies(deep.copy_out))) / 1e6
    waiting_copy_ms = float(np.median([copy_after_run_ms() for _ in range(10)]))
    summed_ns = 0
    began = time.perf_counter_ns()
    for _ in range(50):
        start = time.perf_counter_ns()
        deep.run()
        summed_ns += time.perf_counter_ns() - start
    deep.copy_out()  # whatever is still to be done is done now
    wall_ms = (time.perf_counter_ns() - began) / 1e6 - idle_copy_ms
    summed_ms = summed_ns / 1e6
    figures = {
        "shallow_ms": shallow_ms,
        "deep_ms": deep_ms,
        "ratio": deep_ms / shallow_ms,
        "depth_ratio": depth_ratio,
        "copy_after_idle_ms": idle_copy_ms,
        "copy_after_run_ms": waiting_copy_ms,
        "sum_over_wall": summed_ms / wall_ms,
    }
    if not 0.8 < deep_ms / shallow_ms / depth_ratio < 1.2:
        raise CheckFailedError("latency does not grow with depth", **figures)
    if waiting_copy_ms - idle_copy_ms > 0.25 * deep_ms:
        raise CheckFailedError("what follows a run waits for it", **figures)
    if not 0.95 < summed_ms / wall_ms < 1.05:
        raise CheckFailedError("runs do not add up to the time that passed", **figures)
    return figures


def agrees_with_plain_runs(box: Box) -> Figures:
    """Check that a plain ``session.run`` without its copies takes as long as the agent's run."""
    import onnxruntime

    from esm_models.spaces import load_space

    figures: Figures = {}
    far = []
    for name in SPACES:
        space = load_space(name, resolution=RESOLUTION, width_mult=WIDTH)
        model = box.load(space.build(space.extremes()[1]))
        ours = latency_ms(model.run)
        copies = sum(
            float(np.median(timing.copies(copy))) / 1e6 for copy in (model.copy_in, model.copy_out)
        )
        weighted = space.build(space.extremes()[1], partial(draw_weights, seed=SPEC.seed))
        options = {"device_id": str(box.gpu), "use_tf32": "0"}
        session = onnxruntime.InferenceSession(
            weighted, providers=[(CudaProvider.runtime_name, options), "CPUExecutionProvider"]
        )
        plain = latency_ms(partial(session.run, None, feeds.draw(session, SPEC.seed).arrays))
        figures[name] = {"ours_ms": ours, "plain_ms": plain, "copies_ms": copies}
        if abs(plain - copies - ours) > max(0.1 * ours, 0.1):
            far.append(name)
    if far:
        raise CheckFailedError(f"differs by more than 10 % and 0.1 ms: {', '.join(far)}", **figures)
    return figures


def tf32(box: Box) -> Figures:
    """Check that TF32 is off by default, and that results are coarser with it."""
    data = (reference_folder() / "beyond.onnx").read_bytes()
    expected = on_cpu(box.save(data))
    off, on = (box.load(data, with_option("tf32", wanted)) for wanted in "01")
    deep_off, deep_on = (box.load(chain(DEPTHS[0]), with_option("tf32", wanted)) for wanted in "01")
    convolved = output(deep_off)
    figures = {
        "gemm_error_off": error_between(output(off), expected),
        "gemm_error_on": error_between(output(on), expected),
        "conv_on_against_off": error_between(output(deep_on), convolved),
        "conv_off_ms": latency_ms(deep_off.run),
        "conv_on_ms": latency_ms(deep_on.run),
    }
    if not figures["gemm_error_off"] < 1e-4:
        raise CheckFailedError("off, results are not those of float32", **figures)
    if max(figures["gemm_error_on"], figures["conv_on_against_off"]) < 1e-5:
        if (major := compute_capability(box.gpu)) is not None and major < 8:
            raise SkippedError(f"compute capability {major} has no TF32")
        raise CheckFailedError("on, nothing changes", **figures)
    return figures


def cuda_graph(box: Box) -> Figures:
    """Check that a CUDA graph gives the same results and is not slower."""
    figures: Figures = {}
    for name, data in (
        ("small", subnets("resnet", 32, 0.25)[1]),
        ("large", subnets("resnet", RESOLUTION, WIDTH)[1]),
    ):
        plain, graph = (box.load(data, with_option("cuda_graph", wanted)) for wanted in "01")
        figures[f"{name} error"] = error_between(output(graph), output(plain))
        figures[f"{name} plain_ms"] = latency_ms(plain.run)
        figures[f"{name} graph_ms"] = latency_ms(graph.run)
        if not figures[f"{name} error"] < 1e-3:
            raise CheckFailedError(f"{name}: other results", **figures)
        if figures[f"{name} graph_ms"] > 1.05 * figures[f"{name} plain_ms"]:
            raise CheckFailedError(f"{name}: slower", **figures)
    return figures


def refuses_fallback(box: Box) -> Figures:
    """Check that a model with a CPU-only operator is refused by name, and measured if allowed."""
    data = determinants()
    try:
        box.load(data)
    except ModelError as error:
        if error.failure.kind is not FailureKind.UNSUPPORTED_OP or "det" not in str(error):
            raise CheckFailedError(f"refused, but so: {error}") from error
        said = str(error)
    else:
        raise CheckFailedError("not refused")
    model = box.load(data, replace(SPEC, allow_fallback=True))
    model.run()
    figures = {"said": said, "ran_on": dict(model.ran_on), "fallback": list(model.fallback)}
    if model.fallback != ("det",):
        raise CheckFailedError("other nodes fell back", **figures)
    return figures


def convolution_search(box: Box) -> Figures:
    """Measure the difference between sessions of a model, by cuDNN's search; figures only."""
    data = subnets("resnet", RESOLUTION, WIDTH)[1]
    figures: Figures = {"stated": stated_options()["conv_search"]}
    for search in ("EXHAUSTIVE", "HEURISTIC"):
        spec = with_option("conv_search", search)
        found = [latency_ms(box.load(data, spec).run) for _ in range(PASSES)]
        figures[f"{search} ms"] = found
        figures[f"{search} spread"] = float(np.std(np.log(found), ddof=1))
    return figures


def repeats(box: Box) -> Figures:
    """Measure the agreement of passes in the agent's own process, by order of runs."""
    models = tuple(box.save(data) for name in SPACES for data in subnets(name, 64, 0.5))
    found: dict[RunOrder, list[list[float]]] = {run_order: [] for run_order in RunOrder}
    with box.worker(box.gpu) as worker:
        for _ in range(PASSES):
            for run_order in RunOrder:
                spec = replace(SPEC, run_order=run_order, runs=RUNS)
                result = worker.measure(
                    UploadedBlock("b", spec, models), lambda p: None, lambda: False
                )
                for measurement in result.measurements:
                    if measurement.failure is not None:
                        raise CheckFailedError(f"{run_order.value}: {measurement.failure.message}")
                    if not (measurement.copy_in_ns.size and measurement.copy_out_ns.size):
                        raise CheckFailedError("copies were not timed")
                found[run_order].append([m.trimmed_mean_ms(0.2) for m in result.measurements])
    logs = {run_order: np.log(rows) for run_order, rows in found.items()}
    figures = {
        f"{run_order.value} spread": float(rows.std(axis=0, ddof=1).mean())
        for run_order, rows in logs.items()
    }
    difference = logs[RunOrder.INTERLEAVED].mean(axis=0) - logs[RunOrder.SEQUENTIAL].mean(axis=0)
    figures["interleaved over in a row"] = math.exp(difference.mean())
    if figures["interleaved spread"] > 0.05:
        raise CheckFailedError("passes differ by more than 5 %", **figures)
    return figures


def nvml_tells(box: Box) -> Figures:
    """Check clocks, temperature and power of this GPU only, and that its clock stays settled."""
    telemetry = Telemetry(gpu=box.gpu)
    gpus = telemetry.state(0).gpus
    if not gpus:
        raise SkippedError("no NVML: pip install nvidia-ml-py")
    if len(gpus) != 1:
        raise CheckFailedError(f"{len(gpus)} GPUs instead of one")

    def clock_mhz() -> float | None:
        return telemetry.state(0, quick=True).gpus[0].clock_mhz

    time.sleep(2)
    idle_mhz = clock_mhz()
    model = box.load(chain(DEPTHS[0]))
    start = time.perf_counter()
    timing.settle({0: model.run}, clock_mhz, lambda index, share: None)
    figures = {
        "idle_mhz": idle_mhz,
        "settled_mhz": clock_mhz(),
        "settled_s": time.perf_counter() - start,
        "busy": telemetry.state(0).to_json()["gpus"][0],
    }
    missing = [name for name, value in figures["busy"].items() if value is None]
    if missing:
        raise CheckFailedError(f"does not tell {', '.join(missing)}", **figures)
    return figures


def every_gpu_by_number(box: Box) -> Figures:
    """Check that ``--gpu N`` uses the memory of that GPU, and refuses a number too high."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        raise SkippedError("CUDA_VISIBLE_DEVICES is set: its numbers are not those of nvidia-smi")
    nvml = nvml_module()
    count = nvml.nvmlDeviceGetCount()
    figures: Figures = {"gpus": count}
    for gpu in range(count):
        before = used_bytes(nvml)
        with box.worker(gpu) as worker:
            hello = worker.start()
            if not hello.gpu:
                reasons = "; ".join(hello.missing.values())
                raise CheckFailedError(f"--gpu {gpu}: {reasons}", **figures)
            grown = [now - then for now, then in zip(used_bytes(nvml), before, strict=True)]
        figures[f"gpu {gpu} grown_mb"] = [round(size / 1e6) for size in grown]
        if grown[gpu] < 50e6 or grown[gpu] != max(grown):
            raise CheckFailedError(f"--gpu {gpu} took another's memory", **figures)
    with box.worker(count) as worker:
        hello = worker.start()
    if hello.gpu:
        raise CheckFailedError(f"--gpu {count} works, and is not there", **figures)
    return {**figures, "beyond": list(hello.missing.values())}


CHECKS: Sequence[Callable[[Box], Figures]] = (
    nodes_on_cuda,
    same_results_as_cpu,
    synchronised,
    agrees_with_plain_runs,
    tf32,
    cuda_graph,
    refuses_fallback,
    nvml_tells,
    convolution_search,
    repeats,
    every_gpu_by_number,
)


# NVML


def nvml_module() -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:
        raise SkippedError(f"no NVML ({error}): pip install nvidia-ml-py") from error
    return pynvml


def used_bytes(nvml: Any) -> list[int]:
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    return [int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles]


def compute_capability(gpu: int) -> int | None:
    try:
        nvml = nvml_module()
        handle = nvml.nvmlDeviceGetHandleByIndex(gpu)
        return int(nvml.nvmlDeviceGetCudaComputeCapability(handle)[0])
    except Exception:
        return None


# Running them


def attempt(check: Callable[[Box], Figures], box: Box) -> dict[str, Any]:
    """Run a check and return its row; an exception becomes its outcome."""
    began = time.monotonic()
    outcome, text, figures = "ok", "", {}
    try:
        figures = check(box)
    except SkippedError as error:
        outcome, text = "skipped", str(error)
    except ModuleNotFoundError as error:
        outcome, text = "skipped", f"{error.name} is not installed"
    except CheckFailedError as error:
        outcome, text, figures = "failed", str(error), error.figures
    except (Exception, DeviceLostError) as error:
        traceback.print_exc()
        outcome, text = "failed", f"{type(error).__name__}: {error}"
    return {
        "check": check.__name__,
        "outcome": outcome,
        "text": text,
        "figures": figures,
        "seconds": time.monotonic() - began,
    }


def show(row: dict[str, Any]) -> None:
    print(f"{row['outcome']:8}{row['check']}  {row['text']}  ({row['seconds']:.0f} s)")
    for name, value in row["figures"].items():
        print(f"{'':10}{name}: {rounded(value)}", flush=True)


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gpu", type=int, default=0, help="as nvidia-smi counts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import onnxruntime

    began = time.monotonic()
    try:
        backend = CudaProvider(args.gpu)
        backend.prove()
    except ProviderMissingError as error:
        print(f"no GPU to check: {error}", file=sys.stderr)
        return NO_GPU
    gpus = Telemetry(gpu=args.gpu).state(0).gpus
    about = {
        "gpu": gpus[0].name if gpus else f"GPU {args.gpu}",
        "onnxruntime": onnxruntime.__version__,
        "python": sys.version.split()[0],
        "provider": backend.runtime_options(stated_options(), Use.TIMED),
        "first_load_s": time.monotonic() - began,
    }
    print(json.dumps(rounded(about)), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        box = Box(args.gpu, backend, Path(folder))
        for check in CHECKS:
            rows.append(attempt(check, box))
            show(rows[-1])
            if args.json:  # after each: what comes later may end the process
                args.json.write_text(json.dumps({**about, "checks": rows}, indent=2) + "\n")
    failed = [row["check"] for row in rows if row["outcome"] == "failed"]
    print(
        f"{len(rows) - len(failed)} of {len(rows)} did not fail, {time.monotonic() - began:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
