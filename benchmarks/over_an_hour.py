"""Coverage and repeatability in one run, pass by pass in turn.

    python -m benchmarks.over_an_hour [--passes 10] [--every 420] [--max-time 6] --json FOLDER

What differs from hour to hour of the device then meets both alike. Passes begin at least --every
seconds apart; the results of benchmarks.coverage and benchmarks.repeatability go to a folder after
every pass. At the end, `paces.png` shows what the device's reference models took meanwhile.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks import coverage, repeatability
from esm_agent.measure.history import history_file
from esm_agent.measure.references import reference_models
from esm_host.report import plots
from esm_protos.graphs import weight_bytes


def paces(since_unix_s: float) -> pd.DataFrame:
    """Return the slowdown of the reference models since a time, minute by minute."""
    lines = [json.loads(line) for line in history_file().read_text().split("\n") if line]
    lines = [line for line in lines if line["at_unix_s"] >= since_unix_s]
    weight_mb = {model.model_id: weight_bytes(model.path) / 1e6 for model in reference_models()}
    rows = [
        {
            "block": number,
            "device": "local",
            "at_s": line["at_unix_s"] - since_unix_s,
            "reference": name,
            "weight_mb": weight_mb[name],
            "latency_ns": latency_ns,
        }
        for number, line in enumerate(lines)
        for name, latency_ns in sorted(line["latency_ns"].items(), key=lambda e: weight_mb[e[0]])
    ]
    frame = pd.DataFrame(rows)
    # One point a minute: single blocks vary more, and hide what lasts.
    minute = (frame["at_s"] // 60).rename("minute")
    frame = frame.groupby(["reference", "weight_mb", "device", minute], sort=False).median()
    frame = frame.reset_index().sort_values(["weight_mb", "minute"])
    usual_ns = frame.groupby("reference")["latency_ns"].transform("median")
    return frame.assign(slower_percent=100 * (frame["latency_ns"] / usual_ns - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--every", type=float, default=420.0, help="seconds between passes")
    parser.add_argument("--max-time", type=float, default=6.0, help="seconds of a model alone")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.json.mkdir(parents=True, exist_ok=True)
    began_unix_s = time.time()
    with tempfile.TemporaryDirectory() as folder:
        intervals = coverage.Coverage(Path(folder), args.max_time)
        repeats = repeatability.Repeatability()
        for number in range(args.passes):
            began = time.monotonic()
            intervals.one_pass(number)
            repeats.one_pass(number)
            took_s = time.monotonic() - began
            print(f"pass {number + 1} of {args.passes}: {took_s:.0f} s", flush=True)
            coverage.write(intervals, args.json / "coverage.json")
            if number > 1:
                rows = repeats.rows()
                text = json.dumps({"protocols": rows}, indent=2) + "\n"
                (args.json / "repeatability.json").write_text(text)
            if number + 1 < args.passes:
                time.sleep(max(0.0, args.every - took_s))
        coverage.report([*intervals.rows(), *intervals.ratio_rows()])
        repeatability.report(repeats.rows())
    plots.save(plots.paces(paces(began_unix_s)), args.json / "paces.png")


if __name__ == "__main__":
    main()
