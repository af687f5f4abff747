"""Cost of measuring energy: latencies with and without it, and time per model.

    python -m benchmarks.energy_cost [--pairs 20] [--json FILE]

One agent on this machine, with a counter of joules that ticks every millisecond, times ten models
(benchmarks.public_models) in one block, as ``esm-host time --raw`` does: with ``--energy`` and
without, by turns, each being first every other time. Of each pair of blocks the ratio counts. The
figure of a model is the median of its pairs, with the 95 % interval of order statistics.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import esm_host
from benchmarks.agreement import compare
from benchmarks.public_models import write_models

RUNS, ENERGY_TIME_S = 100, 2.0
COUNTER = '''
import time

from esm_agent.energy.source import EnergySource


class Counter(EnergySource):
    """A device of ten watts."""

    tick_s, resolution_j = 0.001, 1e-6

    def joules(self):
        return 10 * time.monotonic()
'''


@contextmanager
def agent(folder: Path) -> Iterator[str]:
    """Yield the address of an agent with the counter."""
    (folder / "counter.py").write_text(COUNTER)
    command = [sys.executable, "-m", "esm_agent.cli", "serve", "--port", "0"]
    options = ["--energy", f"{folder / 'counter.py'}:Counter", "--until-stdin-closes"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    pipes["stderr"] = subprocess.DEVNULL
    with subprocess.Popen([*command, *options], **pipes, text=True) as process:
        # Leaving closes its input, which ends it.
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]


def block(models: list[str], address: str, energy: bool) -> tuple[dict[str, float], float]:
    """Return the latency of each model, ms, and the time of the block, s."""
    began = time.monotonic()
    timing = esm_host.time(
        models, address, runs=RUNS, raw=True, energy=energy, energy_time_s=ENERGY_TIME_S
    )
    took_s = time.monotonic() - began
    found = timing.results()
    if energy and found["energy_mj"].isna().any():
        raise SystemExit("a model has no energy: " + "; ".join(timing.warnings))
    names = [Path(name).stem for name in found["model"]]
    return dict(zip(names, found["trimmed_mean_ms"], strict=True)), took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pairs: dict[str, list[tuple[float, float]]] = {}
    took_s: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as name:
        models = [str(path) for path in write_models(Path(name)).values()]
        with agent(Path(name)) as address:
            block(models, address, False)  # uploads the models
            for number in range(args.pairs):
                found = {}
                for energy in (False, True) if number % 2 == 0 else (True, False):
                    found[energy], duration_s = block(models, address, energy)
                    took_s[energy].append(duration_s)
                for model, without_ms in found[False].items():
                    pairs.setdefault(model, []).append((without_ms, found[True][model]))
    rows = {model: compare(each) for model, each in pairs.items()}
    print("| model | without (ms) | with energy (ms) | difference (%) | 95 % interval |")
    print("| --- | ---: | ---: | ---: | --- |")
    for model, row in rows.items():
        print(
            f"| {model} | {row['direct_ms']:.3f} | {row['ours_ms']:.3f} "
            f"| {row['difference_percent']:+.2f} "
            f"| {row['low_percent']:+.2f} to {row['high_percent']:+.2f} |"
        )
    each_s = {energy: statistics.median(values) / len(rows) for energy, values in took_s.items()}
    print(
        f"time per model: {each_s[False]:.2f} s without energy, {each_s[True]:.2f} s with "
        f"--energy-time {ENERGY_TIME_S:g}"
    )
    if args.json:
        args.json.write_text(json.dumps({"models": rows, "seconds_per_model": each_s}) + "\n")


if __name__ == "__main__":
    main()
