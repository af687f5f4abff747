"""Repeatability and cost of measurements, and their agreement with consecutive runs.

    python -m benchmarks.repeatability [--passes 10] [--every 360] [--resolution 64] [--json FILE]

Measures the same 24 ResNet subnets (width x0.25) pass after pass, in every pass by each protocol in
turn (the order rotates): as a campaign does, until every interval is within 2 %; 150 runs in a row
(the ESM paper's); and in a row with as many runs as take the device as long as the first.
Repeatability is the standard deviation of the log latency between passes, averaged over the models.

The first is evaluated in several ways, from the same samples: at the device's usual pace as we
report it; with one pace for all models of a block, which the campaign's own references tell (what
versions before did); and with a low-rank factor model whose loadings are fitted to each model's
other passes, which a campaign that measures every model once could not do.

Against runs in a row, which are at the pace of their moment, count the latencies as measured, taken
to warm caches: those at the usual pace differ by how unusual the moment is.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.evaluation.quality import judge
from esm_host.evaluation.warm import warm_ratios, warming
from esm_host.extension.settings import Settings
from esm_host.sampling.balanced import BalancedSampler
from esm_host.sampling.bins import DepthBins
from esm_host.sampling.random import RandomSampler
from esm_host.transport.local import LocalProfiler
from esm_models.architecture import Architecture
from esm_models.spaces import load_space
from esm_protos.estimates import estimate_measured
from esm_protos.messages import Block, BlockResult, MeasureSpec, Model, RunOrder
from esm_protos.statistics import trimmed_mean

MODELS, REFERENCES, BINS = 24, 4, 4
LARGE_BYTES = 10_000_000
WARM = "   as measured, warm"
CAMPAIGN, IN_A_ROW, MATCHED = "campaign", "150 in a row", "in a row, same time"
CAMPAIGN_SPEC = Settings("local").spec
_SPECS = {
    CAMPAIGN: CAMPAIGN_SPEC,
    IN_A_ROW: MeasureSpec(run_order=RunOrder.SEQUENTIAL, warmup=10),
    MATCHED: MeasureSpec(run_order=RunOrder.SEQUENTIAL, warmup=10),
}

Logs = NDArray[np.float64]


class Repeatability:
    """Passes over the same models, by protocol."""

    def __init__(self, resolution: int = 64, width_mult: float = 0.25) -> None:
        space = load_space("resnet", resolution=resolution, width_mult=width_mult)
        chosen = architectures(resolution, width_mult)
        self.models = [Model(a.key, space.build(a)) for a in chosen]
        bins = DepthBins(space.min_depth, space.max_depth, BINS)
        self.bins = bins.of(np.array([a.depth for a in chosen[REFERENCES:]]))
        self.results: dict[str, list[BlockResult]] = {name: [] for name in _SPECS}

    def one_pass(self, number: int) -> None:
        """Measure all models once by each protocol, with an agent of the pass's own."""
        with LocalProfiler() as profiler:
            profiler.measure(Block("warm up", MeasureSpec(runs=30), tuple(self.models)))
            order = [IN_A_ROW]
            order.insert(number % 2, CAMPAIGN)
            for name in [*order, MATCHED]:  # how long the campaign's block took is known then
                spec = replace(_SPECS[name], seed=number)
                if name == MATCHED:
                    ratio = self._seconds(CAMPAIGN) / self._seconds(IN_A_ROW)
                    spec = replace(spec, runs=max(round(150 * ratio), 10))
                row = spec.run_order is RunOrder.SEQUENTIAL
                models = tuple(self.models[REFERENCES if row else 0 :])
                block = Block(uuid.uuid4().hex, spec, models)
                self.results[name].append(profiler.measure(block))

    def _seconds(self, name: str) -> float:
        return self.results[name][-1].running_ns / 1e9

    def logs(self) -> dict[str, Logs]:
        """Return log latencies by protocol and evaluation, shape ``(passes, models)``."""
        campaign = self.results[CAMPAIGN]
        usual = next((r.usual for r in reversed(campaign) if r.usual is not None), None)
        alone = [
            estimate_measured(r.measurements, CAMPAIGN_SPEC, r.references, usual) for r in campaign
        ]
        first = np.log([[m.latency_ns for m in e.models] for e in alone])
        base = np.median(first[:, :REFERENCES], axis=0)
        error = 1.25 * first[:, :REFERENCES].std(axis=0, ddof=1) / len(campaign) ** 0.5
        known = {
            model.model_id: (float(np.exp(b)), float(e))
            for model, b, e in zip(self.models[:REFERENCES], base, error, strict=True)
        }
        ours = [
            estimate_measured(r.measurements, CAMPAIGN_SPEC, r.references, usual, known)
            for r in campaign
        ]
        paced = [estimate_measured(r.measurements, CAMPAIGN_SPEC) for r in campaign]
        single = np.log([[m.latency_ns for m in e.models] for e in paced])
        factors = judge(np.exp(single[:, :REFERENCES]), common_pace=True).factors
        told = np.log([[trimmed_mean(m.latency_ns, 0.2) for m in r.references] for r in campaign])
        warm = np.log(self._warm())
        raw = np.log([[m.raw_ns for m in e.models] for e in ours])[:, REFERENCES:]
        return {
            "ours, at the usual pace": np.log([[m.latency_ns for m in e.models] for e in ours])[
                :, REFERENCES:
            ]
            + warm,
            "   the agent's references alone": first[:, REFERENCES:] + warm,
            "   one pace for all": (single - np.log(factors)[:, None])[:, REFERENCES:],
            "   low rank, two factors": _low_rank(single, told)[:, REFERENCES:],
            WARM: raw + warm,
            "   as measured": raw,
            IN_A_ROW: _rows(self.results[IN_A_ROW]),
            MATCHED: _rows(self.results[MATCHED]),
        }

    def _warm(self) -> NDArray[np.float64]:
        """Return the ratio of warm to cold latency of each model, shape ``(models,)``."""
        found = [
            warming([result.measurements[index] for result in self.results[CAMPAIGN]], 0.2)
            for index in range(REFERENCES, len(self.models))
        ]
        ratios, _ = warm_ratios(found)
        return ratios

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per protocol and evaluation."""
        logs = self.logs()
        large = self._large()
        rows = []
        for text, values in logs.items():
            name = text if text in self.results else CAMPAIGN
            # Against the row in the same pass: both met the same noise, more or less.
            bias = (values - logs[IN_A_ROW]).mean(axis=0)
            by_pass = (values - logs[IN_A_ROW]).mean(axis=1)
            runs = [len(m.latency_ns) for r in self.results[name] for m in r.measurements]
            rows.append(
                {
                    "protocol": text,
                    "sd_percent": _spread_percent(values),
                    "sd_large_percent": _spread_percent(values[:, large]),
                    "sd_others_percent": _spread_percent(values[:, ~large]),
                    "device_s_per_pass": float(
                        np.mean([r.busy_ns for r in self.results[name]]) / 1e9
                    ),
                    "counted_runs_per_model": float(np.mean(runs)),
                    "mean_against_row_percent": float(100 * bias.mean()),
                    "mean_against_row_se_percent": float(
                        100 * by_pass.std(ddof=1) / len(by_pass) ** 0.5
                    ),
                    "bins_against_row_percent": [
                        float(100 * bias[self.bins == b].mean()) for b in range(BINS)
                    ],
                }
            )
        return rows

    def _large(self) -> NDArray[np.bool_]:
        taken = self.results[CAMPAIGN][0].measurements[REFERENCES:]
        return np.array([m.weight_bytes > LARGE_BYTES for m in taken])


def architectures(resolution: int, width_mult: float) -> list[Architecture]:
    """Return reference models, then models balanced over depth."""
    space = load_space("resnet", resolution=resolution, width_mult=width_mult)
    bins = DepthBins(space.min_depth, space.max_depth, BINS)
    rng = np.random.default_rng(5)
    sampler = BalancedSampler(space, bins)
    chosen = RandomSampler(space, bins).sample(REFERENCES, rng)
    for index, quota in enumerate(sampler.quotas(MODELS)):
        chosen += sampler.sample(quota, rng, index)
    return chosen


def _rows(results: list[BlockResult]) -> Logs:
    return np.log([[trimmed_mean(m.latency_ns, 0.2) for m in r.measurements] for r in results])


def _low_rank(values: Logs, references: Logs, rank: int = 2) -> Logs:
    """Return the residuals of each pass without the factors of the references.

    Factors are principal components of the references' logs; loadings are fitted to the other
    passes.
    """
    centred = references - references.mean(axis=0)
    scores = np.linalg.svd(centred, full_matrices=False)[0][:, :rank]
    left = np.empty_like(values)
    for row in range(len(values)):
        others = np.arange(len(values)) != row
        design = np.column_stack([np.ones(others.sum()), scores[others]])
        beta = np.linalg.lstsq(design, values[others], rcond=None)[0]
        left[row] = values[row] - scores[row] @ beta[1:]
    return left


def _spread_percent(table: Logs) -> float:
    return float(100 * table.std(axis=0, ddof=1).mean()) if table.size else float("nan")


def report(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{'protocol':34}{'SD':>7}{'> 10 MB':>9}{'others':>8}{'device':>9}{'runs':>6}"
        f"{'mean against the row':>22}  by depth bin"
    )
    for row in rows:
        bins = " ".join(f"{value:+.1f}" for value in row["bins_against_row_percent"])
        print(
            f"{row['protocol']:34}{row['sd_percent']:5.1f} %{row['sd_large_percent']:7.1f} %"
            f"{row['sd_others_percent']:6.1f} %{row['device_s_per_pass']:7.1f} s"
            f"{row['counted_runs_per_model']:6.0f}{row['mean_against_row_percent']:+11.1f} % "
            f"+- {row['mean_against_row_se_percent']:.1f}   {bins}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--every", type=float, default=360.0, help="seconds between passes")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--width-mult", type=float, default=0.25)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    study = Repeatability(args.resolution, args.width_mult)
    for number in range(args.passes):
        began = time.monotonic()
        study.one_pass(number)
        print(f"pass {number + 1} of {args.passes}: {time.monotonic() - began:.0f} s", flush=True)
        if number + 1 < args.passes:
            time.sleep(max(0.0, args.every - (time.monotonic() - began)))
    rows = study.rows()
    report(rows)
    if args.json:
        args.json.write_text(json.dumps({"protocols": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
