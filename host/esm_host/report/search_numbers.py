"""Figures on a search: errors of its predictions, and progress of its front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from esm_host.evaluation.selection import reductions
from esm_host.search.front import hypervolume
from esm_host.search.latency import AT_MOST, LATENCY, quantity
from esm_host.search.record import SearchRecord, best, costs


def deviations(record: SearchRecord) -> pd.DataFrame:
    """Return the errors of the predictions, a row per chosen architecture and device.

    Columns:
        ``round``, ``key``, ``architecture``, ``device``: What was measured where.
        ``predicted_ms``, ``at_most_ms``, ``probability``: Prediction before the measurement, its
            upper bound and the probability of that bound.
        ``measured_ms``: Latency, ms; NaN if it failed or is not measured yet.
        ``off_percent``: How much slower it is than predicted.
        ``within``: Whether it is at most the upper bound.
    """
    chosen, measured = record.chosen(), record.measured().set_index("key")
    frames = [
        pd.DataFrame(
            {
                **chosen[["round", "key", "architecture"]],
                "device": device,
                "predicted_ms": chosen[quantity(LATENCY, device)],
                "at_most_ms": chosen[quantity(AT_MOST, device)],
                "probability": chosen["probability"],
                "measured_ms": chosen["key"].map(measured[quantity(LATENCY, device)]),
            }
        )
        for device in record.devices
    ]
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(
        off_percent=100 * (frame["measured_ms"] / frame["predicted_ms"] - 1),
        within=frame["measured_ms"] <= frame["at_most_ms"],
    )


def accuracy(deviations: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the errors of the predictions by round or by device, a row each.

    Columns, NaN where nothing was measured:
        ``median_percent``, ``most_percent``: Median and 90 % quantile of the absolute error.
        ``within_percent``: Share of the latencies that are at most their bound.

    Args:
        deviations: Result of :func:`deviations`.
        by: ``"round"`` or ``"device"``.
    """
    measured = deviations.dropna(subset="off_percent")
    measured = measured.assign(off_percent=measured["off_percent"].abs())
    groups = measured.groupby(by)
    return pd.DataFrame(
        {
            "median_percent": groups["off_percent"].median(),
            "most_percent": groups["off_percent"].quantile(0.9),
            "within_percent": 100 * groups["within"].mean(),
        }
    )


def progress(record: SearchRecord) -> pd.DataFrame:
    """Return the size and hypervolume of the front before the search and after each round.

    The reference point is the worst value of each objective among the measurements within the
    limits.

    Columns:
        ``round``: Number of the round; 0 before the search.
        ``measured``: Architectures measured by the search so far.
        ``front``: Number of these on the front.
        ``hypervolume_percent``: Hypervolume, in percent of the last one.
    """
    frame = _within_limits(record)
    objectives = record.objectives
    worst = costs(frame, objectives).max(axis=0, initial=-np.inf)
    rows = []
    for number in (0, *sorted(set(frame["round"]) - {0})):
        so_far = frame[frame["round"] <= number]
        front = costs(so_far[best(so_far, objectives)], objectives)
        measured = int(record.measured()["round"].between(1, number).sum())
        rows.append((number, measured, len(front), hypervolume(front, worst)))
    found = pd.DataFrame(rows, columns=["round", "measured", "front", "hypervolume_percent"])
    volume = found["hypervolume_percent"]
    return found.assign(hypervolume_percent=100 * (volume / (volume.iloc[-1] or np.nan)))


@dataclass(frozen=True)
class Reduction:
    """Mean reduction of accuracy (MRA), or of another objective to maximise besides a latency.

    The reduction of an architecture is its gap to the best of at most the same latency. See section
    5 of Laube et al., What to expect of hardware metric predictors in NAS. The best is that of the
    measurements within the limits. The best of the space is unknown, so the figure is a lower
    bound.

    Attributes:
        chosen: Number of chosen architectures that are within the limits once measured.
        verified: Number of these that no other of them dominates.
        of_chosen: Mean over the chosen, in units of the quantity.
        of_verified: Mean over the verified, in units of the quantity.
    """

    chosen: int
    verified: int
    of_chosen: float
    of_verified: float


def reduction(record: SearchRecord, number: int | None = None) -> Reduction | None:
    """Return the latency reduction by the choice of a round, or of all rounds.

    None unless there are two objectives, a latency and one to maximise, and a chosen architecture
    is within the limits.

    Args:
        record: Search.
        number: Number of the round, from 1; None for all.
    """
    objectives = record.objectives
    if len(objectives) != 2 or not objectives[1].maximise:
        return None
    frame = _within_limits(record)
    chosen = (frame["round"] > 0 if number is None else frame["round"] == number).to_numpy()
    if not chosen.any():
        return None
    latency, worth = (frame[o.name].to_numpy(float) for o in objectives)
    lost = reductions(latency, worth, chosen)
    kept = best(frame[chosen], objectives)
    return Reduction(
        int(chosen.sum()), int(kept.sum()), float(lost.mean()), float(lost[kept].mean())
    )


def _within_limits(record: SearchRecord) -> pd.DataFrame:
    measured = record.measured()
    return measured[measured["excess"] == 0]
