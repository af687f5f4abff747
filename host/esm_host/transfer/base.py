"""Base class of few-shot predictors, which transfer from other devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.errors import UsageError
from esm_host.plugins import own_failures
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace
from esm_protos.plugins import own_file, own_name
from esm_protos.text import counted

Floats = NDArray[np.float64]


class FewShotPredictor(ABC):
    """Predictor of a new device from few measurements and the latencies of source devices.

    ``learn`` is called once and may take long. ``adapt`` is then called for each new device, always
    starting from the sources alone. The public methods check, the private ones compute. Constructor
    arguments are hyperparameters; ``seed`` is the random seed.
    """

    absolute: ClassVar[bool] = False
    """Whether predictions are milliseconds; otherwise only their order counts."""

    least_samples: ClassVar[int] = 1
    """Smallest number of samples of the new device."""

    least_sources: ClassVar[int] = 1
    """Smallest number of sources."""

    sampler: ClassVar[str] = "random"
    """Sampler of a campaign's first architectures, from :data:`esm_host.transfer.SAMPLERS`, if the
    user gives none. For the project's own methods :data:`esm_host.transfer.METHODS` has it."""

    per_source: ClassVar[int | None] = None
    """Architectures of a source that a campaign learns from at most; None takes all."""

    space: SearchSpace

    @abstractmethod
    def _learn(self, sources: Sequence[Source]) -> None: ...

    @abstractmethod
    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        """Adapt to a device, without a change to the results of ``_learn``."""

    @abstractmethod
    def _predict(self, codes: Codes) -> Floats: ...

    def trained(self) -> Mapping[str, NDArray[np.generic]]:
        """Return the arrays that are slow to train on the sources, by name.

        It is empty for a method that learns quickly.
        """
        return {}

    def _restore(
        self, sources: Sequence[Source], trained: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Do the same as ``_learn`` with arrays from :meth:`trained` instead of training."""
        self._learn(sources)

    def check(self, space: SearchSpace, sources: Sequence[str]) -> None:
        """Check that the method can learn this space from sources of these names.

        Raises:
            UsageError: it cannot.
        """
        if len(sources) < self.least_sources:
            raise UsageError(
                f"{type(self).__name__} needs {counted(self.least_sources, 'source')} or more, not "
                f"only {' and '.join(sources) or 'none'}: give more, or choose another method"
            )

    def learn(
        self,
        sources: Sequence[Source],
        trained: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> Self:
        """Learn what the source devices have in common.

        Args:
            sources: Sources of one space.
            trained: Result of :meth:`trained` for the same sources, instead of training.

        Raises:
            ValueError: there is no source, or they are of several spaces.
        """
        if not sources:
            raise ValueError("no sources to learn from")
        self.learnt_ = self.adapted_ = False
        self.space = sources[0].space
        for source in sources:
            if not source.space.name == self.space.name:
                raise ValueError(f"{source.name} is of another space than {sources[0].name}")
            self._check(source.codes, source.latency_ms)
        with own_failures(self):
            if trained is None:
                self._learn(sources)
            else:
                self._restore(sources, trained)
        self.learnt_ = True
        return self

    def adapt(self, codes: Codes, latency_ms: ArrayLike) -> Self:
        """Adapt to a new device by a few of its measurements.

        Args:
            codes: Architectures, ``(n, *space.code_shape)``.
            latency_ms: Latencies, ms, ``(n,)``.

        Raises:
            ValueError: :meth:`learn` was not called, shapes disagree, there are fewer samples than
                :attr:`least_samples`, or a latency is not positive and finite.
        """
        if not getattr(self, "learnt_", False):
            raise ValueError(f"{type(self).__name__} has no sources yet: call learn first")
        values = np.asarray(latency_ms, dtype=np.float64)
        self._check(codes, values)
        if len(values) < self.least_samples:
            raise ValueError(
                f"{counted(len(values), 'sample')}: {type(self).__name__} needs "
                f"{self.least_samples} or more"
            )
        with own_failures(self):
            self._adapt(codes, values)
        self.adapted_ = True
        return self

    def predict(self, codes: Codes) -> Floats:
        """Return latencies, ms, or scores of the same order (:attr:`absolute`), ``(n,)``.

        Raises:
            ValueError: :meth:`adapt` was not called, or the codes are of another space.
            EsmError: a class from a user's file fails, or predictions are no numbers.
        """
        if not getattr(self, "adapted_", False):
            raise ValueError(f"{type(self).__name__} has not been adapted yet: call adapt first")
        self._check(codes)
        if not len(codes):
            return np.zeros(0)
        with own_failures(self):
            predicted = self._predict(codes)
        found = np.asarray(predicted)
        if found.shape != (len(codes),) or found.dtype.kind not in "fiu":
            raise UsageError(
                f"{own_name(self)}: _predict returned an array {found.shape} of {found.dtype} for "
                f"{len(codes)} architectures: return one number for each"
            )
        if not np.isfinite(found).all():
            raise UsageError(
                f"{own_name(self)}: _predict returned {found[~np.isfinite(found)][0]}: return "
                "finite numbers"
            )
        if self.absolute and own_file(self) and (least := float(found.min())) <= 0:
            raise UsageError(
                f"{own_name(self)}: _predict returned a latency of {least:g} ms: return more than "
                "0, or set absolute = False for scores"
            )
        return predicted

    def _check(self, codes: Codes, latency_ms: Floats | None = None) -> None:
        shape = self.space.code_shape
        if codes.ndim != 3 or codes.shape[1:] != shape:
            raise ValueError(f"codes of {self.space.name} are (n, {shape[0]}, {shape[1]})")
        if latency_ms is None:
            return
        if latency_ms.shape != (len(codes),) or not len(codes):
            raise ValueError(
                f"{counted(len(codes), 'architecture')}: give as many latencies, at least one"
            )
        if not np.isfinite(latency_ms).all() or (latency_ms <= 0).any():
            raise ValueError("latencies must be positive, finite milliseconds")
