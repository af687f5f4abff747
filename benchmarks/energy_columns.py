"""Accuracy of `auto` on HW-NAS-Bench's energies, with and without latencies of other devices.

    ESM_DATA=DIR python -m benchmarks.energy_columns [--seeds 5] [--json FILE]

hwnasbench_energy has the energies of all cells of NAS-Bench-201 on the accelerators Eyeriss and
FPGA, from the benchmark's models of these. Random cells are learnt from, and all others are
predicted. Sources are the latencies of nasbench201 by device, of 800 random cells each, without the
accelerator's own latencies. ± is the standard deviation between seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.public_tables import table_path
from esm_host.dataset.benchmarks import LatencyTable, read_benchmark
from esm_host.encoding.base import Encoder
from esm_host.encoding.views import ViewsEncoder
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.evaluation.ranking import rank_correlations
from esm_host.predictors.auto import AutoPredictor
from esm_host.transfer.source import Source
from esm_host.transfer.source_models import sources_encoder

DEVICES = ("eyeriss", "fpga")
SIZES = (20, 100, 500)
PER_SOURCE = 800


def sources_of(table: LatencyTable, but: str, seed: int) -> list[Source]:
    """Return the latencies of all devices but one, for some random architectures."""
    rows = np.random.default_rng(seed).choice(len(table), PER_SOURCE, replace=False)
    codes, found = table.codes[rows], []
    for device, latency_ms in table.latency_ms.items():
        there = np.isfinite(latency_ms[rows])
        if device != but:
            own = codes if there.all() else codes[there]
            found.append(Source(device, table.space, own, latency_ms[rows][there]))
    return found


def compute(
    energies: LatencyTable, latencies: LatencyTable, device: str, seed: int, sizes: Sequence[int]
) -> list[dict[str, object]]:
    """Return the figures of one device and seed, a row per size and kind of predictor."""
    encoders: dict[str, Encoder] = {
        "without": ViewsEncoder(energies.space),
        "with": sources_encoder(energies.space, sources_of(latencies, device, seed)),
    }
    truth = energies.energy_mj[device]
    order = np.random.default_rng(seed).permutation(len(truth))
    found: list[dict[str, object]] = []
    for sources, encoder in encoders.items():
        encoded = encoder.encode_codes(energies.codes)
        for size in sizes:
            rows, rest = order[:size], order[size:]
            predictor = AutoPredictor(encoder.layout, seed).fit(encoded[rows], truth[rows])
            about = {"device": device, "sources": sources, "samples": size, "seed": seed}
            found.append(about | figures(predictor, encoded[rest], truth[rest]))
    return found


def figures(
    predictor: AutoPredictor, encoded: NDArray[np.float32], truth: NDArray[np.float64]
) -> dict[str, float]:
    predicted = predictor.predict(encoded)
    low, high = predictor.predict_interval(encoded, 0.9)
    return {
        "accuracy": accuracy_percent(truth, predicted),
        "error_mj": float(np.abs(predicted - truth).mean()),
        "spearman": rank_correlations(truth, predicted).spearman,
        "covered": float(100 * ((low <= truth) & (truth <= high)).mean()),
    }


def table_of(frame: pd.DataFrame) -> str:
    """Return a row per device, size and kind of predictor: means and spread over seeds."""
    lines = [
        "| energy on | samples | sources | accuracy (%) | mean error (mJ) | Spearman | in 90 % "
        "intervals (%) |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for (device, samples, sources), group in frame.groupby(
        ["device", "samples", "sources"], sort=False
    ):
        cells = [
            f"{group[name].mean():.{digits}f} ±{group[name].std():.{digits}f}"
            for name, digits in (("accuracy", 3), ("error_mj", 5), ("spearman", 4), ("covered", 0))
        ]
        lines.append(f"| {device} | {samples} | {sources} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    energies, latencies = (
        read_benchmark(table_path(name)) for name in ("hwnasbench_energy", "nasbench201")
    )
    found = [
        row
        for device in DEVICES
        for seed in range(args.seeds)
        for row in compute(energies, latencies, device, seed, SIZES)
    ]
    print(table_of(pd.DataFrame(found)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
