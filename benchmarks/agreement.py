"""Agreement of esm-host's latencies with a direct timing of onnxruntime.

    python -m benchmarks.agreement [--pairs 45] [--json FILE]

Ten models (benchmarks.public_models), each timed by an agent on this machine as `esm-host time`
does with a fixed number of runs, and by benchmarks/direct_timing.py, which shares no code with
it. The machine's pace wanders by more than what is to be seen, so the two take turns of a
fraction of a second, each being first every other time, the models shuffled; every turn makes a
new session. Of each pair of neighbouring turns the ratio counts. The figure is the pairs' median,
with the 95 % interval of order statistics, which holds for any distribution.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import direct_timing
from benchmarks.public_models import KINDS, write_models
from esm_host.timing import RUNS_PER_VISIT, Entry, read_request, time_block, timing_spec
from esm_host.transport.base import Profiler
from esm_host.transport.local import LocalProfiler

TURN_S = 0.2
MIN_RUNS = 16
TOLERANCE_PERCENT = 2.0


class Direct:
    """Independent script, kept running between turns."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def latency_ms(self, path: Path, runs: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(f"{runs} {path}", file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{direct_timing.__name__} ended at {path}: its own words are above")
        latency: float = json.loads(answer)["trimmed_mean_ms"]
        return latency


@contextmanager
def direct(*options: str, python: str | Path = sys.executable) -> Iterator[Direct]:
    command = [python, direct_timing.__file__, *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:  # leaving closes its input, which ends it
        yield Direct(process)


def our_latency_ms(profiler: Profiler, model: Entry, runs: int) -> float:
    """Return what `esm-host time MODEL --runs RUNS --raw` prints."""
    (result,) = time_block(profiler, [model], timing_spec(runs=runs)).results
    if result.estimate is None:
        assert result.failure is not None
        raise SystemExit(f"{result.name}: {result.failure.kind.value}: {result.failure.message}")
    return result.estimate.raw_ns / 1e6


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median: order statistics that the sign test does not reject.

    Infinite with fewer than six values.
    """
    count = len(values)
    tail, below = 0.0, 0
    while (tail := tail + math.comb(count, below) / 2**count) <= 0.025:
        below += 1
    if not below:
        return -math.inf, math.inf
    ordered = sorted(values)
    return ordered[below - 1], ordered[count - below]


def measure(
    paths: dict[str, Path], pairs: int, rng: random.Random
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, int], dict[str, Any]]:
    """Return pairs (direct, ours) of every model, ms, its runs per turn, and the device."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    with LocalProfiler() as profiler, direct() as script:
        device = asdict(profiler.device_info())
        models = {name: read_request([path])[0] for name, path in paths.items()}
        runs = {}
        for name, path in paths.items():
            wanted = TURN_S * 1e3 / script.latency_ms(path, MIN_RUNS)
            runs[name] = max(MIN_RUNS, round(wanted / RUNS_PER_VISIT) * RUNS_PER_VISIT)
            our_latency_ms(profiler, models[name], MIN_RUNS)  # both sides begin warm
        names = list(paths)
        for number in range(pairs):
            rng.shuffle(names)
            for name in names:
                # Direct first, then ours first: what comes of the order cancels.
                if number % 2 == 0:
                    theirs = script.latency_ms(paths[name], runs[name])
                    ours = our_latency_ms(profiler, models[name], runs[name])
                else:
                    ours = our_latency_ms(profiler, models[name], runs[name])
                    theirs = script.latency_ms(paths[name], runs[name])
                taken[name].append((theirs, ours))
            if sys.stderr.isatty():
                print(f"\rpair {number + 1} of {pairs} ", end="", file=sys.stderr, flush=True)
    return taken, runs, device


def compare(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the row of a model."""
    logs = [math.log(ours / theirs) for theirs, ours in pairs]
    low, high = (100 * math.expm1(v) if math.isfinite(v) else None for v in median_interval(logs))
    difference = 100 * math.expm1(statistics.median(logs))
    return {
        "direct_ms": statistics.median(theirs for theirs, _ in pairs),
        "ours_ms": statistics.median(ours for _, ours in pairs),
        "difference_percent": difference,
        "low_percent": low,
        "high_percent": high,
        "within_tolerance": abs(difference) <= TOLERANCE_PERCENT,
        "interval_within_tolerance": low is not None
        and high is not None
        and max(-low, high) <= TOLERANCE_PERCENT,
        "pairs": len(pairs),
        "pairs_ms": [list(pair) for pair in pairs],
    }


def report(rows: dict[str, dict[str, Any]]) -> None:
    print(
        f"{'model':11}{'kind':25}{'direct':>10}{'ours':>10}{'difference':>12}"
        f"{'95 % interval':>18}{'pairs':>7}  within {TOLERANCE_PERCENT:g} %"
    )
    for name, row in rows.items():
        interval = (
            "-"
            if row["low_percent"] is None
            else f"{row['low_percent']:+.2f} to {row['high_percent']:+.2f}"
        )
        print(
            f"{name:11}{row['kind']:25}{row['direct_ms']:7.3f} ms{row['ours_ms']:7.3f} ms"
            f"{row['difference_percent']:+10.2f} %{interval:>18}{row['pairs']:7}  "
            f"{'yes' if row['within_tolerance'] else 'no'}"
        )
    within = sum(row["within_tolerance"] for row in rows.values())
    whole = sum(row["interval_within_tolerance"] for row in rows.values())
    print(
        f"{within} of {len(rows)} within {TOLERANCE_PERCENT:g} %; {whole} with their whole interval"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=45, help="per model; 45 take about 7 minutes")
    parser.add_argument("--models", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="of the models' order")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.pairs < 1:
        parser.error("--pairs: give 1 or more")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: p for name, p in write_models(Path(folder)).items() if name in args.models}
        taken, runs, device = measure(paths, args.pairs, random.Random(args.seed))
    rows = {
        name: {"kind": KINDS[name][0], "runs_per_turn": runs[name], **compare(pairs)}
        for name, pairs in taken.items()
    }
    report(rows)
    print(f"{device['runtime']}, {device['cpu_model']}, {time.monotonic() - began:.0f} s")
    if args.json:
        data = {"device": device, "tolerance_percent": TOLERANCE_PERCENT, "models": rows}
        args.json.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
