"""Accuracy of one device's predictor on measurements of another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from esm_host.bins import DepthBins
from esm_host.evaluation.accuracy import BinAccuracy, accuracy_by_bin, accuracy_percent

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
        tau, spearman: rank correlations (Kendall's tau-b, Spearman's); NaN where one side is
            constant.
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
    varies = len(measured_ms) > 1 and np.ptp(measured_ms) > 0 and np.ptp(predicted_ms) > 0
    tau = stats.kendalltau(measured_ms, predicted_ms).statistic if varies else np.nan
    spearman = stats.spearmanr(measured_ms, predicted_ms).statistic if varies else np.nan
    return Against(
        len(measured_ms),
        int(seen.sum()),
        accuracy_percent(measured_ms, predicted_ms),
        accuracy_percent(measured_ms, pace * predicted_ms),
        pace,
        float(tau),
        float(spearman),
        tuple(accuracy_by_bin(depth, measured_ms, predicted_ms, bins)),
    )
