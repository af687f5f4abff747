"""What a search's measurements say of its predictions, and of what it found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from esm_host.evaluation.selection import reductions
from esm_host.search.front import hypervolume
from esm_host.search.latency import AT_MOST, LATENCY, quantity
from esm_host.search.record import SearchRecord, best, costs


def deviations(record: SearchRecord) -> pd.DataFrame:
    """How far off predictions were, a row per architecture that was chosen and device: ``round``,
    ``key``, ``architecture``, ``device``, ``predicted_ms`` and ``at_most_ms`` before it was
    measured, the ``probability`` of the latter, ``measured_ms`` (NaN of what failed, or is not
    measured yet), ``off_percent`` (how much slower it is than predicted) and ``within``, whether
    it is at most what it was said to be at most."""
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
    """How far off predictions were by round or by device, a row each: ``median_percent`` and
    ``most_percent``, which one in two and nine in ten are not further off than; ``within_percent``,
    the share that kept its promise; NaN where nothing was measured.

    Args:
        deviations: :func:`deviations`.
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
    """The front of what was measured so far, a row before the search and one after each round that
    measured anything: ``round``, architectures that the search had ``measured``, how many were on
    the ``front``, ``hypervolume_percent``, of the last one's.

    The reference point is the worst in every objective of all that was measured and keeps the
    limits.
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
    """Mean reduction of accuracy, or of whatever is to be large besides a latency (Laube et al.,
    What to expect of hardware metric predictors in NAS, section 5): how much more of it the best
    of at most an architecture's latency has. Best of what was measured and keeps the limits: as
    the best of all is not known, the reduction is that much at least.

    Attributes:
        chosen: how many were chosen and keep the limits once measured.
        verified: how many of these no other of them beats.
        of_chosen, of_verified: means over them, in units of the quantity.
    """

    chosen: int
    verified: int
    of_chosen: float
    of_verified: float


def reduction(record: SearchRecord, number: int | None = None) -> Reduction | None:
    """Of what a round chose, or all together; None where there are not two objectives, the first a
    latency and the second to be large, or where nothing that was chosen keeps the limits.

    Args:
        number: of the round, from 1.
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
