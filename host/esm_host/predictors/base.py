"""What a predictor is: vectors in, milliseconds out; scikit-learn's fit and predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin

Floats = NDArray[np.float64]

Samples = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]
"""Encodings ``(n, d)``, latencies in milliseconds ``(n,)``, weights with mean 1 ``(n,)``."""


class Predictor(RegressorMixin, BaseEstimator, ABC):  # type: ignore[misc]  # without types
    """Learns latencies from encodings. The public methods check, the private ones compute.

    An estimator of scikit-learn: constructor arguments are hyperparameters and are kept under
    their own names, so ``get_params``, ``clone`` and what else it offers work. One that wants to
    know how columns belong together has a parameter ``layout``
    (:class:`esm_host.encoding.base.Layout`); one that draws at random has ``seed``.
    """

    encoding: ClassVar[str] = "operation-one-hot"
    """Encoding that it is used with unless another is asked for: a name, or file and class as
    ``path/to/file.py:Class``. What comes with the project says so in
    :data:`esm_host.predictors.PREDICTORS`, where one class may have several names."""

    knows_std: ClassVar[bool] = False
    """Whether ``predict(..., return_std=True)`` is possible."""

    uses_weights: ClassVar[bool] = True
    """Whether samples count by their weights; where not, weights are checked and left unused."""

    needs_graph: ClassVar[bool] = False
    """Whether its vectors must be graphs (:attr:`esm_host.encoding.base.Layout.nodes`)."""

    trains_on_neighbours: ClassVar[bool] = False
    """Whether it is made from architectures that differ in one block, not from any."""

    n_features_in_: int

    @abstractmethod
    def _fit(
        self,
        encodings: NDArray[np.float32],
        latency_ms: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> None:
        """Learns; ``weights`` are positive or zero, with mean 1."""

    @abstractmethod
    def _predict(self, encodings: NDArray[np.float32]) -> Floats: ...

    def _predict_with_std(self, encodings: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Of those that know their uncertainty."""
        raise NotImplementedError

    def fit(
        self, encodings: ArrayLike, latency_ms: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Learns from ``(n, d)`` encodings and ``(n,)`` latencies in milliseconds.

        Args:
            sample_weight: how much each sample counts, ``(n,)``; only ratios matter. All the
                same by default.

        Raises:
            ValueError: shapes disagree, there is no sample, or a value is not finite, or a
                latency is not positive, or a weight negative, or all are zero.
        """
        x, y, weights = self._samples(encodings, latency_ms, sample_weight)
        self._fit(x, y, weights)
        return self

    @classmethod
    def fit_all(cls, predictors: Sequence[Self], samples: Sequence[Sequence[ArrayLike]]) -> None:
        """Fits each to its own samples, which may be faster than one after the other.

        Args:
            predictors: of this class, alike in all but the seed.
            samples: what :meth:`fit` takes, for each of them.

        Raises:
            ValueError: as :meth:`fit`.
        """
        checked = [p._samples(*part) for p, part in zip(predictors, samples, strict=True)]
        cls._fit_all(predictors, checked)

    @classmethod
    def _fit_all(cls, predictors: Sequence[Self], samples: Sequence[Samples]) -> None:
        for predictor, part in zip(predictors, samples, strict=True):
            predictor._fit(*part)

    def to_onnx(self) -> bytes | None:
        """The fitted predictor as ONNX, ``encoding`` (n, d) in, ``latency_ms`` (n,) out; None of a
        kind that has no such form."""
        return None

    @overload
    def predict(self, encodings: ArrayLike, return_std: Literal[False] = False) -> Floats: ...
    @overload
    def predict(self, encodings: ArrayLike, return_std: Literal[True]) -> tuple[Floats, Floats]: ...

    def predict(
        self, encodings: ArrayLike, return_std: bool = False
    ) -> Floats | tuple[Floats, Floats]:
        """Latencies in milliseconds, ``(n,)``, of ``(n, d)`` encodings.

        Args:
            return_std: also the standard deviations of the predictions, ``(n,)``.

        Raises:
            ValueError: not fitted yet, another width than at fitting, a value is not finite, or
                the standard deviation is asked of a predictor that does not know it.
        """
        if return_std and not self.knows_std:
            raise ValueError(
                f"{type(self).__name__} does not know its uncertainty: leave return_std out, or "
                "choose a Gaussian process, a Bayesian predictor or auto"
            )
        x = self._ready(encodings)
        if return_std:
            return self._predict_with_std(x) if len(x) else (np.zeros(0), np.zeros(0))
        return self._predict(x) if len(x) else np.zeros(0)

    def _ready(self, encodings: ArrayLike) -> NDArray[np.float32]:
        """Encodings that the fitted predictor can take; raises ValueError."""
        if not hasattr(self, "n_features_in_"):
            raise ValueError(f"{type(self).__name__} is not fitted yet: call fit first")
        x = self._checked(encodings)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"encodings have {x.shape[1]} columns; fitted on {self.n_features_in_}"
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
                raise ValueError(f"{len(y)} samples need as many weights; got {weights.shape}")
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
    """A predictor that tells, by itself, how far each latency may be off."""

    @abstractmethod
    def predict_interval(
        self, encodings: ArrayLike, coverage: float = 0.9
    ) -> tuple[Floats, Floats]:
        """Return lower and upper ends, ms, ``(n,)``, that hold a share ``coverage`` of latencies.

        Raises:
            ValueError: as :meth:`predict`, or the coverage is not between 0 and 1.
        """

    @abstractmethod
    def predict_at_most(
        self, encodings: ArrayLike, probability: float = 0.9
    ) -> tuple[Floats, Floats]:
        """Return latencies, ms, and what they are at most with that probability, both ``(n,)``.

        Raises:
            ValueError: as :meth:`predict`, or the probability is not between 0 and 1.
        """
