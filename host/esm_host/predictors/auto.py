"""The predictor that chooses by itself: several are cross-validated, and the good ones vote."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from esm_host.encoding.base import Layout
from esm_host.evaluation.conformal import quantile
from esm_host.predictors.base import Floats, IntervalPredictor
from esm_host.predictors.candidates import Candidate, FoldNetworks, Process
from esm_host.predictors.multi_kernel import MultiKernelGP

NETWORKS_FROM = 1000
"""Samples from which networks are tried as well; with fewer they have no say, and take longer to
train than all the rest."""
MOST_EVIDENCE = 100
SOURCES = "sources"
"""Group of columns that say what other devices would take."""
WITH_SOURCES, WITHOUT_SOURCES = "log, additive", "log, additive, without sources"
_INTERACTING = ("operations", "counts")
"""Groups whose columns may matter together; the others are sums already."""


class AutoPredictor(IntervalPredictor):
    """Candidates on log latency, weighted by how likely they find what they have not seen.

    Every candidate predicts each sample from the others, and weighs by its errors
    (:func:`weigh`; pseudo-Bayesian model averaging by left-out predictions, Yao et al. 2018). The
    intervals are conformal: the errors of the left-out predictions, relative to the standard
    deviations that candidates give, say how wide they must be (Papadopoulos 2008; Barber et al.
    2021).

    Candidates are sums of kernels over the layout's groups (:class:`MultiKernelGP`), on log
    latency and on latency itself with errors in proportion, additive and with smooth interactions;
    where a group says what other devices would take (:data:`SOURCES`), one that does not know it;
    and, from :data:`NETWORKS_FROM` samples on and where torch is installed, perceptrons.

    Args:
        layout: groups of columns; None makes all columns one group.
        seed: of folds and subsets.
    """

    knows_std = True

    def __init__(self, layout: Layout | None = None, seed: int = 0) -> None:
        self.layout = layout
        self.seed = seed

    def _candidates(self, samples: int) -> dict[str, Candidate]:
        ends = dict(self.layout.groups) if self.layout else {}
        groups = list(ends) or ["all"]
        smooth = [name for name in groups if name in _INTERACTING] or groups
        candidates: dict[str, Candidate] = {
            f"{target}, {kind}": Process(MultiKernelGP(self.layout, of, target, self.seed))
            for target in ("log", "raw")
            for kind, of in (("additive", []), ("smooth", smooth))
        }
        if SOURCES in groups:  # which may be of no use here
            own = Layout({name: at for name, at in ends.items() if name != SOURCES})
            candidates[WITHOUT_SOURCES] = Process(MultiKernelGP(own, (), "log", self.seed))
        if samples >= NETWORKS_FROM and find_spec("torch") is not None:
            candidates["networks"] = FoldNetworks(self.seed)
        return candidates

    def _fit(self, encodings: NDArray[np.float32], latency_ms: Floats, weights: Floats) -> None:
        counted = np.flatnonzero(weights > 0)
        x, y, w = encodings[counted], latency_ms[counted], weights[counted]
        self.candidates_ = self._candidates(len(counted))
        for candidate in self.candidates_.values():
            candidate.fit(x, y, w)
        left_out = [candidate.left_out() for candidate in self.candidates_.values()]
        means, stds = (np.stack(parts) for parts in zip(*left_out, strict=True))
        truth = np.log(y)
        self.weights_ = weigh(truth, means)
        errors = np.abs(truth - means).mean(axis=1)
        self.errors_ = dict(zip(self.candidates_, errors.tolist(), strict=True))
        mean, std = self._mixture(means, stds)
        scores = (truth - mean) / std
        self.scores_, self.above_ = np.sort(np.abs(scores)), np.sort(scores)

    def _mixture(self, means: Floats, stds: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the weighted mixture, ``(candidates, n) -> (n,)``."""
        mean = self.weights_ @ means
        variance = self.weights_ @ (stds**2 + (means - mean) ** 2)
        return mean, np.sqrt(variance)

    def _in_log(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        parts = [candidate.mean_and_std(encodings) for candidate in self.candidates_.values()]
        means, stds = (np.stack(each) for each in zip(*parts, strict=True))
        return self._mixture(means, stds)

    def _predict(self, encodings: NDArray[np.float32]) -> Floats:
        parts = [candidate.mean(encodings) for candidate in self.candidates_.values()]
        return np.asarray(np.exp(self.weights_ @ np.stack(parts)))

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        mean, std = self._in_log(encodings)
        latency_ms = np.exp(mean)
        return latency_ms, latency_ms * std * self._width(0.6827)

    def to_onnx(self) -> bytes:
        """``encoding`` (n, d) in, ``latency_ms`` (n,) out; without intervals."""
        from esm_host.predictors.auto_onnx import mixture_graph

        return mixture_graph(self.n_features_in_, list(self.candidates_.values()), self.weights_)

    def predict_interval(
        self, encodings: ArrayLike, coverage: float = 0.9
    ) -> tuple[Floats, Floats]:
        if not 0 < coverage < 1:
            raise ValueError(f"coverage {coverage:g}: give a share above 0 and below 1")
        mean, std = self._in_log(self._ready(encodings))
        half = std * self._width(coverage)
        return np.exp(mean - half), np.exp(mean + half)

    def predict_at_most(
        self, encodings: ArrayLike, probability: float = 0.9
    ) -> tuple[Floats, Floats]:
        if not 0 < probability < 1:
            raise ValueError(f"probability {probability:g}: give one above 0 and below 1")
        mean, std = self._in_log(self._ready(encodings))
        bound = quantile(self.above_, probability, float(norm.ppf(probability)))
        return np.exp(mean), np.exp(mean + std * bound)

    def _width(self, coverage: float) -> float:
        """In standard deviations."""
        return quantile(self.scores_, coverage, float(norm.ppf((1 + coverage) / 2)))


def weigh(truth: Floats, means: Floats) -> Floats:
    """Weights, ``(candidates,)``: how likely each is, given its errors.

    If errors follow a Laplace distribution, as wide for each candidate as its errors say, then its
    likelihood is its mean absolute error to the power of minus the number of samples. Beyond
    :data:`MOST_EVIDENCE` samples it grows no sharper, so that candidates which are nearly as good
    keep their say.

    Args:
        truth: ``(n,)``.
        means: what each candidate said, ``(candidates, n)``.
    """
    error = np.maximum(np.abs(truth - means).mean(axis=1), 1e-12)
    weights = (error / error.min()) ** -min(len(truth), MOST_EVIDENCE)
    return np.asarray(weights / weights.sum())
