"""What learns a new device from few measurements and what is known of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.errors import UsageError
from esm_host.transfer.source import Source
from esm_models.space import Codes, SearchSpace

Floats = NDArray[np.float64]


class FewShotPredictor(ABC):
    """Learns devices that are known well, then one of which little is.

    ``learn`` once, which may take long; then ``adapt`` for one new device after the other, each
    time from what was learnt of the sources alone. The public methods check, the private ones
    compute. Constructor arguments are hyperparameters; ``seed`` is that of all random numbers.
    """

    absolute: ClassVar[bool] = False
    """Whether it predicts milliseconds; where not, only the order of its predictions counts."""

    least_samples: ClassVar[int] = 1
    """Of the new device."""

    least_sources: ClassVar[int] = 1

    sampler: ClassVar[str] = "random"
    """In :data:`esm_host.transfer.SAMPLERS`, that chooses what a campaign measures unless another
    is asked for. What comes with the project says so in :data:`esm_host.transfer.METHODS`."""

    per_source: ClassVar[int | None] = None
    """Architectures of a source that a campaign learns from at most; None takes all."""

    space: SearchSpace

    @abstractmethod
    def _learn(self, sources: Sequence[Source]) -> None: ...

    @abstractmethod
    def _adapt(self, codes: Codes, latency_ms: Floats) -> None:
        """May not change what ``_learn`` found."""

    @abstractmethod
    def _predict(self, codes: Codes) -> Floats: ...

    def trained(self) -> Mapping[str, NDArray[np.generic]]:
        """Return the arrays that training on the sources took its time for, by name.

        Nothing of a method that learns in a moment.
        """
        return {}

    def _restore(
        self, sources: Sequence[Source], trained: Mapping[str, NDArray[np.generic]]
    ) -> None:
        """Does what ``_learn`` does, with arrays that :meth:`trained` gave instead of training."""
        self._learn(sources)

    def check(self, space: SearchSpace, sources: Sequence[str]) -> None:
        """Raise UsageError unless it can learn this space from sources of these names."""
        if len(sources) < self.least_sources:
            raise UsageError(
                f"{type(self).__name__} learns from {self.least_sources} sources or more, not from "
                f"{' and '.join(sources) or 'none'} alone: give more, or choose another method"
            )

    def learn(
        self,
        sources: Sequence[Source],
        trained: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> Self:
        """Learns what devices have in common.

        Args:
            trained: what :meth:`trained` gave after the same sources had been learnt, in place of
                learning them again.

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
        if trained is None:
            self._learn(sources)
        else:
            self._restore(sources, trained)
        self.learnt_ = True
        return self

    def adapt(self, codes: Codes, latency_ms: ArrayLike) -> Self:
        """Learns a new device from a few of its measurements.

        Args:
            codes: ``(n, *space.code_shape)``.
            latency_ms: ``(n,)``.

        Raises:
            ValueError: nothing was learnt yet, shapes disagree, there are fewer than
                :attr:`least_samples`, or a latency is not positive and finite.
        """
        if not getattr(self, "learnt_", False):
            raise ValueError(f"{type(self).__name__} has learnt nothing yet: call learn first")
        values = np.asarray(latency_ms, dtype=np.float64)
        self._check(codes, values)
        if len(values) < self.least_samples:
            raise ValueError(
                f"{len(values)} samples: {type(self).__name__} needs {self.least_samples} or more"
            )
        self._adapt(codes, values)
        self.adapted_ = True
        return self

    def predict(self, codes: Codes) -> Floats:
        """Latencies on the new device, or what ranks as they do (:attr:`absolute`), ``(n,)``.

        Raises:
            ValueError: not adapted to any device yet, or the codes have another space's shape.
        """
        if not getattr(self, "adapted_", False):
            raise ValueError(f"{type(self).__name__} has not been adapted yet: call adapt first")
        self._check(codes)
        return self._predict(codes) if len(codes) else np.zeros(0)

    def _check(self, codes: Codes, latency_ms: Floats | None = None) -> None:
        shape = self.space.code_shape
        if codes.ndim != 3 or codes.shape[1:] != shape:
            raise ValueError(f"codes of {self.space.name} are (n, {shape[0]}, {shape[1]})")
        if latency_ms is None:
            return
        if latency_ms.shape != (len(codes),) or not len(codes):
            raise ValueError(f"{len(codes)} architectures need as many latencies, at least one")
        if not np.isfinite(latency_ms).all() or (latency_ms <= 0).any():
            raise ValueError("latencies must be positive, finite milliseconds")
