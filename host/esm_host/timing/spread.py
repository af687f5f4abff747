"""Timing spread over minutes: blocks at several moments, and one estimate from all of them.

Runs of one block do not show how the device varies over minutes. The spread between blocks at
several moments does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.evaluation.difference import Ratio
from esm_host.evaluation.verdict import Verdict
from esm_protos.estimates import Estimate, Parts
from esm_protos.messages import BlockResult, Measurement, UsualLatencies
from esm_protos.metrics import THREADS_USED, Metric, known_and_told
from esm_protos.paces import Shift
from esm_protos.statistics import t_quantile

FEWEST, MOST = 3, 10
"""Least and largest number of blocks."""
_GAP_S = 60.0
"""Time between the starts of blocks, if their number is within its limits."""
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_S = 7 * 86_400.0
_NUMBER = re.compile(r"[\d.,]+")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smh])")


def parse_duration(given: str | float, name: str = "spread") -> float:
    """Return seconds from a text such as ``"30s"``, ``"10m"`` or ``"1h"``, or from a number.

    Raises:
        UsageError: the value is not a duration above 0 and up to a week.
    """
    seconds = math.nan
    if not isinstance(given, str):
        seconds = float(given)
    elif found := _DURATION.fullmatch(given.strip().lower()):
        seconds = float(found[1]) * _SECONDS[found[2]]
    if not 0 < seconds <= _LONGEST_S:
        raise UsageError(
            f"{argument(name)} {given}: give a duration up to 168h, such as 30s, 10m or 1h"
        )
    return seconds


def block_starts(spread_s: float) -> list[float]:
    """Return the start times of blocks spread evenly over a time, in seconds from now on."""
    if not spread_s:
        return [0.0]
    count = min(max(round(spread_s / _GAP_S), FEWEST), MOST)
    return [number * spread_s / count for number in range(count)]


def common_usual_latencies(blocks: Sequence[BlockResult]) -> UsualLatencies | None:
    """Return the usual latencies with the most moments; all blocks are compared with them."""
    told = [block.usual for block in blocks if block.usual is not None]
    return max(told, key=lambda usual: usual.moments, default=None)


def pool(estimates: Sequence[Estimate]) -> Estimate:
    """Return one estimate from a model's estimates in several blocks.

    The latency is the geometric mean. Its interval is Student's over the blocks, plus the error
    that the blocks share, which their spread does not show.
    """
    if len(estimates) == 1:
        return estimates[0]
    mean, between = _mean([estimate.latency_ns for estimate in estimates])
    raw, _ = _mean([estimate.raw_ns for estimate in estimates])
    told = [estimate.parts for estimate in estimates]
    if any(math.isinf(estimate.within) for estimate in estimates):  # too few runs
        between = math.inf
    parts = Parts(
        runs=float(np.sqrt(np.mean([parts.within**2 for parts in told]) / len(told))),
        history=max(parts.history for parts in told),
        moments=max(parts.moments for parts in told),
        blocks=between,
    )
    shifts = [estimate.shift for estimate in estimates if estimate.shift is not None]
    return Estimate(mean, raw, parts, _mean_shift(shifts))


def pool_ratios(ratios: Sequence[Ratio], shared: float) -> Ratio:
    """Return one ratio from the ratios of two models in several blocks.

    Args:
        ratios: Ratios, one per block.
        shared: Half-width of the 95 % interval of the error that all blocks share, a logarithm.
    """
    mean, between = _mean([ratio.value for ratio in ratios])
    half = math.hypot(between, shared)
    known = all(ratio.interval is not None for ratio in ratios)
    interval = (mean * math.exp(-half), mean * math.exp(half)) if known else None
    return Ratio(mean, interval, all(ratio.paired for ratio in ratios))


def pool_evidence(
    blocks: Sequence[Sequence[tuple[Verdict, str]]],
) -> list[tuple[Verdict, str]]:
    """Return the evidence against the latencies of several blocks, each kind once.

    Args:
        blocks: Evidence of each block. Texts that differ only in their numbers are one kind.
    """
    if len(blocks) == 1:
        return list(blocks[0])
    kinds: dict[tuple[Verdict, str], list[str]] = {}
    for evidence in blocks:
        for verdict, text in evidence:
            kinds.setdefault((verdict, _NUMBER.sub("", text)), []).append(text)
    return [
        (verdict, f"{texts[0]} (in {len(texts)} of {len(blocks)} blocks)")
        for (verdict, _), texts in kinds.items()
    ]


def join(
    measurements: Sequence[Measurement], starts_ns: Sequence[int], metrics: Sequence[Metric] = ()
) -> Measurement:
    """Join a model's measurements in several blocks into one, in time order.

    Args:
        measurements: Measurements, one per block.
        starts_ns: Start of each block after the first one's, ns.
        metrics: Metrics that the device reports.
    """
    first = measurements[0]
    for measurement in measurements:
        if measurement.failure is not None:
            return measurement
    taken = dict.fromkeys(key for measurement in measurements for key in measurement.metrics)
    known = {metric.key: metric for metric in known_and_told(metrics, taken)}
    values = {key: [m.metrics[key] for m in measurements if key in m.metrics] for key in taken}
    first = replace(
        first,
        metrics={key: known[key].one(each) for key, each in values.items()},
        threads_used=THREADS_USED.one([m.threads_used for m in measurements]),
    )
    if len(measurements) == 1:
        return first
    return replace(
        first,
        latency_ns=np.concatenate([m.latency_ns for m in measurements]),
        start_ns=np.concatenate(
            [m.start_ns + start for m, start in zip(measurements, starts_ns, strict=True)]
        ),
        session_runs=tuple(
            runs for m in measurements for runs in (m.session_runs or (len(m.latency_ns),))
        ),
    )


def _mean_shift(shifts: Sequence[Shift]) -> Shift | None:
    if not shifts:
        return None
    return Shift(*np.mean([astuple(shift) for shift in shifts], axis=0).tolist())


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the geometric mean, and the half-width of its logarithm's 95 % interval."""
    logs: NDArray[np.float64] = np.log(values)
    count = len(logs)
    error = float(logs.std(ddof=1)) / math.sqrt(count)
    return math.exp(float(logs.mean())), t_quantile(count - 1) * error
