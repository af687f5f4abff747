"""Latencies on OpenVINO against the CPU provider, and against a script of ONNX Runtime alone.

    python -m benchmarks.providers [--json FILE] [--quick]

Twelve models (:mod:`benchmarks.provider_models`) are timed in an environment with the wheel
onnxruntime-openvino, which is made once. In every round each model has four turns of a fraction of
a second, at one thread and in float32: by one agent on ``cpu`` and on ``openvino``, and on OpenVINO
by benchmarks/direct_timing.py, which passes arrays to ``session.run``, and again with bound inputs
and outputs. All four feed the same values, count the same number of runs in one session, and report
the trimmed mean of these runs. The order of turns is reversed from round to round.

A figure is the median ratio over the rounds, with the 95 % interval of order statistics.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

from benchmarks.agreement import TOLERANCE_PERCENT, Direct, direct, median_interval
from benchmarks.direct_timing import random_inputs
from benchmarks.provider_models import MODELS, write_models
from benchmarks.provider_wheels import (
    OPENVINO_FLOAT32,
    WHEELS,
    WheelMissingError,
    agent,
    environment,
)
from esm_host.timing import RUNS_PER_VISIT, Entry, read_request, time_block, timing_spec
from esm_host.transport.base import Profiler
from esm_host.transport.devices import connect
from esm_protos.messages import Failure
from esm_protos.text import counted

THREADS = 1
TURN_S, QUICK_TURN_S = 0.3, 0.02
QUICK_MODELS = ("resnet", "densenet", "lstm", "resnet-int8")
MIN_RUNS = 16
RUNTIME_NAME = "OpenVINOExecutionProvider"
OPTIONS: dict[str, dict[str, str]] = {"cpu": {}, "openvino": OPENVINO_FLOAT32}
CPU, OPENVINO, SCRIPT, BOUND = "cpu", "openvino", "script", "script, bound"
SIDES = (CPU, OPENVINO, SCRIPT, BOUND)

Turns = list[dict[str, float]]
"""Latency of every side, ms, by round."""


class Ratio(NamedTuple):
    """Median ratio of two sides over rounds, with its 95 % interval."""

    median: float
    low: float
    high: float


def ratio(turns: Sequence[Mapping[str, float]], over: str, under: str) -> Ratio:
    """Return ``over`` / ``under``; the interval is infinite with fewer than six rounds."""
    logs = [math.log(turn[over] / turn[under]) for turn in turns]
    low, high = median_interval(logs)
    return Ratio(math.exp(statistics.median(logs)), math.exp(low), math.exp(high))


def is_within(found: Ratio, percent: float = TOLERANCE_PERCENT) -> bool:
    """Return whether a ratio is 1 within a tolerance."""
    return abs(100 * (found.median - 1)) <= percent


# Measuring


class Ours:
    """One agent with several providers, and the models that it times."""

    def __init__(self, profiler: Profiler, entries: Mapping[str, Entry]) -> None:
        self._profiler = profiler
        self._entries = entries

    def latency_ms(self, name: str, provider: str, runs: int) -> float | Failure:
        """Return what `esm-host time MODEL --ep PROVIDER --runs RUNS --sessions 1 --raw` prints."""
        spec = timing_spec(
            runs=runs,
            sessions=1,
            threads=THREADS,
            provider=provider,
            provider_options=OPTIONS[provider],
        )
        (result,) = time_block(self._profiler, [self._entries[name]], spec).results
        if result.estimate is None:
            assert result.failure is not None
            return result.failure
        return result.estimate.raw_ns / 1e6


def write_inputs(path: Path) -> Path:
    """Write random inputs of a model beside it, for both programs."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = path.with_suffix(".npz")
    np.savez(inputs, **random_inputs(session))
    return inputs


def measure(
    address: str, paths: Mapping[str, Path], rounds: int, turn_s: float, seed: int
) -> tuple[dict[str, Turns], dict[str, str], dict[str, int], dict[str, Any]]:
    """Return the turns of every model, the reasons of those refused, runs per turn, the device."""
    entries = {
        name: read_request([path], inputs=[write_inputs(path)], folder=path.parent)[0]
        for name, path in paths.items()
    }
    options = json.dumps({**OPENVINO_FLOAT32, "num_of_threads": str(THREADS)})
    chosen, python = ("--provider", RUNTIME_NAME, options), environment("openvino")
    turns: dict[str, Turns] = {name: [] for name in paths}
    refused: dict[str, str] = {}
    runs: dict[str, int] = {}
    rng = random.Random(seed)
    with ExitStack() as stack:
        profiler = stack.enter_context(connect(address))
        scripts = {
            SCRIPT: stack.enter_context(direct(*chosen, python=python)),
            BOUND: stack.enter_context(direct("--bound", *chosen, python=python)),
        }
        ours = Ours(profiler, entries)
        for name in paths:  # all sides begin warm
            first = turn(ours, {}, name, paths[name], MIN_RUNS, (CPU, OPENVINO))
            if isinstance(first, str):
                refused[name] = first
                continue
            wanted = turn_s * 1e3 / max(first.values())
            runs[name] = max(MIN_RUNS, round(wanted / RUNS_PER_VISIT) * RUNS_PER_VISIT)
        for number in range(rounds):
            order = SIDES if number % 2 == 0 else SIDES[::-1]
            names = [name for name in paths if name not in refused]
            rng.shuffle(names)
            for name in names:
                found = turn(ours, scripts, name, paths[name], runs[name], order)
                if isinstance(found, str):
                    refused[name] = found
                else:
                    turns[name].append(found)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        device = asdict(profiler.device_info())
    return turns, refused, runs, device


def turn(
    ours: Ours,
    scripts: Mapping[str, Direct],
    name: str,
    path: Path,
    runs: int,
    order: Sequence[str],
) -> dict[str, float] | str:
    """Return the latency of every side, ms; or why a provider refuses the model."""
    found: dict[str, float] = {}
    for each in order:
        if each in scripts:
            found[each] = scripts[each].latency_ms(path, runs)
            continue
        latency = ours.latency_ms(name, each, runs)
        if isinstance(latency, Failure):
            return f"{each}: {latency.kind.value}, {latency.message}"
        found[each] = latency
    return found


# Tables


def provider_table(turns: Mapping[str, Turns], refused: Mapping[str, str]) -> str:
    """Return latencies on both providers and their ratio, as a Markdown table."""
    lines = [
        "| model | kind | `cpu` | `openvino` | openvino / cpu | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, own in turns.items():
        start = f"| {name} | {MODELS[name][0]}"
        if name in refused:
            lines.append(f"{start} | - | - | {_cell(refused[name])} | - |")
            continue
        cpu, openvino = (_ms(statistics.median(t[s] for t in own)) for s in (CPU, OPENVINO))
        found = ratio(own, OPENVINO, CPU)
        lines.append(f"{start} | {cpu} | {openvino} | {found.median:.2f} | {_interval(found, 2)} |")
    return "\n".join(lines)


def agreement_table(turns: Mapping[str, Turns], refused: Mapping[str, str]) -> str:
    """Return our latencies over those of the script on OpenVINO, as a Markdown table."""
    lines = [
        "| model | ours | ours / script | 95 % interval | ours / script with bound values | "
        "95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ratios = {
        name: [ratio(own, OPENVINO, script) for script in (SCRIPT, BOUND)]
        for name, own in turns.items()
        if name not in refused
    }
    for name, both in ratios.items():
        ours = _ms(statistics.median(turn[OPENVINO] for turn in turns[name]))
        cells = [cell for r in both for cell in (f"{r.median:.3f}", _interval(r, 3))]
        lines.append(f"| {name} | {ours} | {' | '.join(cells)} |")
    arrays, bound = (sum(is_within(both[i]) for both in ratios.values()) for i in (0, 1))
    return "\n".join(lines) + (
        f"\n\nWithin {TOLERANCE_PERCENT:g} %: {arrays} of {len(ratios)} with arrays, "
        f"{bound} of {len(ratios)} with bound values."
    )


def _ms(value: float) -> str:
    return f"{value:#.2g} ms" if value < 10 else f"{value:.0f} ms"


def _interval(found: Ratio, digits: int) -> str:
    if not math.isfinite(found.high):
        return "-"
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


def to_json(
    turns: Mapping[str, Turns], refused: Mapping[str, str], runs: Mapping[str, int]
) -> dict[str, Any]:
    """Return the turns of every model in milliseconds, and why others were refused."""
    return {
        name: {
            "kind": MODELS[name][0],
            "runs_per_turn": runs.get(name),
            "refused": refused.get(name),
            "turns_ms": own,
        }
        for name, own in turns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="Rounds, 1 or more. [default: 12]")
    parser.add_argument(
        "--quick", action="store_true", help="One round of short turns, four models."
    )
    parser.add_argument("--seed", type=int, default=0, help="Random seed of the models' order.")
    parser.add_argument("--json", type=Path, help="File for all turns.")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give 1 or more")
    rounds, turn_s = (1, QUICK_TURN_S) if args.quick else (args.rounds, TURN_S)
    began = time.monotonic()
    try:
        with (
            agent("openvino", "--take-turns") as address,
            tempfile.TemporaryDirectory(prefix="esm-") as folder,
        ):
            paths = write_models(Path(folder), QUICK_MODELS if args.quick else MODELS)
            turns, refused, runs, device = measure(address, paths, rounds, turn_s, args.seed)
    except WheelMissingError as error:
        raise SystemExit(f"error: {error}") from error
    if args.json:
        settings = {"wheel": WHEELS["openvino"], "threads": THREADS, "options": OPTIONS}
        models = to_json(turns, refused, runs)
        data = {"device": device, "settings": settings, "models": models}
        args.json.write_text(json.dumps(data, indent=2) + "\n")
    print(provider_table(turns, refused), end="\n\n")
    print(agreement_table(turns, refused), end="\n\n")
    given = ", ".join(f"{key}={value}" for key, value in OPENVINO_FLOAT32.items())
    print(f"{device['cpu_model']}, {WHEELS['openvino']}, {given}")
    took = time.monotonic() - began
    print(f"{counted(THREADS, 'thread')}, {counted(rounds, 'round')}, {took:.0f} s")


if __name__ == "__main__":
    main()
