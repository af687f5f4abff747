"""Coverage and repeatability in one run, pass by pass in turn.

    python -m benchmarks.over_an_hour [--passes 10] [--every 420] [--max-time 6] --json FOLDER

What differs from hour to hour of the device then meets both alike. Passes begin at least --every
seconds apart; the results of benchmarks.coverage and benchmarks.repeatability go to a folder after
every pass.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from benchmarks import coverage, repeatability


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--every", type=float, default=420.0, help="seconds between passes")
    parser.add_argument("--max-time", type=float, default=6.0, help="seconds of a model alone")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    args.json.mkdir(parents=True, exist_ok=True)
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


if __name__ == "__main__":
    main()
