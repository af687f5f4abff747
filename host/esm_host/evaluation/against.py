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
class Against:
    """Predictions held against another campaign's measurements.

    Attributes:
        samples: architectures that were measured there.
        seen: of which the predictor has learnt from, measured on its own device.
        accuracy_percent: as it is.
        scaled_percent: once all predictions are multiplied by ``pace``.
        pace: median of measured over predicted latency.
        tau, spearman: as :func:`~esm_host.evaluation.ranking.rank_correlations`.
        bins: accuracy as it is, by depth.
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


def hold_against(
    measured_ms: Floats,
    predicted_ms: Floats,
    depth: NDArray[np.int64],
    seen: NDArray[np.bool_],
    bins: DepthBins,
) -> Against:
    """Compare predictions with measurements, all of them ``(n,)``, ``n`` one or more."""
    pace = float(np.median(measured_ms / predicted_ms))
    tau, spearman = rank_correlations(measured_ms, predicted_ms)
    return Against(
        len(measured_ms),
        int(seen.sum()),
        accuracy_percent(measured_ms, predicted_ms),
        accuracy_percent(measured_ms, pace * predicted_ms),
        pace,
        tau,
        spearman,
        tuple(accuracy_by_bin(depth, measured_ms, predicted_ms, bins)),
    )
