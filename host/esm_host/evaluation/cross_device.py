"""Accuracy of one device's predictor on measurements of another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.evaluation.accuracy import BinAccuracy, accuracy_by_bin, accuracy_percent
from esm_host.evaluation.ranking import rank_correlations
from esm_host.sampling.bins import DepthBins

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CrossDeviceAccuracy:
    """Accuracy of a predictor on the measurements of another campaign.

    Attributes:
        samples: Number of architectures measured there.
        seen: Number of these in the predictor's training set.
        accuracy_percent: Accuracy of the predictions, in percent.
        scaled_percent: Accuracy of the predictions multiplied by ``pace``, in percent.
        pace: Median ratio of measured to predicted latency.
        tau: Kendall's tau (:func:`~esm_host.evaluation.ranking.rank_correlations`).
        spearman: Spearman's rank correlation.
        bins: Accuracy by depth.
    """

    samples: int
    seen: int
    accuracy_percent: float
    scaled_percent: float
    pace: float
    tau: float
    spearman: float
    bins: tuple[BinAccuracy, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values; NaN is None."""
        data = asdict(self)
        for values in (data, *data["bins"]):
            for name, value in values.items():
                if isinstance(value, float) and not np.isfinite(value):
                    values[name] = None
        return data


def evaluate_across(
    measured_ms: Floats,
    predicted_ms: Floats,
    depth: NDArray[np.int64],
    seen: NDArray[np.bool_],
    bins: DepthBins,
) -> CrossDeviceAccuracy:
    """Compare predictions with measurements.

    Args:
        measured_ms: Measured latencies, ms, ``(n,)``, n at least 1.
        predicted_ms: Predicted latencies, ms, ``(n,)``.
        depth: Depth of each architecture, ``(n,)``.
        seen: Whether each architecture is in the training set, ``(n,)``.
        bins: Depth bins.
    """
    pace = float(np.median(measured_ms / predicted_ms))
    tau, spearman = rank_correlations(measured_ms, predicted_ms)
    return CrossDeviceAccuracy(
        len(measured_ms),
        int(seen.sum()),
        accuracy_percent(measured_ms, predicted_ms),
        accuracy_percent(measured_ms, pace * predicted_ms),
        pace,
        tau,
        spearman,
        tuple(accuracy_by_bin(depth, measured_ms, predicted_ms, bins)),
    )
