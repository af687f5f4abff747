"""Cost of building and sending a graph, with and without weights.

    python -m benchmarks.graphs [--json FILE]

The largest subnet of every search space at full size (224 px, width x1).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from esm_models.spaces import SPACES, load_space
from esm_protos.weights import draw_weights

REPEATS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = {}
    for name in SPACES:
        space = load_space(name)
        _, largest = space.extremes()
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            data = space.build(largest)
            seconds.append(time.perf_counter() - start)
        rows[name] = {
            "blocks": largest.depth,
            "build_ms_median": 1e3 * statistics.median(seconds),
            "build_ms_max": 1e3 * max(seconds),
            "bytes_weightless": len(data),
            "bytes_with_weights": len(space.build(largest, draw_weights)),
        }
    print(f"{'space':12}{'blocks':>8}{'build':>10}{'slowest':>10}{'bytes':>10}{'with weights':>14}")
    for name, row in rows.items():
        print(
            f"{name:12}{row['blocks']:8}{row['build_ms_median']:7.1f} ms"
            f"{row['build_ms_max']:7.1f} ms{row['bytes_weightless'] / 1e3:7.0f} KB"
            f"{row['bytes_with_weights'] / 1e6:11.1f} MB"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
