"""Coverage of stated intervals, from timings of the same models in separate processes.

    python -m benchmarks.coverage [--passes 10] [--every 360] [--max-time 6] [--json FILE]

Four ResNet subnets of 8 to 27 blocks, the 24 of benchmarks.repeatability (64 px, width x0.25) and
the ten of benchmarks.agreement, each timed by `esm-host time` in a process of its own, alone and
in three blocks, in every pass; alone for --max-time seconds at most. Passes begin at least --every
seconds apart. In every second pass a campaign measures the 24 as well. An interval holds when it
contains the mean of the other passes.
What the spread asks for is the half-width that would hold 95 times of 100: Student's t times the
standard deviation between passes times sqrt(1 + 1 / (passes - 1)).

Run it on a device that remembers what is usual for it (`esm-agent history`): one that does not
has wide intervals at first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.public_models import write_models
from benchmarks.repeatability import BINS, REFERENCES, architectures
from esm_host import load_run
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_models.architecture import Architecture
from esm_models.spaces import load_space
from esm_protos.statistics import t_quantile

DEPTHS = (8, 12, 19, 27)
CAMPAIGN_EVERY = 2
_PROGRAM = str(Path(sys.executable).with_name("esm-host"))


class Coverage:
    """Models in a folder, and their measurements so far."""

    def __init__(self, folder: Path, alone_s: float, seed: int = 1) -> None:
        self._folder = folder
        self._alone = ["--max-time", f"{alone_s:g}"]
        self._random = random.Random(seed)
        self.taken: defaultdict[str, dict[str, list[dict[str, Any]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.ratios: list[dict[str, Any]] = []
        space = load_space("resnet", resolution=64, width_mult=0.25)
        chosen = architectures(64, 0.25)[REFERENCES:]
        resnets = {f"resnet-{i}": a for i, a in enumerate(chosen)}
        groups: dict[str, dict[str, bytes]] = {
            "depths": {f"blocks-{d}": space.build(_of_depth(d)) for d in DEPTHS},
            "resnets": {name: space.build(a) for name, a in resnets.items()},
        }
        self.groups: dict[str, list[Path]] = {}
        for group, models in groups.items():
            self.groups[group] = []
            for name, data in models.items():
                path = folder / f"{name}.onnx"
                path.write_bytes(data)
                self.groups[group].append(path)
        self.groups["public"] = list(write_models(folder).values())

    def one_pass(self, number: int) -> None:
        """Time every model alone and in its block, in random order."""
        todo = [([path], "alone") for path in itertools.chain(*self.groups.values())]
        todo += [(paths, f"block of {len(paths)}") for paths in self.groups.values()]
        self._random.shuffle(todo)
        for index, (paths, kind) in enumerate(todo):
            out = self._folder / f"{number}-{index}.json"
            self._time(paths, out, self._alone if kind == "alone" else [])
            found = json.loads(out.read_text())
            for result in found["results"]:
                name = Path(result["model"]).stem
                self.taken[kind][name].append(_entry(result, number))
            if kind != "alone":
                self.ratios += _ratios(found, kind, number)
            out.unlink()
        if number % CAMPAIGN_EVERY == 0:
            self._campaign(number)

    def _time(self, paths: list[Path], out: Path, options: list[str]) -> None:
        command = [_PROGRAM, "time", *map(str, paths), *options]
        done = subprocess.run(
            [*command, "--json", str(out)], capture_output=True, text=True, check=False
        )
        if not out.exists():
            raise SystemExit(f"{' '.join(command)} gave no result: {done.stderr}")

    def _campaign(self, number: int) -> None:
        run = self._folder / f"campaign-{number}"
        command = [_PROGRAM, "profile", "--run", str(run)]
        options = "--space resnet --resolution 64 --width-mult 0.25 --initial 24 --max-models 24"
        done = subprocess.run(
            [*command, *options.split(), "--predictor", "ridge", "-q"],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            frame = load_run(run).measurements()
        except Exception as error:
            raise SystemExit(f"the campaign failed ({error}): {done.stderr}") from error
        for row in frame.to_dict("records"):
            self.taken["campaign"][str(row["architecture_key"])].append(
                {
                    "pass": number,
                    "latency_ms": row["latency_ms"],
                    "half": row["interval_percent"] / 100,
                    "raw_ms": row.get("raw_ms", row["latency_ms"]),
                    "verdict": str(row["verdict"]),
                }
            )

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per kind of timing and model."""
        return [
            {"kind": kind, "model": name, **held(entries)}
            for kind, models in self.taken.items()
            for name, entries in models.items()
            if len(entries) > 2
        ]

    def ratio_rows(self) -> list[dict[str, Any]]:
        """Return a row per pair of models that `time` compared in every pass."""
        found: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for ratio in self.ratios:
            found[ratio["kind"], ratio["pair"]].append(ratio)
        return [
            {"kind": f"ratios, {kind}", "model": pair, **held(entries)}
            for (kind, pair), entries in found.items()
            if len(entries) > 2
        ]


def held(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how often the intervals of a model contain the mean of its other passes."""
    logs = np.log([entry["latency_ms"] for entry in entries])
    half = np.array([entry["half"] for entry in entries], dtype=float)
    count = len(logs)
    others = (logs.sum() - logs) / (count - 1)
    spread = float(logs.std(ddof=1))
    asked = t_quantile(count - 1) * spread * np.sqrt(1 + 1 / (count - 1))
    return {
        "passes": count,
        "latency_ms": float(np.exp(logs.mean())),
        "sd_percent": 100 * spread,
        "raw_sd_percent": float(100 * np.log([e["raw_ms"] for e in entries]).std(ddof=1)),
        "held_percent": float(100 * np.mean(np.abs(logs - others) <= half)),
        "half_percent": float(100 * half.mean()),
        "asked_percent": float(100 * asked),
    }


def _entry(result: dict[str, Any], number: int) -> dict[str, Any]:
    if result["status"] != "success":
        raise SystemExit(f"{result['model']} failed: {result['failure']}")
    percent = result["ci95_percent"]
    return {
        "pass": number,
        "latency_ms": result["trimmed_mean_ms"],
        "half": float("inf") if percent is None else percent / 100,
        "raw_ms": result.get("raw_ms", result["trimmed_mean_ms"]),
        "verdict": result["verdict"],
    }


def _ratios(found: dict[str, Any], kind: str, number: int) -> Iterator[dict[str, Any]]:
    """Yield the ratios of a block, in the order of names, as the faster of two may change."""
    names = [Path(result["model"]).stem for result in found["results"]]
    for comparison in found["comparisons"]:
        if comparison["ci95"] is None:
            continue
        low, high = comparison["ci95"]
        of, to = names[comparison["of"]], names[comparison["to"]]
        sign = 1 if of < to else -1
        yield {
            "kind": kind,
            "pair": " / ".join(sorted((of, to))),
            "pass": number,
            "latency_ms": comparison["ratio"] ** sign,
            "raw_ms": comparison["ratio"] ** sign,
            "half": float(np.log(high / low) / 2),
        }


def _of_depth(depth: int) -> Architecture:
    space = load_space("resnet", resolution=64, width_mult=0.25)
    sampler = RandomSampler(space, DepthBins(space.min_depth, space.max_depth, BINS))
    drawn = sampler.sample(2000, np.random.default_rng(8))
    return next(a for a in drawn if a.depth == depth)


def report(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Print the rows and their summary by kind; return the summary."""
    print(
        f"{'kind':22}{'model':18}{'latency':>10}{'SD raw':>8}{'SD':>7}{'half':>7}"
        f"{'asked':>7}{'held':>7}"
    )
    for row in rows:
        print(
            f"{row['kind']:22}{row['model'][:17]:18}{row['latency_ms']:8.3f}"
            f"{row['raw_sd_percent']:8.1f} %{row['sd_percent']:5.1f} %{row['half_percent']:5.1f} %"
            f"{row['asked_percent']:5.1f} %{row['held_percent']:5.0f} %"
        )
    summary = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        mean = {
            key: float(np.mean([row[key] for row in own]))
            for key in (
                "held_percent",
                "sd_percent",
                "raw_sd_percent",
                "half_percent",
                "asked_percent",
            )
        }
        mean["least_held_percent"] = min(row["held_percent"] for row in own)
        mean["half_over_asked"] = mean["half_percent"] / mean["asked_percent"]
        summary[kind] = mean
        print(
            f"{kind}: holds {mean['held_percent']:.0f} % "
            f"(least {mean['least_held_percent']:.0f} %), "
            f"half-width {mean['half_over_asked']:.2f} of what the spread asks for; SD "
            f"{mean['sd_percent']:.1f} %, as measured {mean['raw_sd_percent']:.1f} %"
        )
    return summary


def write(study: Coverage, path: Path) -> None:
    """Save the measurements so far."""
    rows = [*study.rows(), *study.ratio_rows()]
    data = {"rows": rows, "taken": study.taken, "ratios": study.ratios}
    path.write_text(json.dumps(data, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--every", type=float, default=360.0, help="seconds between passes")
    parser.add_argument("--max-time", type=float, default=6.0, help="seconds of a model alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Coverage(Path(folder), args.max_time)
        for number in range(args.passes):
            began = time.monotonic()
            study.one_pass(number)
            print(
                f"pass {number + 1} of {args.passes}: {time.monotonic() - began:.0f} s", flush=True
            )
            if number + 1 < args.passes:
                time.sleep(max(0.0, args.every - (time.monotonic() - began)))
        report([*study.rows(), *study.ratio_rows()])
        if args.json:
            write(study, args.json)


if __name__ == "__main__":
    main()
