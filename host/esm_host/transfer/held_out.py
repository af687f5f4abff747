"""How good predictions for a device are that learn from sources, by what was held out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from esm_host.dataset.table import Dataset
from esm_host.encoding.sources import SourcesEncoder
from esm_host.evaluation.accuracy import accuracy_percent
from esm_host.extension.settings import LEAST_SAMPLES, Settings
from esm_host.predictors.auto import AutoPredictor
from esm_host.predictors.candidates import WITH_SOURCES, WITHOUT_SOURCES
from esm_host.transfer.devices.monotonicity import rank_correlation

HELD_OUT_FACT = "held_out"
"""Under which a campaign's store has the keys of what is held out."""
ENOUGH = 20
"""Samples from which on left-out errors tell whether sources help."""
_COVERAGE = 0.9
_LITTLE = 0.1
"""Share by which errors of a few samples may differ for no reason."""


def judge(
    dataset: Dataset, held_out: Collection[str], encoder: SourcesEncoder, settings: Settings
) -> dict[str, Any]:
    """A predictor that has not seen what is held out, judged by it.

    Args:
        dataset: all that was measured.
        held_out: keys.

    Returns:
        ``sources`` (names), ``samples`` learnt from, mean absolute errors of log latency in
        percent, each sample by the others, ``left_out_error_percent`` and
        ``without_sources_percent``; where at least four held-out ones were measured,
        ``held_out`` (how many), ``spearman`` with its 95 % interval ``spearman_low`` and
        ``spearman_high``, ``accuracy_percent``, ``covered``, how many lie in their 90 %
        intervals, and ``held_out_models``: of each ``architecture_key``, ``predicted_ms`` and the
        ends of that interval, ``low_ms`` and ``high_ms``.
    """
    own = np.array([a.key in set(held_out) for a in dataset.architectures], dtype=bool)
    encodings = encoder.encode(dataset.architectures)
    weights, latency_ms = dataset.weights(settings.weights), dataset.latency_ms
    figures: dict[str, Any] = {
        "sources": list(encoder.models.names),
        "samples": int((~own).sum()),
    }
    if figures["samples"] < LEAST_SAMPLES:
        return figures
    predictor = AutoPredictor(encoder.layout, settings.seed)
    predictor.fit(encodings[~own], latency_ms[~own], weights[~own])
    figures |= {
        "left_out_error_percent": 100 * predictor.errors_[WITH_SOURCES],
        "without_sources_percent": 100 * predictor.errors_[WITHOUT_SOURCES],
    }
    if own.sum() < 4:
        return figures
    predicted_ms, truth_ms = predictor.predict(encodings[own]), latency_ms[own]
    correlation = rank_correlation(predicted_ms, truth_ms)
    low, high = predictor.predict_interval(encodings[own], _COVERAGE)
    keys = [a.key for a, out in zip(dataset.architectures, own, strict=True) if out]
    models = zip(keys, *(ends.tolist() for ends in (predicted_ms, low, high)), strict=True)
    return figures | {
        "held_out": int(own.sum()),
        "spearman": correlation.value,
        "spearman_low": correlation.low,
        "spearman_high": correlation.high,
        "accuracy_percent": accuracy_percent(truth_ms, predicted_ms),
        "covered": int(((low <= truth_ms) & (truth_ms <= high)).sum()),
        "held_out_models": [
            {"architecture_key": key, "predicted_ms": ms, "low_ms": low_ms, "high_ms": high_ms}
            for key, ms, low_ms, high_ms in models
        ],
    }


def use_of_sources(figures: Mapping[str, Any]) -> str:
    """Return what the sources did, in words that follow them.

    Below :data:`ENOUGH` samples left-out errors say "helped" where nothing was gained.

    Args:
        figures: of :func:`judge`, with the errors of left-out samples.
    """
    if figures["samples"] < ENOUGH:
        return f"may have helped or not: {figures['samples']} samples are too few to tell"
    error, without = figures["left_out_error_percent"], figures["without_sources_percent"]
    if error < (1 - _LITTLE) * without:
        return "helped"
    return "were of no use" if error > (1 + _LITTLE) * without else "made little difference"
