"""What ``esm-host time --json`` writes, made up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from esm_protos.messages import DeviceState, GpuState, MeasureSpec

STRANGE = "</script><img src=x onerror=alert(1)>.onnx"
"""A name that a careless page would run."""


def timing(models: tuple[str, ...] = ("nets/small.onnx", "nets/large.onnx")) -> dict[str, Any]:
    """Models by two batch sizes on two devices; one result failed, one is profiled."""
    results = []
    for index, (device, model, batch) in enumerate(
        (device, model, batch)
        for device in ("pi4", "rack-1")
        for model in models
        for batch in (1, 8)
    ):
        latency = 3.0 * (1 + models.index(model)) * batch**0.8 * (1 if device == "pi4" else 0.3)
        results.append(succeeded(model, device, batch, latency, seed=index))
    results[-1] = failed(models[-1], "rack-1", 8)
    results[2]["profile"] = profile(results[2]["trimmed_mean_ms"])
    results[1]["verdict"] = "noisy"
    results[1]["warnings"] = ["other programs used 1.2 processors"]
    return {
        "schema_version": 3,
        "kind": "timing",
        "context": {
            "esm_profiler": "0.1.0",
            "created_at": "2026-11-22T09:00:00+00:00",
            "spec": MeasureSpec(precision=0.02, references=True, sessions=2).to_json(),
            "raw": False,
            "spread_s": 0,
            "devices": {
                "pi4": known("raspberrypi", "Cortex-A72", 1500.0, 55.0),
                "rack-1": known("rack-1", "Xeon", 2900.0, 48.0, GpuState("NVIDIA T4", 1590.0)),
                "rack-2": {
                    "info": None,
                    "block_starts_s": [],
                    "states": [],
                    "references": [],
                    "usual": None,
                    "busy_s": 0.0,
                    "error": "nobody answers",
                },
            },
        },
        "results": results,
        "comparisons": [
            compared("device", "pi4", 2, 0, 2.01),
            compared("device", "rack-1", 6, 4, 1.01, different=False),
            compared("devices", "pi4", 0, 4, 3.3, paired=False),
        ],
    }


def older(data: dict[str, Any]) -> dict[str, Any]:
    """Return the same as a version wrote it that knew nothing of a usual pace."""
    data = copy.deepcopy(data)
    data["schema_version"] = 2
    context = data["context"]
    for entry, names in (
        (context, ("raw", "spread_s")),
        (context["spec"], ("references", "sessions")),
        *(
            (each, ("block_starts_s", "references", "usual"))
            for each in context["devices"].values()
        ),
        *((each, tuple(_of_usual())) for each in data["results"]),
    ):
        for name in names:
            del entry[name]
    return data


def _of_usual(latency_ms: float | None = None, runs: int = 0) -> dict[str, Any]:
    """Keys of a result that older versions lack."""
    told = latency_ms is not None
    return {
        "raw_ms": latency_ms and latency_ms * 1.08,
        "block_ci95_percent": 0.6 if told else None,
        "shift_percent": 8.0 if told else None,
        "weight_bytes": 4_000_000 if told else None,
        "session_runs": [runs // 2, runs - runs // 2] if told else None,
        "blocks": [],
    }


def succeeded(
    model: str, device: str, batch: int, latency_ms: float, seed: int, runs: int = 150
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    samples = latency_ms * rng.lognormal(0, 0.03, runs)
    samples[rng.integers(runs)] *= 3
    ordered = np.sort(samples)[runs // 5 : runs - runs // 5]
    mean = float(ordered.mean())
    return {
        **_identity(model, device, batch),
        "status": "success",
        "failure": None,
        "trimmed_mean_ms": mean,
        "ci95_ms": [mean * 0.99, mean * 1.01],
        "ci95_percent": 1.0,
        **_of_usual(mean, runs),
        "median_ms": float(np.median(samples)),
        "min_ms": float(samples.min()),
        "max_ms": float(samples.max()),
        **{f"p{q}_ms": float(np.percentile(samples, q)) for q in (90, 95, 99)},
        "samples_ms": samples.tolist(),
        "starts_ms": (np.cumsum(samples) * 1.5).tolist(),
        "runs": runs,
        "throughput_per_s": batch / mean * 1e3,
        "first_run_ms": mean * 4,
        "load_ms": 31.0,
        "copy_in_ms": None,
        "copy_out_ms": None,
        "peak_rss_bytes": 48_000_000 + 1_000_000 * batch,
        "ran_on": {},
        "fallback": [],
        "verdict": "stable",
        "warnings": [],
        "profile": None,
    }


def failed(model: str, device: str, batch: int) -> dict[str, Any]:
    names = ("trimmed_mean", "median", "min", "max", "p90", "p95", "p99", "first_run", "load")
    return {
        **_identity(model, device, batch),
        "status": "failed",
        "failure": {"kind": "out_of_memory", "message": "needs 9 GB, 4 are free"},
        **{f"{name}_ms": None for name in (*names, "copy_in", "copy_out", "ci95")},
        "ci95_percent": None,
        **_of_usual(),
        "samples_ms": [],
        "starts_ms": [],
        "runs": 0,
        "throughput_per_s": None,
        "peak_rss_bytes": None,
        "ran_on": {},
        "fallback": [],
        "verdict": None,
        "warnings": [],
        "profile": None,
    }


def _identity(model: str, device: str, batch: int) -> dict[str, Any]:
    shape = [batch, 3, 224, 224]
    return {
        "model": model,
        "model_sha256": "0" * 64,
        "external": {},
        "device": device,
        "case": {"batch": batch, "threads": 1, "shapes": {"x": shape}, "inputs_sha256": None},
        "inputs": [{"name": "x", "type": "float32", "dims": shape}],
        "provider": "cpu",
    }


def profile(latency_ms: float) -> dict[str, Any]:
    shares = {"Conv": 0.71, "Gemm": 0.12, "Relu": 0.08, "Add": 0.05, "MaxPool": 0.04}
    provider = "CPUExecutionProvider"
    return {
        "runs": 10,
        "operators": [
            {"op_type": op, "provider": provider, "calls": 9, "ms": share * latency_ms}
            for op, share in shares.items()
        ],
        "nodes": [
            {
                "name": f"layer{number}/{op}",
                "op_type": op,
                "provider": provider,
                "ms": share * latency_ms / (number + 2),
            }
            for op, share in shares.items()
            for number in range(3)
        ],
    }


def known(
    hostname: str, cpu: str, clock_mhz: float, temperature_c: float, *gpus: GpuState
) -> dict[str, Any]:
    states = [
        DeviceState(
            at_ns=int((second - 1) * 1e9),
            clock_mhz=(clock_mhz - 10 * (second % 3), clock_mhz - 200),
            temperature_c=temperature_c + 0.8 * second,
            gpus=gpus,
        ).to_json()
        for second in range(12)
    ]
    info = {
        "protocol_version": 4,
        "agent_version": "0.1.0",
        "hostname": hostname,
        "machine": "aarch64",
        "cpu_model": cpu,
        "cpu_count": 4,
        "memory_bytes": 4_000_000_000,
        "os": "Linux 6.6",
        "python_version": "3.11.9",
        "runtime": "onnxruntime 1.31.1",
        "providers": ["cpu"],
        "limits": {},
        "state": states[0],
        "occupancy": {},
        "isolation": ["bubblewrap"],
    }
    return {
        "info": info,
        "block_starts_s": [0],
        "states": states,
        "references": [reference(name, usual_ms) for name, usual_ms in REFERENCES.items()],
        "usual": {
            "references": list(REFERENCES),
            "latency_ms": list(REFERENCES.values()),
            "spread": [[0.02, 0.05], [0.05, 0.06]],
            "moments": 40,
            "span_s": 86_400.0,
        },
        "busy_s": 12.3,
        "error": None,
    }


REFERENCES = {"arithmetic": 0.1, "large": 0.5}
"""Names, and usual latencies in milliseconds."""


def reference(name: str, usual_ms: float, block: int = 0) -> dict[str, Any]:
    """Reference model that is 8 % slower than usual, in 10 visits of 4 runs."""
    rng = np.random.default_rng(len(name))
    samples = 1.08 * usual_ms * rng.lognormal(0, 0.01, 40)
    starts = 1e3 * np.repeat(np.arange(10.0), 4) + np.tile(np.arange(4.0), 10)
    return {
        "block": block,
        "name": name,
        "weight_bytes": 400_000 if name == "arithmetic" else 17_000_000,
        "latency_ms": float(samples.mean()),
        "runs_per_visit": 4,
        "samples_ms": samples.tolist(),
        "starts_ms": starts.tolist(),
    }


def compared(
    scope: str,
    device: str,
    of: int,
    to: int,
    ratio: float,
    paired: bool = True,
    different: bool = True,
) -> dict[str, Any]:
    return {
        "scope": scope,
        "device": device,
        "of": of,
        "to": to,
        "ratio": ratio,
        "ci95": [ratio * 0.98, ratio * 1.02],
        "paired": paired,
        "different": different,
    }
