"""Base classes of latency predictors, with scikit-learn's fit and predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin

from esm_host.errors import UsageError
from esm_host.plugins import own_failures
from esm_protos.plugins import own_file, own_name
from esm_protos.text import counted

Floats = NDArray[np.float64]

Samples = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]
"""Encodings ``(n, d)``, latencies in milliseconds ``(n,)``, weights with mean 1 ``(n,)``."""


class Predictor(RegressorMixin, BaseEstimator, ABC):  # type: ignore[misc]  # without types
    """Regressor from encodings to latencies in milliseconds.

    The public methods check, the private ones compute. Predictors are scikit-learn estimators:
    constructor arguments are hyperparameters, kept under their names. So ``get_params`` and
    ``clone`` work. A predictor that uses groups of columns has a parameter ``layout``
    (:class:`esm_host.encoding.base.Layout`). One that draws random numbers has a parameter
    ``seed``.
    """

    encoding: ClassVar[str] = "operation-one-hot"
    """Encoding that it is used with unless another is asked for: a name, or file and class as
    ``path/to/file.py:Class``. What comes with the project says so in
    :data:`esm_host.predictors.PREDICTORS`, where one class may have several names."""

    knows_std: ClassVar[bool] = False
    """Whether ``predict(..., return_std=True)`` is possible."""

    uses_weights: ClassVar[bool] = True
    """Whether samples count by their weights; otherwise weights are checked and ignored."""

    needs_graph: ClassVar[bool] = False
    """Whether encodings must be graphs (:attr:`esm_host.encoding.base.Layout.nodes`)."""

    trains_on_neighbours: ClassVar[bool] = False
    """Whether the training set must be architectures that differ in one block."""

    n_features_in_: int

    @abstractmethod
    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        """Fit to samples; ``weights`` are zero or positive, with mean 1."""

    @abstractmethod
    def _predict(self, encodings: NDArray[np.float32]) -> Floats: ...

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Return predictions and standard deviations, if :attr:`knows_std`."""
        raise NotImplementedError

    def fit(
        self, encodings: ArrayLike, latency_ms: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Fit to encodings and latencies.

        Args:
            encodings: Encodings, ``(n, d)``.
            latency_ms: Latencies, ms, ``(n,)``.
            sample_weight: Relative weights of the samples, ``(n,)``; None for equal weights.

        Raises:
            ValueError: shapes disagree, there is no sample, a value is not finite, a latency is not
                positive, a weight is negative, or all weights are zero.
        """
        x, y, weights = self._samples(encodings, latency_ms, sample_weight)
        with own_failures(self):
            self._fit(x, y, weights)
        return self

    @classmethod
    def fit_all(cls, predictors: Sequence[Self], samples: Sequence[Sequence[ArrayLike]]) -> None:
        """Fit each predictor to its own samples, which may be faster than one by one.

        Args:
            predictors: Predictors of this class that differ only in the seed.
            samples: Arguments of :meth:`fit` for each predictor.

        Raises:
            ValueError: as :meth:`fit`.
        """
        checked = [p._samples(*part) for p, part in zip(predictors, samples, strict=True)]
        with own_failures(cls):
            cls._fit_all(predictors, checked)

    @classmethod
    def _fit_all(cls, predictors: Sequence[Self], samples: Sequence[Samples]) -> None:
        for predictor, part in zip(predictors, samples, strict=True):
            predictor._fit(*part)

    def to_onnx(self) -> bytes | None:
        """Return the fitted predictor as ONNX; None if it has no such form.

        The input is ``encoding`` (n, d), the output ``latency_ms`` (n,).
        """
        return None

    @overload
    def predict(self, encodings: ArrayLike, return_std: Literal[False] = False) -> Floats: ...
    @overload
    def predict(self, encodings: ArrayLike, return_std: Literal[True]) -> tuple[Floats, Floats]: ...

    def predict(
        self, encodings: ArrayLike, return_std: bool = False
    ) -> Floats | tuple[Floats, Floats]:
        """Return latencies, ms, ``(n,)``.

        Args:
            encodings: Encodings, ``(n, d)``.
            return_std: Whether to return the standard deviations of the predictions, too, ``(n,)``.

        Raises:
            ValueError: the predictor is not fitted or has no standard deviation, a value is not
                finite, or the width is not that of the training set.
            EsmError: a class from a user's file fails, or predictions are no latencies.
        """
        if return_std and not self.knows_std:
            raise ValueError(
                f"{type(self).__name__} has no standard deviation: leave return_std out, or "
                "choose a Gaussian process, a Bayesian predictor or auto"
            )
        x = self._ready(encodings)
        if not len(x):
            return (np.zeros(0), np.zeros(0)) if return_std else np.zeros(0)
        if return_std:
            with own_failures(self):
                latency_ms, std = self._predict_with_std(x)
            self._check_predicted("_predict_with_std", latency_ms, len(x))
            self._check_values("_predict_with_std", std, len(x))
            return latency_ms, std
        with own_failures(self):
            latency_ms = self._predict(x)
        self._check_predicted("_predict", latency_ms, len(x))
        return latency_ms

    def _check_predicted(self, method: str, latency_ms: Floats, count: int) -> None:
        """Check what a private method predicted.

        Linear models that come with the project extrapolate below zero, as their papers' do.

        Raises:
            UsageError: there is not one finite number for each encoding, or a class from a user's
                file predicts a latency that is not positive.
        """
        self._check_values(method, latency_ms, count)
        if own_file(self) and (least := float(np.min(latency_ms))) <= 0:
            raise UsageError(
                f"{own_name(self)}: {method} returned a latency of {least:g} ms: return more than "
                "0, such as np.maximum(latency_ms, 0.001)"
            )

    def _check_values(self, method: str, values: Floats, count: int) -> None:
        found = np.asarray(values)
        if found.shape != (count,):
            raise UsageError(
                f"{own_name(self)}: {method} returned the shape {found.shape} for {count} "
                "encodings: return one value for each"
            )
        if found.dtype.kind not in "fiu" or not np.isfinite(found).all():
            raise UsageError(
                f"{own_name(self)}: {method} returned values that are not finite numbers: return "
                "milliseconds"
            )

    def _ready(self, encodings: ArrayLike) -> NDArray[np.float32]:
        """Return encodings that the fitted predictor can take.

        Raises:
            ValueError: as :meth:`predict`.
        """
        if not hasattr(self, "n_features_in_"):
            raise ValueError(f"{type(self).__name__} is not fitted yet: call fit first")
        x = self._checked(encodings)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"encodings have {counted(x.shape[1], 'column')}; fitted on {self.n_features_in_}"
            )
        return x

    def _samples(
        self, encodings: ArrayLike, latency_ms: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Samples:
        x = self._checked(encodings)
        y = np.asarray(latency_ms, dtype=np.float64)
        if y.shape != (len(x),) or not len(x):
            raise ValueError(f"{len(x)} encodings need as many latencies; got shape {y.shape}")
        if not np.isfinite(y).all() or (y <= 0).any():
            raise ValueError("latencies must be positive, finite milliseconds")
        weights = np.ones(len(y))
        if sample_weight is not None:
            weights = np.asarray(sample_weight, dtype=np.float64)
            if weights.shape != y.shape:
                raise ValueError(
                    f"{counted(len(y), 'sample')}: give as many weights, not {weights.shape}"
                )
            if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
                raise ValueError("weights must be finite, none negative and not all zero")
        self.n_features_in_ = x.shape[1]
        return x, y, weights / weights.mean()

    @staticmethod
    def _checked(encodings: ArrayLike) -> NDArray[np.float32]:
        x = np.asarray(encodings, dtype=np.float32)
        if x.ndim != 2:
            raise ValueError(f"encodings are a table (n, d); got shape {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("encodings must be finite")
        return x


class IntervalPredictor(Predictor):
    """Predictor with prediction intervals of its own."""

    @abstractmethod
    def predict_interval(
        self, encodings: ArrayLike, coverage: float = 0.9
    ) -> tuple[Floats, Floats]:
        """Return the ends of prediction intervals, ms, ``(n,)`` each.

        Args:
            encodings: Encodings, ``(n, d)``.
            coverage: Share of the latencies that the intervals hold.

        Raises:
            ValueError: as :meth:`predict`, or the coverage is not between 0 and 1.
        """

    @abstractmethod
    def predict_at_most(
        self, encodings: ArrayLike, probability: float = 0.9
    ) -> tuple[Floats, Floats]:
        """Return latencies and their upper bounds, ms, ``(n,)`` each.

        Args:
            encodings: Encodings, ``(n, d)``.
            probability: Probability that a latency is at most its bound.

        Raises:
            ValueError: as :meth:`predict`, or the probability is not between 0 and 1.
        """


class JointPredictor(Predictor):
    """Predictor that knows how latencies vary together, and predicts its samples held out."""

    @abstractmethod
    def held_out(self) -> tuple[Floats, Floats]:
        """Return held-out predictions of the training samples, and their standard deviations.

        Predictions are in ms, ``(n,)``, standard deviations are shares of them, ``(n,)``.

        Raises:
            ValueError: the predictor is not fitted.
        """

    @abstractmethod
    def joint_features(self, encodings: ArrayLike) -> tuple[Floats, float]:
        """Return features whose products are the covariance of log latencies, ``(n, k)``.

        The covariance is that before any latency is known, with the kernels of the fit. The second
        result is the variance of a measured log latency.

        Args:
            encodings: Encodings, ``(n, d)``.

        Raises:
            ValueError: as :meth:`predict`.
        """
