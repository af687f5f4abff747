"""Automatic predictor: a weighted mean of cross-validated candidates."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from esm_host.encoding.base import Layout
from esm_host.evaluation.conformal import quantile
from esm_host.predictors.base import Floats, IntervalPredictor, JointPredictor
from esm_host.predictors.candidates import fit_candidates, left_out
from esm_host.predictors.design import INDUCING, MANY_INDUCING
from esm_host.predictors.fold_networks import FoldNetworks
from esm_host.predictors.process import Process
from esm_host.predictors.readout import evaluate

NETWORKS_FROM = 1000
"""Smallest training set for which networks are candidates."""
MOST_EVIDENCE = 100
"""Number of samples beyond which weights grow no sharper (see :func:`weigh`)."""
_INTERACT = 0.99
"""Blocks interact if the best smooth error is below this share of the best additive one."""
_LARGEST_LOG = 50.0
"""Largest absolute log latency that is reported: 1e21 ms."""
_OUTLIER = 4
"""Error, in robust standard deviations, from which a sample counts less, by the inverse square."""
_LEAST_WEIGHT = 1e-3
"""Smallest weight of a candidate in the mean."""
_FINEST = 1e-5
"""Smallest half-width of an interval of log latency, near the rounding error."""


class AutoPredictor(IntervalPredictor, JointPredictor):
    """Mean of candidates on log latency, weighted by their held-out likelihood.

    Every candidate predicts each sample from the others. Its weight follows from the errors
    (:func:`weigh`; pseudo-Bayesian model averaging, Yao et al. 2018). Prediction intervals are
    conformal: they scale the candidates' standard deviations by the held-out errors (Papadopoulos
    2008; Barber et al. 2021).

    Samples far from their held-out predictions count less, because the device may have been
    disturbed (iteratively reweighted once; Huber 1981).

    Candidates are Gaussian processes (:func:`~esm_host.predictors.candidates.fit_candidates`). If
    smooth interactions between blocks lower the errors by 1 %, they get more inducing points. From
    :data:`NETWORKS_FROM` samples on, perceptrons then join them if torch is installed. Without
    interactions, as on most devices, neither is worth its time. Standard deviations combine those
    of the best candidate with the spread between candidates.

    Args:
        layout: Groups of columns; None makes all columns one group.
        seed: Random seed of folds, subsets and draws.
    """

    knows_std = True

    def __init__(self, layout: Layout | None = None, seed: int = 0) -> None:
        self.layout = layout
        self.seed = seed

    # Threads slow down matrices this small.
    @threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]
    def _fit(self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats) -> None:
        counted = np.flatnonzero(weights > 0)
        samples = encodings[counted], latency_ms[counted], weights[counted]
        n, truth = len(counted), np.log(samples[1])
        fitted = fit_candidates(samples, self.layout, self.seed)
        means, stds = left_out(fitted, samples, self.layout, self.seed)
        deviations = truth - weigh(truth, means) @ means
        trust = (_OUTLIER / np.maximum(np.abs(deviations) / _robust_std(deviations), _OUTLIER)) ** 2
        if trust.min() < 1:
            trusted = samples[2] * trust
            samples = *samples[:2], trusted / trusted.mean()
            fitted = fit_candidates(samples, self.layout, self.seed, fitted)
            means, stds = left_out(fitted, samples, self.layout, self.seed)
        interact = _interact(fitted.values(), np.abs(truth - means) @ trust)
        if interact and n > INDUCING:
            fitted = fit_candidates(samples, self.layout, self.seed, fitted, MANY_INDUCING)
            means, stds = left_out(fitted, samples, self.layout, self.seed)
        names, networks = [*fitted], None
        if interact and n >= NETWORKS_FROM and find_spec("torch") is not None:
            names.append("networks")
            networks = FoldNetworks(self.seed)
            networks.fit(*samples)
            means, stds = (
                np.vstack(parts) for parts in zip((means, stds), networks.left_out_, strict=True)
            )
        errors = np.abs(truth - means).mean(axis=1)
        self.errors_ = dict(zip(names, errors.tolist(), strict=True))
        shares = weigh(truth, means)
        self.leading_ = fitted[names[int(np.argmax(shares[: len(fitted)]))]]
        kept = np.flatnonzero(shares >= _LEAST_WEIGHT)
        self.weights_ = shares[kept] / shares[kept].sum()
        self.processes_ = [fitted[names[each]] for each in kept if names[each] in fitted]
        self.networks_ = networks if len(self.processes_) < len(kept) else None
        self.best_ = int(np.argmax(self.weights_))
        mean, std = self._mixture(means[kept], stds[kept[self.best_]])
        scores = (truth - mean) / std
        self.scores_, self.above_ = np.sort(np.abs(scores)), np.sort(scores)
        held_out = np.empty((2, len(latency_ms)))
        held_out[:, counted] = mean, std
        ignored = np.flatnonzero(weights == 0)
        if len(ignored):
            held_out[:, ignored] = self._in_log(encodings[ignored])
        self.held_out_ = held_out

    def _mixture(self, means: Floats, std: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the weighted mixture, ``(n,)`` each.

        Args:
            means: Log latencies by each candidate, ``(candidates, n)``.
            std: Standard deviations of the best candidate, ``(n,)``.
        """
        mean = self.weights_ @ means
        return mean, np.sqrt(std**2 + self.weights_ @ (means - mean) ** 2)

    def _in_log(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        return self._mixture(*self._by_candidate(encodings, drawn=True))

    def _by_candidate(
        self, encodings: NDArray[np.float32], drawn: bool = False
    ) -> tuple[Floats, Floats]:
        """Return log latencies by each weighted candidate, ``(candidates, n)``.

        The second result has the standard deviations of the best candidate, ``(n,)``. They are
        valid only with ``drawn``.
        """
        processes, logs = self.processes_, []
        if processes:
            need_std = [drawn and number == self.best_ for number in range(len(processes))]
            outputs = evaluate(processes, need_std, encodings)
            logs += [each.in_log(output) for each, output in zip(processes, outputs, strict=True)]
        if self.networks_ is not None:  # the last of the candidates
            logs.append(self.networks_.in_log(encodings))
        return np.stack([mean for mean, _ in logs]), logs[self.best_][1]

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        return np.asarray(np.exp(self.weights_ @ self._by_candidate(encodings)[0]))

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self._in_log(encodings)
        latency_ms = np.exp(mean)
        return latency_ms, latency_ms * std * self._width(0.6827)

    def to_onnx(self) -> bytes:
        """Return the fitted predictor as ONNX, without intervals.

        The input is ``encoding`` (n, d), the output ``latency_ms`` (n,).
        """
        from esm_host.predictors.auto_onnx import mixture_graph

        return mixture_graph(self.n_features_in_, self.processes_, self.networks_, self.weights_)

    def predict_interval(
        self, encodings: ArrayLike, coverage: float = 0.9
    ) -> tuple[Floats, Floats]:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage {coverage:g}: give a share above 0 and below 1")
        mean, std = self._in_log(self._ready(encodings))
        half = np.maximum(std * self._width(coverage), _FINEST)
        return _exp(mean - half), _exp(mean + half)

    def predict_at_most(
        self, encodings: ArrayLike, probability: float = 0.9
    ) -> tuple[Floats, Floats]:
        if not 0 < probability < 1:
            raise ValueError(f"probability {probability:g}: give one above 0 and below 1")
        mean, std = self._in_log(self._ready(encodings))
        bound = quantile(self.above_, probability, float(norm.ppf(probability)))
        return _exp(mean), _exp(mean + std * bound)

    def held_out(self) -> tuple[Floats, Floats]:
        if not hasattr(self, "held_out_"):
            raise ValueError("AutoPredictor is not fitted yet: call fit first")
        mean, std = self.held_out_
        return _exp(mean), std * self._width(0.6827)

    def joint_features(self, encodings: ArrayLike) -> tuple[Floats, float]:
        x, process = self._ready(encodings), self.leading_
        return process.joint_features(x, evaluate([process], [False], x)[0])

    def _width(self, coverage: float) -> float:
        """Return the half-width of an interval, in standard deviations."""
        return quantile(self.scores_, coverage, float(norm.ppf((1 + coverage) / 2)))


def _interact(candidates: Iterable[Process], errors: Floats) -> bool:
    """Return whether smooth candidates have smaller errors than additive ones."""
    smooth = np.array([bool(each.smooth) for each in candidates])
    return bool(errors[smooth].min() < _INTERACT * errors[~smooth].min())


def _exp(logs: Floats) -> Floats:
    """Return latencies, ms, limited to finite values."""
    return np.asarray(np.exp(np.clip(logs, -_LARGEST_LOG, _LARGEST_LOG)))


def _robust_std(errors: Floats) -> float:
    """Return the standard deviation of errors, robust to a few large ones."""
    deviation = float(np.median(np.abs(errors - np.median(errors))))
    return max(deviation / float(norm.ppf(0.75)), _FINEST)


def weigh(truth: Floats, means: Floats) -> Floats:
    """Return the weight of each candidate by its errors, ``(candidates,)``.

    Errors are assumed to follow a Laplace distribution of each candidate's own width. The
    likelihood is then the mean absolute error to the power of minus the number of samples. Beyond
    :data:`MOST_EVIDENCE` samples it grows no sharper, so that nearly equal candidates keep their
    weight.

    Args:
        truth: Measured log latencies, ``(n,)``.
        means: Predictions of each candidate, ``(candidates, n)``.
    """
    error = np.maximum(np.abs(truth - means).mean(axis=1), 1e-12)
    weights = (error / error.min()) ** -min(len(truth), MOST_EVIDENCE)
    return np.asarray(weights / weights.sum())
