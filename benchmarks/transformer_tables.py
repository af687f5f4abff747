"""Accuracy on HAT's published latencies of a Raspberry Pi 4, from 20 samples and a Xeon.

    ESM_DATA=DIR python -m benchmarks.transformer_tables [--seeds 10] [--json FILE]

The tables hat_raspberrypi and hat_xeon have 2,000 encoder-decoder transformers each, and none is in
both. They have no architectures, but ten features. So `auto` gets columns: these features, products
of them that grow as the work of encoder and decoder does, and their logarithms. The Xeon is a
source: `auto` learns its latencies from 800 networks and predicts them for those of the Raspberry
Pi, three more columns. 20 networks are chosen out of 1,500, or drawn at random, and all others are
predicted. The latency is that of encoder and decoder together; "apart" adds a predictor of each. ±
is the standard deviation between seeds.

The columns were fixed by the reverse task, the Xeon from the Raspberry Pi.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.public_tables import table_path
from esm_host.dataset.benchmarks import read_parquet
from esm_host.encoding.base import Layout
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.evaluation.ranking import rank_correlations
from esm_host.predictors.auto import AutoPredictor
from esm_host.sampling.informative import most_informative, prior_features
from esm_models.spaces.hat import CHANNELS, HATSpace

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

SAMPLES, POOL, KNOWN, TOKENS = 20, 1500, 800, 30
BOTH, APART, ENCODER, DECODER = "both", "both, apart", "encoder", "decoder"
ALONE, WITH_SOURCE, PLAIN = "`auto`", "`auto` and the Xeon", "`auto` on the ten features alone"
CEILING = "`auto`, 800 samples"


class Columns:
    """Columns of all rows of a table, in groups.

    Args:
        groups: Columns by group, ``(n, columns)`` each.
    """

    def __init__(self, groups: Mapping[str, Floats]) -> None:
        self.groups = groups
        self.values = np.concatenate([*groups.values()], axis=1).astype(np.float32)
        ends = np.cumsum([group.shape[1] for group in groups.values()]).tolist()
        starts = [0, *ends[:-1]]
        self.layout = Layout(dict(zip(groups, zip(starts, ends, strict=True), strict=True)))

    def fit(self, rows: Rows, latency_ms: Floats, seed: int) -> AutoPredictor:
        return AutoPredictor(self.layout, seed).fit(self.values[rows], latency_ms[rows])

    def chosen(self, pool: Rows) -> Rows:
        """Return the most informative rows of a pool."""
        features = prior_features(self.values[pool], self.layout.groups)
        return pool[most_informative(features, SAMPLES)]


def features(table: pd.DataFrame) -> dict[str, Floats]:
    """Return the columns of a table by group.

    Costs are multiply-adds per token, and what each layer does once: its heads and the encoder
    layers that it reads.
    """
    width, hidden, heads, layers = (
        {side: table[f"{side}_{name}"].to_numpy(float) for side in (ENCODER, DECODER)}
        for name in ("embed_dim", "ffn_embed_dim_avg", "self_attention_heads_avg", "layer_num")
    )
    cross_heads = table["decoder_ende_attention_heads_avg"].to_numpy(float)
    read = table["decoder_arbitrary_ende_attn_avg"].to_numpy(float)
    encoder = layers[ENCODER] * width[ENCODER] * (4 * CHANNELS + 2 * hidden[ENCODER])
    depth = layers[DECODER]
    decoder = depth * width[DECODER] * (6 * CHANNELS + 2 * hidden[DECODER])
    head = width[DECODER] * HATSpace.vocabulary
    once = 2 * CHANNELS * depth * read * width[ENCODER]  # keys and values of the encoder
    costs = [
        *(width[ENCODER], encoder, heads[ENCODER]),
        *(depth, width[DECODER], depth * width[DECODER], decoder, head + decoder, once),
        *(depth * each for each in (heads[DECODER], cross_heads, read)),
    ]
    logs = [encoder, depth, decoder, head + decoder, encoder + TOKENS * (head + decoder)]
    plain = [*width.values(), *hidden.values(), *heads.values(), depth, cross_heads, read]
    return {
        "features": np.stack(plain, axis=1),
        "costs": np.stack(costs, axis=1),
        "log-costs": np.log(np.stack(logs, axis=1)),
    }


def latencies(table: pd.DataFrame) -> dict[str, Floats]:
    """Return the latencies of encoder and decoder, and of both together, ms."""
    alone = {part: table[f"lat_ms_{part}"].to_numpy(float) for part in (ENCODER, DECODER)}
    return {BOTH: alone[ENCODER] + alone[DECODER], **alone}


def of_source(source: pd.DataFrame, target: pd.DataFrame) -> Floats:
    """Return log latencies of the target's networks on the source device, ``(n, 3)``."""
    known, asked = Columns(features(source)), Columns(features(target))
    rows = np.random.default_rng(0).permutation(len(source))[:KNOWN]
    predicted = [
        known.fit(rows, latency_ms, 0).predict(asked.values)
        for latency_ms in latencies(source).values()
    ]
    return np.log(np.stack(predicted, axis=1))


def compute(target: pd.DataFrame, source: Floats, seed: int) -> list[dict[str, object]]:
    """Return the figures of one seed, a row per method, choice of samples and part."""
    own, truth = features(target), latencies(target)
    alone, with_source = Columns(own), Columns({"sources": source, **own})
    order = np.random.default_rng(seed).permutation(len(target))
    random = order[:SAMPLES]
    found: list[dict[str, object]] = []
    for method, kind, columns, rows in (
        (PLAIN, "random", Columns({"features": own["features"]}), random),
        (ALONE, "random", alone, random),
        (ALONE, "chosen", alone, alone.chosen(order[:POOL])),
        (WITH_SOURCE, "random", with_source, random),
        (WITH_SOURCE, "chosen", with_source, with_source.chosen(order[:POOL])),
        (CEILING, "random", alone, order[:KNOWN]),
    ):
        rest = np.setdiff1d(order, rows)
        predicted, covered = {}, {}
        for part, latency_ms in truth.items():
            predictor = columns.fit(rows, latency_ms, seed)
            predicted[part] = predictor.predict(columns.values[rest])
            low, high = predictor.predict_interval(columns.values[rest], 0.9)
            inside = (low <= latency_ms[rest]) & (latency_ms[rest] <= high)
            covered[part] = float(100 * inside.mean())
        predicted[APART] = predicted[ENCODER] + predicted[DECODER]
        for part, values in predicted.items():
            measured = truth[BOTH if part == APART else part][rest]
            found.append(
                {
                    "part": part,
                    "method": method,
                    "samples": kind,
                    "seed": seed,
                    "spearman": rank_correlations(measured, values).spearman,
                    "error": 100 - accuracy_percent(measured, values),
                    "covered": covered.get(part),
                }
            )
    return found


def table_of(frame: pd.DataFrame) -> str:
    """Return a row per part, method and choice of samples: means and spread over seeds."""
    lines = [
        "| latency of | method | samples | Spearman | mean error (%) | in 90 % intervals (%) |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for part in (BOTH, APART, DECODER, ENCODER):
        some = frame[frame["part"] == part]
        for (method, samples), group in some.groupby(["method", "samples"], sort=False):
            cells = [
                f"{group[name].mean():.{digits}f} ±{group[name].std():.{digits}f}"
                if group[name].notna().all()
                else ""
                for name, digits in (("spearman", 3), ("error", 1), ("covered", 0))
            ]
            lines.append(f"| {part} | {method} | {samples} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--target", default="hat_raspberrypi", help="table of the new device")
    parser.add_argument("--source", default="hat_xeon", help="table of the known device")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    target, source = (read_parquet(table_path(name)) for name in (args.target, args.source))
    known = of_source(source, target)
    found = [row for seed in range(args.seeds) for row in compute(target, known, seed)]
    print(table_of(pd.DataFrame(found)))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
