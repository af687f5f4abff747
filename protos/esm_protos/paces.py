"""Paces of a device in a block, relative to its usual ones, from its reference models.

A device has more than one pace. On a shared machine, networks whose weights fit the last-level
cache vary by 10 % over minutes, while others vary by 1 %. The reference models form a ladder: the
first rung is limited by arithmetic, the others by weights of growing size. The distance of a rung
from its usual latency is one pace. Arithmetic slows a model down as much as the first rung.
Memory slows it down as much as the rungs next to it in size, scaled by the share of its time that
its weights can take.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_protos.messages import UsualLatencies
from esm_protos.statistics import t_quantile, trimmed_mean

Floats = NDArray[np.float64]

WEIGHTLESS = 1_000_000
"""Bytes of weights below which a model does not wait for memory."""
_HALF_MEMORY = 0.07
"""Share of an inference, spent on streaming weights from memory, at which half of a memory
slowdown affects a model."""
_MAX_SENSITIVITY = 1.3
"""Largest sensitivity to a rung, which bounds extrapolation."""
_SENSITIVITY_ERROR = 0.3
"""Standard error of a sensitivity to memory, as a share of it."""
_BASE_SPREAD = 0.03
_MEMORY_SPREAD = (0.03, 0.09)
"""Prior standard deviations between moments: of the first rung, and what the second and the last
rung vary beyond it."""
_LADDER_BYTES = (7_000_000, 67_000_000)
"""Bytes of weights of the second and the last rung."""
_COMMON_SPREAD = 0.1
"""Standard deviation between blocks of a slowdown that the models of a block share beyond the
paces. A campaign's networks run with cold caches, so a busy memory slows them down more than the
warm reference models."""
_OWN_SPREAD = 0.003
_OWN_MEMORY = 0.12
"""Variation between moments of a single model: a share of the latency, and a share of the
variation of its memory pace."""
_FALSE_ALARM = 0.01
"""Probability that ordinary deviations are taken for a disturbance."""
_MAX_ERRORS = 5.0
"""Number of standard errors that always counts as a disturbance, however short the history."""
_MIN_PRECISION = 1e-12
"""Smallest precision, which avoids a division by zero."""
_MIN_SPREAD = 1e-4
"""Smallest standard deviation of a logarithm that is resolved."""
_FEW_MOMENTS = 8
_USUAL_VARIANCE = 1.2
"""Variance of the interquartile mean of n moments, times n, relative to the variance of one."""
_SESSION_SPREAD = 0.005
_SESSION_MEMORY = (0.01, 0.03)
"""Standard deviations between sessions: of any model; further ones of models whose weights fill
the caches, and of models whose weights exceed them. The location of pages in memory decides how
fast they are read."""


@dataclass(frozen=True)
class Reading:
    """Latency of a reference model in a block.

    Attributes:
        name: Name of the reference model.
        weight_bytes: Bytes of its initializers.
        latency_ns: Trimmed mean, ns.
        error: Standard error of ``latency_ns``, as a share of it.
    """

    name: str
    weight_bytes: int
    latency_ns: float
    error: float


@dataclass(frozen=True)
class Shift:
    """Distance of a model's logarithmic latency in a block from its usual one.

    Attributes:
        value: Expected distance; positive if the device is slower than usual.
        passing: Standard error of ``value`` that a longer block would reduce.
        lasting: Standard error that it would not reduce: of the usual latency, and of the model's
            own variation.
        memory: Part of ``value`` from memory.
        shared: Part of ``lasting`` that is common to blocks minutes apart: the error of the usual
            latency.
    """

    value: float
    passing: float
    lasting: float
    memory: float
    shared: float = 0.0

    @property
    def error(self) -> float:
        """Standard error of ``value``."""
        return math.hypot(self.passing, self.lasting)


@dataclass(frozen=True)
class KnownModel:
    """Model of a block whose usual latency is known from other blocks.

    Attributes:
        weight_bytes: Bytes of its initializers.
        latency_ns: Latency in the block, ns.
        deviation: Logarithmic latency in the block minus the usual one.
        error: Standard error of ``deviation``.
    """

    weight_bytes: int
    latency_ns: float
    deviation: float
    error: float


class Paces:
    """Paces of a block, estimated from its reference models.

    Fits ``d = p + e`` and returns the expectation of ``p`` given ``d`` (kriging). ``d`` holds the
    reference models' deviations from their usual logarithmic latencies, shape ``(r,)``. ``p``
    holds the device's paces, normal with their covariance from block to block. ``e`` is the error
    of a reading. A short block or a short history gives a small correction.

    Args:
        readings: Readings of the block; those that ``usual`` lacks are left out.
        usual: Usual latencies of the reference models; None if there is no history.
        known: Further models with a known usual latency.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        usual: UsualLatencies | None,
        known: Sequence[KnownModel] = (),
    ) -> None:
        if usual is not None and (
            usual.moments < 1 or not any(each.name in usual.references for each in readings)
        ):
            usual = None
        names = () if usual is None else usual.references
        if usual is not None:
            readings = [reading for reading in readings if reading.name in names]
        self._rungs = sorted(readings, key=_size)
        count = len(self._rungs)
        self.moments = usual.moments if usual is not None and count else 0
        self._covariance = _prior(count)
        self.values: Floats = np.zeros(count)
        """Slowdown of each rung, as a logarithm of its latency over the usual, shape ``(r,)``."""
        self.common = 0.0
        """Slowdown of all the block's models beyond the paces, as a logarithm; from ``known``."""
        self._gain: Floats = np.zeros((count + 1, count))
        # Covariances of the paces; the last component is the common slowdown.
        self._unknown = self._error = self._shared = _with_common(self._covariance, 0.0)
        if usual is None or not count:
            return
        rows = [names.index(rung.name) for rung in self._rungs]
        seen = _covariance(usual.spread[np.ix_(rows, rows)])
        between_moments = (self._covariance + self.moments * seen) / (1 + self.moments)
        if usual.block_spread is not None:
            seen = _covariance(usual.block_spread[np.ix_(rows, rows)])
        self._covariance = (self._covariance + self.moments * seen) / (1 + self.moments)
        own = np.array([rung.latency_ns for rung in self._rungs])
        deviations = np.log(own) - np.log(usual.latency_ns[rows])
        usual_error = _with_common(between_moments * _USUAL_VARIANCE / self.moments, 0.0)
        lasting = np.array([_session_error(row) ** 2 for row in np.eye(count)])
        passing = np.array([rung.error**2 for rung in self._rungs])
        noise = usual_error[:count, :count] + np.diag(lasting + passing)
        more, disturbed = self._outlier_variances(deviations, noise)
        self._covariance = self._covariance + more
        lasting = lasting + disturbed
        covariance = _with_common(self._covariance, _COMMON_SPREAD**2 if known else 0.0)
        design = np.eye(count, count + 1)
        if known:
            known_rows = [self.sensitivities(w.weight_bytes, w.latency_ns) for w in known]
            design = np.vstack([design, *(np.append(row, 1.0) for row in known_rows)])
            deviations = np.append(deviations, [w.deviation for w in known])
            passing = np.append(passing, [w.error**2 for w in known])
            owns = [
                self._own(row, w.weight_bytes) ** 2
                for row, w in zip(known_rows, known, strict=True)
            ]
            lasting = np.append(lasting, owns)
        noise = np.diag(lasting) + design @ usual_error @ design.T
        both = noise + np.diag(passing)
        gain = covariance @ design.T @ np.linalg.pinv(design @ covariance @ design.T + both)
        self._gain = gain[:, :count]
        solution = gain @ deviations
        self.values, self.common = solution[:count], float(solution[count])
        left = np.eye(count + 1) - gain @ design
        self._unknown = left @ covariance @ left.T + gain @ noise @ gain.T
        self._shared = left @ covariance @ left.T
        self._shared = self._shared + gain @ design @ usual_error @ design.T @ gain.T
        self._error = self._unknown + gain @ np.diag(passing) @ gain.T

    def _outlier_variances(self, deviations: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """Return variances for rungs that deviate more than the history suggests.

        All rungs may deviate together, because the device is slower than ever before: then the
        paces get the variance. A single rung may be disturbed, or have an unusual pace: then the
        pace and the reading both get it.

        Args:
            deviations: Deviations of the rungs from their usual logarithmic latencies, ``(r,)``.
            noise: Covariance of the readings' errors, ``(r, r)``.

        Returns:
            An addition to the paces' covariance, ``(r, r)``, and one to the readings' variances,
            ``(r,)``.
        """
        count = len(deviations)
        limit = min(t_quantile(int(self.freedom), 1 - _FALSE_ALARM / count), _MAX_ERRORS)
        more, disturbed = np.zeros((count, count)), np.zeros(count)
        for number in range(count):
            expected = self._covariance + more + noise + np.diag(disturbed)
            precision = np.linalg.pinv(expected + _MIN_SPREAD**2 * np.eye(count), hermitian=True)
            if not number:
                common_error = max(float(precision.sum()), _MIN_PRECISION) ** -0.5
                common = precision.sum(axis=0) @ deviations * common_error**2
                if abs(common) > limit * common_error:
                    more += common**2
                    continue
            # Residual of each rung, given the other rungs.
            own = np.maximum(np.diag(precision), _MIN_PRECISION)
            residual = precision @ deviations / own
            errors = np.abs(residual) * np.sqrt(own)
            worst = int(np.argmax(errors))
            if errors[worst] <= limit:
                break
            more[worst, worst] += residual[worst] ** 2
            disturbed[worst] += residual[worst] ** 2
        return more, disturbed

    @property
    def known(self) -> bool:
        """Whether the usual latencies of any rung are known."""
        return self.moments > 0

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the history."""
        return 2 + self.moments / 2

    def sensitivities(self, weight_bytes: int, latency_ns: float) -> Floats:
        """Return a model's sensitivity to the pace of each rung, shape ``(r,)``."""
        count = len(self._rungs)
        result = np.zeros(count)
        if not count:
            return result
        result[0] = 1.0
        if count == 1 or not weight_bytes:
            return result
        sizes = [math.log(max(rung.weight_bytes, 1)) for rung in self._rungs]
        place = float(np.interp(math.log(weight_bytes), sizes, np.arange(float(count))))
        low = min(int(place), count - 2)
        model_share = self._memory_share(weight_bytes, latency_ns)
        for rung, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
            if rung:
                own = self._rungs[rung]
                share = self._memory_share(own.weight_bytes, own.latency_ns)
                ratio = model_share / share if share else _MAX_SENSITIVITY
                result[rung] = weight * min(ratio, _MAX_SENSITIVITY)
        result[0] = 1 - result[1:].sum()
        return result

    def weights(self, weight_bytes: int, latency_ns: float) -> dict[str, float]:
        """Return the share of each reference model's deviation in a model's correction."""
        sensitivity = np.append(self.sensitivities(weight_bytes, latency_ns), 1.0)
        weights = sensitivity @ self._gain
        return {rung.name: float(w) for rung, w in zip(self._rungs, weights, strict=True)}

    def shift(self, weight_bytes: int, latency_ns: float) -> Shift:
        """Return the distance of a model's latency in the block from its usual one.

        Args:
            weight_bytes: Bytes of the model's initializers.
            latency_ns: Latency in the block, ns.
        """
        if not self._rungs:
            return Shift(0.0, 0.0, 0.0, 0.0)
        sensitivity = self.sensitivities(weight_bytes, latency_ns)
        memory = float(sensitivity @ self.values - self.values[0])
        own = self._own(sensitivity, weight_bytes) ** 2
        return self._shift(np.append(sensitivity, 1.0), memory, own)

    def difference(self, one: tuple[int, float], other: tuple[int, float]) -> Shift:
        """Return the distance of two models' logarithmic ratio from the usual one.

        Errors of the paces cancel as far as both models are equally sensitive to them.

        Args:
            one: Bytes of weights, and latency in the block, ns, of the first model.
            other: The same of the second model.
        """
        if not self._rungs:
            return Shift(0.0, 0.0, 0.0, 0.0)
        a, b = (self.sensitivities(*model) for model in (one, other))
        own = self._own(a, one[0]) ** 2 + self._own(b, other[0]) ** 2
        # Both models share the common slowdown, so it cancels.
        return self._shift(np.append(a - b, 0.0), float((a - b) @ self.values), own)

    def _shift(self, sensitivity: Floats, memory: float, own: float) -> Shift:
        """Return the shift of a model with these sensitivities.

        Args:
            sensitivity: Sensitivities to the paces and, last, to the common slowdown, ``(r + 1,)``.
            memory: Part of the shift from memory.
            own: Variance of the model's own variation.
        """
        own += (_SENSITIVITY_ERROR * memory) ** 2

        def variance(covariance: Floats) -> float:
            return max(float(sensitivity @ covariance @ sensitivity), 0.0)

        return Shift(
            float(sensitivity[:-1] @ self.values + sensitivity[-1] * self.common),
            math.sqrt(variance(self._error - self._unknown)),
            math.sqrt(variance(self._unknown) + own),
            memory,
            math.sqrt(variance(self._shared)),
        )

    def session_error(self, weight_bytes: int, latency_ns: float) -> float:
        """Return the prior standard deviation between sessions, as a share."""
        return _session_error(self.sensitivities(weight_bytes, latency_ns))

    def _own(self, sensitivity: Floats, weight_bytes: int) -> float:
        """Return the standard deviation between moments that the paces do not explain.

        It is larger for a model whose size is outside the ladder.
        """
        memory = sensitivity.copy()
        memory[0] -= 1
        varies = max(float(memory @ self._covariance @ memory), 0.0)
        expected = _memory_spread(weight_bytes)
        low, high = (_memory_spread(self._rungs[end].weight_bytes) for end in (0, -1))
        outside = expected - min(max(expected, low), high)
        return math.sqrt(_OWN_SPREAD**2 + _OWN_MEMORY**2 * varies + outside**2)

    def _memory_share(self, weight_bytes: float, latency_ns: float) -> float:
        """Return the share of a model's time that a memory slowdown affects."""
        last = self._rungs[-1]
        streamed = weight_bytes / latency_ns * last.latency_ns / max(last.weight_bytes, 1)
        return streamed / (streamed + _HALF_MEMORY)


def _memory_spread(weight_bytes: int) -> float:
    """Return the prior standard deviation of the memory pace of a model of this size."""
    sizes = np.log([WEIGHTLESS, *_LADDER_BYTES])
    return float(np.interp(math.log(max(weight_bytes, 1)), sizes, [0.0, *_MEMORY_SPREAD]))


def _size(reading: Reading) -> int:
    return reading.weight_bytes


def usual_latencies(
    references: Sequence[str],
    at_unix_s: Floats,
    latency_ns: Floats,
    moment: NDArray[np.int64] | None = None,
) -> UsualLatencies | None:
    """Return the usual latencies over all moments; None without blocks.

    The latency at a moment is the median of its blocks.

    Args:
        references: Names of the reference models, r of them.
        at_unix_s: Times of the blocks, in order, Unix seconds, shape ``(n,)``.
        latency_ns: Latencies of the reference models, ns, shape ``(n, r)``, NaN if unknown.
            Reference models that more than half of the blocks lack are left out, then all blocks
            with a NaN.
        moment: Number of each block's moment, shape ``(n,)``; by default each block is a moment.
    """
    moment = np.arange(len(at_unix_s)) if moment is None else moment
    often = np.isnan(latency_ns).sum(axis=0) <= len(latency_ns) / 2
    references = [name for name, is_often in zip(references, often, strict=True) if is_often]
    latency_ns = latency_ns[:, often]
    whole = ~np.isnan(latency_ns).any(axis=1)
    at_unix_s, latency_ns, moment = at_unix_s[whole], latency_ns[whole], moment[whole]
    if not len(latency_ns) or not latency_ns.shape[1]:
        return None
    blocks = np.log(latency_ns)
    of_moments = [np.flatnonzero(moment == number) for number in np.unique(moment)]
    logs = np.array([np.median(blocks[own], axis=0) for own in of_moments])
    middle = np.array([_middle(column) for column in logs.T])
    squares = [_products(blocks[own] - middle) for own in of_moments]
    return UsualLatencies(
        tuple(references),
        np.exp(middle),
        _products(logs - logs.mean(axis=0)) ** 0.5,
        len(logs),
        float(at_unix_s[-1] - at_unix_s[0]),
        np.mean(squares, axis=0) ** 0.5,
    )


def _products(deviations: Floats) -> Floats:
    """Return mean squares, ``(r, r)``: of deviations on the diagonal, else of differences."""
    differences = deviations[:, :, None] - deviations[:, None, :]
    diagonal = np.eye(deviations.shape[1]) * deviations[:, :, None]
    return np.asarray(np.square(differences + diagonal).mean(axis=0))


def _middle(values: Floats) -> float:
    """Return the interquartile mean; the median of few values, which resists an outlier."""
    few = len(values) < _FEW_MOMENTS
    return float(np.median(values)) if few else trimmed_mean(values, 0.25)


def _covariance(spread: Floats) -> Floats:
    """Return the nearest covariance with these spreads, without negative eigenvalues.

    Args:
        spread: Standard deviations on the diagonal, those of differences elsewhere, ``(r, r)``.
    """
    variance = np.diag(spread) ** 2
    covariance = (variance[:, None] + variance[None, :] - spread**2) / 2
    np.fill_diagonal(covariance, variance)
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _with_common(covariance: Floats, variance: float) -> Floats:
    """Return the covariance with a further, independent component of this variance."""
    return np.pad(covariance, (0, 1)) + np.diag(np.append(np.zeros(len(covariance)), variance))


def _prior(count: int) -> Floats:
    """Return the prior covariance of the paces, ``(r, r)``.

    All rungs share a base. The memory part grows with the size of the weights.
    """
    if not count:
        return np.zeros((0, 0))
    memory = np.zeros(count)
    memory[1:] = np.linspace(*_MEMORY_SPREAD, max(count - 1, 1))
    return np.asarray(_BASE_SPREAD**2 + np.outer(memory, memory))


def _session_error(sensitivity: Floats) -> float:
    """Return the prior standard deviation between sessions of a model, as a share."""
    if len(sensitivity) < 2:
        return _SESSION_SPREAD
    cached, uncached = (
        float(sensitivity[1:-1].sum()) * _SESSION_MEMORY[0],
        float(sensitivity[-1]) * _SESSION_MEMORY[1],
    )
    return math.hypot(_SESSION_SPREAD, cached, uncached)
