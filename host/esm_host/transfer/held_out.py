"""Accuracy of predictors that learn from sources, by held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.dataset.table import Dataset
from esm_host.encoding.base import Encoder, Encoding
from esm_host.encoding.sources import SourcesEncoder
from esm_host.encoding.views import ViewsEncoder
from esm_host.evaluation.accuracy import FASTEST_MS, accuracy_percent, assign_folds
from esm_host.evaluation.conformal import LeftOutErrors
from esm_host.predictors.auto import AutoPredictor
from esm_host.predictors.base import Floats, Predictor
from esm_host.predictors.candidates import WITH_SOURCES, WITHOUT_SOURCES
from esm_host.transfer import DEFAULT, LEAST_SAMPLES, method_of
from esm_host.transfer.monotonicity import rank_correlation

HELD_OUT_FACT = "held_out"
"""Name in a campaign's store of the keys of held-out architectures."""
ENOUGH = 20
"""Number of samples from which held-out errors show whether sources help."""
_COVERAGE = 0.9
_FOLDS = 5
_LEAST_HELD_OUT = 4
_LITTLE = 0.1
"""Relative difference of errors of a few samples that may be chance."""


def judge(
    dataset: Dataset,
    held_out: Collection[str],
    encoder: SourcesEncoder,
    weights: str,
    seed: int,
) -> dict[str, Any]:
    """Evaluate ``auto`` with sources on held-out samples.

    Args:
        dataset: All measurements.
        held_out: Keys of held-out architectures.
        encoder: Encoder of the predictor.
        weights: Weighting of the samples in the campaign.
        seed: Random seed of the campaign.

    Returns:
        ``samples`` of the training set; mean absolute held-out errors of log latency, in percent,
        ``left_out_error_percent`` and ``without_sources_percent``. With at least four held-out
        measurements also the result of :func:`_held_out_figures`.
    """
    own = _held_out(dataset, held_out)
    figures: dict[str, Any] = {"samples": int((~own).sum())}
    if figures["samples"] < LEAST_SAMPLES:
        return figures
    encodings, latency_ms = encoder.encode(dataset.architectures), dataset.latency_ms
    predictor = AutoPredictor(encoder.layout, seed)
    predictor.fit(encodings[~own], latency_ms[~own], dataset.weights(weights)[~own])
    figures |= {
        "left_out_error_percent": 100 * predictor.errors_[WITH_SOURCES],
        "without_sources_percent": 100 * predictor.errors_[WITHOUT_SOURCES],
    }
    if own.sum() < _LEAST_HELD_OUT:
        return figures
    low, high = predictor.predict_interval(encodings[own], _COVERAGE)
    predicted_ms = predictor.predict(encodings[own])
    return figures | _held_out_figures(dataset, own, predicted_ms, low, high)


def judge_adapted(
    dataset: Dataset,
    held_out: Collection[str],
    encoder: Encoder,
    make: Callable[[int], Predictor],
    seed: int,
) -> dict[str, Any]:
    """Evaluate a few-shot method on held-out samples, and ``auto`` without sources.

    Both predict each fifth of the samples from the others. The method's errors at these give the
    prediction intervals.

    Args:
        dataset: All measurements.
        held_out: Keys of held-out architectures.
        encoder: Encoder of the predictor.
        make: Function from a number to the campaign's unfitted predictor.
        seed: Random seed of the folds.
    """
    own = _held_out(dataset, held_out)
    figures: dict[str, Any] = {"samples": int((~own).sum())}
    if figures["samples"] < LEAST_SAMPLES:
        return figures
    encodings, latency_ms = encoder.encode(dataset.architectures), dataset.latency_ms
    views = ViewsEncoder(encoder.space)
    samples = encodings[~own], latency_ms[~own]
    left_out = _left_out(make, *samples, seed)
    seen = views.encode(dataset.architectures)[~own]
    alone = _left_out(
        lambda member: AutoPredictor(views.layout, seed + member), seen, samples[1], seed
    )
    figures |= {
        "left_out_error_percent": _error_percent(left_out, samples[1]),
        "without_sources_percent": _error_percent(alone, samples[1]),
    }
    if own.sum() < _LEAST_HELD_OUT:
        return figures
    predicted_ms = np.maximum(make(0).fit(*samples).predict(encodings[own]), FASTEST_MS)
    factor = LeftOutErrors(samples[1], left_out).within(_COVERAGE)
    return figures | _held_out_figures(
        dataset, own, predicted_ms, predicted_ms / factor, predicted_ms * factor
    )


def _held_out(dataset: Dataset, keys: Collection[str]) -> NDArray[np.bool_]:
    wanted = set(keys)
    return np.array([a.key in wanted for a in dataset.architectures], dtype=bool)


def _left_out(
    make: Callable[[int], Predictor], encodings: Encoding, latency_ms: Floats, seed: int
) -> Floats:
    """Return held-out predictions of five-fold cross-validation, ms, ``(n,)``."""
    fold = assign_folds(np.zeros(len(latency_ms), dtype=np.int64), _FOLDS, seed)
    predicted_ms = np.empty(len(latency_ms))
    for number in np.unique(fold).tolist():
        rest = fold == number
        member = make(number).fit(encodings[~rest], latency_ms[~rest])
        predicted_ms[rest] = np.maximum(member.predict(encodings[rest]), FASTEST_MS)
    return predicted_ms


def _error_percent(predicted_ms: Floats, latency_ms: Floats) -> float:
    return 100 * float(np.abs(np.log(predicted_ms / latency_ms)).mean())


def _held_out_figures(
    dataset: Dataset, own: NDArray[np.bool_], predicted_ms: Floats, low: Floats, high: Floats
) -> dict[str, Any]:
    """Return figures on held-out samples.

    They are:
        ``held_out``: Number of held-out samples.
        ``spearman``, ``spearman_low``, ``spearman_high``: Rank correlation and its 95 % confidence
            interval.
        ``accuracy_percent``: Accuracy, in percent.
        ``covered``: Number of samples within their 90 % prediction intervals.
        ``held_out_models``: Per sample ``architecture_key``, ``predicted_ms`` and the ends of its
            interval, ``low_ms`` and ``high_ms``.
    """
    truth_ms = dataset.latency_ms[own]
    correlation = rank_correlation(predicted_ms, truth_ms)
    keys = [a.key for a, out in zip(dataset.architectures, own, strict=True) if out]
    models = zip(keys, *(ends.tolist() for ends in (predicted_ms, low, high)), strict=True)
    return {
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


def learnt_by(figures: Mapping[str, Any]) -> str:
    """Return the method and the sampler in words, unless they are the default."""
    method, sampler = figures.get("method", DEFAULT), figures.get("sampler", "")
    by = "" if method == DEFAULT else f", by {method}"
    usual = method_of(DEFAULT).sampler if method == DEFAULT else ""
    return by + (f", sampled by {sampler}" if sampler not in ("", usual) else "")


def left_out(figures: Mapping[str, Any]) -> str:
    """Return the held-out errors of the method, in words.

    Below :data:`ENOUGH` samples the errors seem lower with sources even if these do not help.

    Args:
        figures: Result of :func:`judge` or :func:`judge_adapted`, with held-out errors.
    """
    error, without = figures["left_out_error_percent"], figures["without_sources_percent"]
    if figures.get("method", DEFAULT) != DEFAULT:
        return f"mean error {error:.1f} %, by auto without sources {without:.1f} %"
    return (
        f"mean error {error:.1f} %, without sources {without:.1f} %: the sources "
        f"{use_of_sources(figures)}"
    )


def use_of_sources(figures: Mapping[str, Any]) -> str:
    """Return the effect of the sources, as a predicate.

    Below :data:`ENOUGH` samples the errors seem lower with sources even if these do not help.

    Args:
        figures: Result of :func:`judge`, with held-out errors.
    """
    if figures["samples"] < ENOUGH:
        return f"may or may not have helped: too few samples to tell ({figures['samples']})"
    error, without = figures["left_out_error_percent"], figures["without_sources_percent"]
    if error < (1 - _LITTLE) * without:
        return "helped"
    return "did not help" if error > (1 + _LITTLE) * without else "made little difference"
