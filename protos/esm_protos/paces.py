"""How a device fares at a moment, against what is usual for it, told by its reference models.

A device does not have one pace. On a shared machine networks whose weights the last-level cache
holds vary by a tenth over minutes while others vary by a hundredth. The reference models are a
ladder: one is limited by arithmetic, the others by weights of growing size. How far each lies
from its usual latency is one pace. A model is slowed down by arithmetic as much as the first
rung, and by memory as the rungs next to it in size, in proportion to how much of its time its
weights can cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esm_protos.messages import Usual
from esm_protos.statistics import t_quantile, trimmed_mean

Floats = NDArray[np.float64]

WEIGHTLESS = 1_000_000
"""Bytes of weights, below which nothing waits for them."""
_HALF_MEMORY = 0.07
"""Share of an inference that streaming its weights from memory would take at which half of what
slows memory down reaches it."""
_MOST = 1.3
"""Greatest sensitivity to a rung: extrapolation ends here."""
_SENSITIVITY_ERROR = 0.3
"""Standard error of a sensitivity to memory, as a share of it."""
_BASE_SPREAD = 0.03
_MEMORY_SPREAD = (0.03, 0.09)
"""Standard deviations between moments that are reckoned with before anything is known: of the
first rung, and, beyond it, of the second and the last one."""
_LADDER_BYTES = (7_000_000, 67_000_000)
"""Weights of those rungs."""
_KIND_SPREAD = 0.1
"""Standard deviation, from block to block, of what models that belong together share beyond the
paces: the networks of a campaign, which follow one another with cold caches, feel more of a busy
memory than the reference models, which are warm."""
_OWN_SPREAD = 0.003
_OWN_MEMORY = 0.12
"""What varies between moments for one model alone: a share of the latency, and a share of what
its memory varies by."""
_RARE = 0.01
"""Probability of deviations that are taken for a disturbance, though there is none."""
_MOST_APART = 5.0
"""Standard errors beyond which deviations are taken for one, however little is remembered."""
_NOTHING = 1e-12
"""Precision of what nothing is known of."""
_FINEST = 1e-4
"""Standard deviation, of a logarithm, below which nothing is known."""
_FEW_MOMENTS = 8
_USUAL_VARIANCE = 1.2
"""Variance of a mean of the middle half of so many moments, times their number, over a moment's."""
_SESSION_SPREAD = 0.005
_SESSION_MEMORY = (0.01, 0.03)
"""Standard deviations between sessions: of any model; and more of those whose weights fill the
caches, and of those that they do not hold. Where pages lie in memory decides how fast they are
read."""


@dataclass(frozen=True)
class Reading:
    """One reference model in a block.

    Attributes:
        weight_bytes: of its initializers.
        latency_ns: trimmed mean.
        error: standard error of ``latency_ns``, as a share of it.
    """

    name: str
    weight_bytes: int
    latency_ns: float
    error: float


@dataclass(frozen=True)
class Shift:
    """How far a model's logarithmic latency in a block lies from the usual one.

    Attributes:
        value: expected; positive when the device is slower than usual.
        passing: standard error of ``value`` by what a longer block would tell.
        lasting: standard error by what it would not: what is usual, and what varies for the
            model alone.
        memory: the part of ``value`` that memory makes.
        shared: the part of ``lasting`` that blocks minutes apart have in common: what is not known
            of the usual, and is therefore not corrected.
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
    """A model of which the usual latency is known, beside the reference models.

    Attributes:
        deviation: its logarithmic latency in the block less the usual one.
        error: standard error of ``deviation``.
    """

    weight_bytes: int
    latency_ns: float
    deviation: float
    error: float


class Paces:
    """A block's paces, as its reference models tell them.

    Fits ``d = p + e`` with ``d`` the references' deviations from their usual logarithmic
    latencies, ``p`` the device's paces, ``(r,)``, normal with the covariance that they have from
    block to block, and ``e`` the error of a reading: what ``p`` is expected to be given ``d``
    (kriging). The less is known, of the block or of the past, the less is corrected.

    Args:
        readings: of the block; those that ``usual`` does not know are left out.
        usual: None where nothing is remembered.
        known: further models that tell of the paces.
    """

    def __init__(
        self,
        readings: Sequence[Reading],
        usual: Usual | None,
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
        """How much slower each rung is than usual, as a logarithm, ``(r,)``."""
        self.kind = 0.0
        """Further slowdown of the block's models, from the known ones, as a logarithm."""
        self._gain: Floats = np.zeros((count + 1, count))
        # Paces and, last, the kind.
        self._unknown = self._error = self._shared = _with_kind(self._covariance, 0.0)
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
        usual_error = _with_kind(between_moments * _USUAL_VARIANCE / self.moments, 0.0)
        lasting = np.array([_session_error(row) ** 2 for row in np.eye(count)])
        passing = np.array([rung.error**2 for rung in self._rungs])
        noise = usual_error[:count, :count] + np.diag(lasting + passing)
        more, disturbed = self._surprise(deviations, noise)
        self._covariance = self._covariance + more
        lasting = lasting + disturbed
        covariance = _with_kind(self._covariance, _KIND_SPREAD**2 if known else 0.0)
        feels = np.eye(count, count + 1)
        if known:
            told = [self.sensitivities(w.weight_bytes, w.latency_ns) for w in known]
            feels = np.vstack([feels, *(np.append(row, 1.0) for row in told)])
            deviations = np.append(deviations, [w.deviation for w in known])
            passing = np.append(passing, [w.error**2 for w in known])
            owns = [self._own(row, w.weight_bytes) ** 2 for row, w in zip(told, known, strict=True)]
            lasting = np.append(lasting, owns)
        noise = np.diag(lasting) + feels @ usual_error @ feels.T
        both = noise + np.diag(passing)
        gain = covariance @ feels.T @ np.linalg.pinv(feels @ covariance @ feels.T + both)
        self._gain = gain[:, :count]
        found = gain @ deviations
        self.values, self.kind = found[:count], float(found[count])
        left = np.eye(count + 1) - gain @ feels
        self._unknown = left @ covariance @ left.T + gain @ noise @ gain.T
        self._shared = left @ covariance @ left.T
        self._shared = self._shared + gain @ feels @ usual_error @ feels.T @ gain.T
        self._error = self._unknown + gain @ np.diag(passing) @ gain.T

    def _surprise(self, deviations: Floats, noise: Floats) -> tuple[Floats, Floats]:
        """Return additions to the paces' covariance and to the variances of readings, where rungs
        stray further than the past lets expect.

        All may do so together, on a device that is slower than it ever was: that is believed. One
        alone may be disturbed, or be as it never was: both are held possible.

        Args:
            noise: covariance of the readings' errors, ``(r, r)``.
        """
        count = len(deviations)
        most = min(t_quantile(int(self.freedom), 1 - _RARE / count), _MOST_APART)
        more, disturbed = np.zeros((count, count)), np.zeros(count)
        for number in range(count):
            expected = self._covariance + more + noise + np.diag(disturbed)
            precision = np.linalg.pinv(expected + _FINEST**2 * np.eye(count), hermitian=True)
            if not number:
                together = max(float(precision.sum()), _NOTHING) ** -0.5
                common = precision.sum(axis=0) @ deviations * together**2
                if abs(common) > most * together:
                    more += common**2
                    continue
            # Of each rung, less what the others say of it.
            own = np.maximum(np.diag(precision), _NOTHING)
            alone = precision @ deviations / own
            strange = np.abs(alone) * np.sqrt(own)
            worst = int(np.argmax(strange))
            if strange[worst] <= most:
                break
            more[worst, worst] += alone[worst] ** 2
            disturbed[worst] += alone[worst] ** 2
        return more, disturbed

    @property
    def known(self) -> bool:
        """Whether anything is remembered to compare with."""
        return self.moments > 0

    @property
    def freedom(self) -> float:
        """Degrees of freedom of what is remembered."""
        return 2 + self.moments / 2

    def sensitivities(self, weight_bytes: int, latency_ns: float) -> Floats:
        """Return how much of each rung's pace a model feels, ``(r,)``."""
        count = len(self._rungs)
        found = np.zeros(count)
        if not count:
            return found
        found[0] = 1.0
        if count == 1 or not weight_bytes:
            return found
        sizes = [math.log(max(rung.weight_bytes, 1)) for rung in self._rungs]
        place = float(np.interp(math.log(weight_bytes), sizes, np.arange(float(count))))
        low = min(int(place), count - 2)
        feels = self._memory_share(weight_bytes, latency_ns)
        for rung, weight in ((low, 1 - (place - low)), (low + 1, place - low)):
            if rung:
                own = self._rungs[rung]
                least = self._memory_share(own.weight_bytes, own.latency_ns)
                found[rung] = weight * (min(feels / least, _MOST) if least else _MOST)
        found[0] = 1 - found[1:].sum()
        return found

    def weights(self, weight_bytes: int, latency_ns: float) -> dict[str, float]:
        """Return how much of each reference model's deviation is taken out of a model's latency."""
        feels = np.append(self.sensitivities(weight_bytes, latency_ns), 1.0)
        weights = feels @ self._gain
        return {rung.name: float(w) for rung, w in zip(self._rungs, weights, strict=True)}

    def shift(self, weight_bytes: int, latency_ns: float) -> Shift:
        """Return how far a model is from what is usual for it.

        Args:
            latency_ns: in the block.
        """
        if not self._rungs:
            return Shift(0.0, 0.0, 0.0, 0.0)
        feels = self.sensitivities(weight_bytes, latency_ns)
        by_memory = float(feels @ self.values - self.values[0])
        return self._shift(np.append(feels, 1.0), by_memory, self._own(feels, weight_bytes) ** 2)

    def difference(self, one: tuple[int, float], other: tuple[int, float]) -> Shift:
        """Return how far the logarithm of two models' ratio is from the usual one.

        Both feel the same paces, so what is not known of these cancels as far as they feel them
        alike.

        Args:
            one, other: weight in bytes, and latency in nanoseconds in the block.
        """
        if not self._rungs:
            return Shift(0.0, 0.0, 0.0, 0.0)
        a, b = (self.sensitivities(*model) for model in (one, other))
        own = self._own(a, one[0]) ** 2 + self._own(b, other[0]) ** 2
        # Whatever the kind, both are of it.
        return self._shift(np.append(a - b, 0.0), float((a - b) @ self.values), own)

    def _shift(self, feels: Floats, by_memory: float, own: float) -> Shift:
        """Shift of what feels the paces, and the kind, so.

        Args:
            own: variance that is no pace's.
        """
        own += (_SENSITIVITY_ERROR * by_memory) ** 2

        def variance(covariance: Floats) -> float:
            return max(float(feels @ covariance @ feels), 0.0)

        return Shift(
            float(feels[:-1] @ self.values + feels[-1] * self.kind),
            math.sqrt(variance(self._error - self._unknown)),
            math.sqrt(variance(self._unknown) + own),
            by_memory,
            math.sqrt(variance(self._shared)),
        )

    def session_error(self, weight_bytes: int, latency_ns: float) -> float:
        """Return the standard deviation between sessions that is reckoned with, as a share."""
        return _session_error(self.sensitivities(weight_bytes, latency_ns))

    def _own(self, feels: Floats, weight_bytes: int) -> float:
        """Standard deviation of what varies between moments for one model alone, and of what no
        rung tells where the ladder lacks the one next to it."""
        memory = feels.copy()
        memory[0] -= 1
        varies = max(float(memory @ self._covariance @ memory), 0.0)
        expected = _memory_spread(weight_bytes)
        low, high = (_memory_spread(self._rungs[end].weight_bytes) for end in (0, -1))
        untold = expected - min(max(expected, low), high)
        return math.sqrt(_OWN_SPREAD**2 + _OWN_MEMORY**2 * varies + untold**2)

    def _memory_share(self, weight_bytes: float, latency_ns: float) -> float:
        """What slows memory down reaches so much of a model's time."""
        last = self._rungs[-1]
        streamed = weight_bytes / latency_ns * last.latency_ns / max(last.weight_bytes, 1)
        return streamed / (streamed + _HALF_MEMORY)


def _memory_spread(weight_bytes: int) -> float:
    """Standard deviation of what memory costs a model of such weights, before anything is known."""
    sizes = np.log([WEIGHTLESS, *_LADDER_BYTES])
    return float(np.interp(math.log(max(weight_bytes, 1)), sizes, [0.0, *_MEMORY_SPREAD]))


def _size(reading: Reading) -> int:
    return reading.weight_bytes


def usual_of(
    references: Sequence[str],
    at_unix_s: Floats,
    latency_ns: Floats,
    moment: NDArray[np.int64] | None = None,
) -> Usual | None:
    """Return what is usual over moments; None where there are none.

    A moment has the median of its blocks.

    Args:
        at_unix_s: of the blocks, in order, ``(n,)``.
        latency_ns: of each reference, ``(n, r)``, NaN where it is not known. References that more
            than half of the blocks lack are left out, and then blocks that lack another.
        moment: number of the moment that each block belongs to, ``(n,)``; by default each is one.
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
    return Usual(
        tuple(references),
        np.exp(middle),
        _products(logs - logs.mean(axis=0)) ** 0.5,
        len(logs),
        float(at_unix_s[-1] - at_unix_s[0]),
        np.mean(squares, axis=0) ** 0.5,
    )


def _products(deviations: Floats) -> Floats:
    """Mean squares of deviations on the diagonal, of differences of two elsewhere, ``(r, r)``."""
    differences = deviations[:, :, None] - deviations[:, None, :]
    diagonal = np.eye(deviations.shape[1]) * deviations[:, :, None]
    return np.asarray(np.square(differences + diagonal).mean(axis=0))


def _middle(values: Floats) -> float:
    """Mean of the middle half; of few values the median, which one of them cannot move far."""
    few = len(values) < _FEW_MOMENTS
    return float(np.median(values)) if few else trimmed_mean(values, 0.25)


def _covariance(spread: Floats) -> Floats:
    """Covariance of which the spreads are; without negative eigenvalues."""
    variance = np.diag(spread) ** 2
    found = (variance[:, None] + variance[None, :] - spread**2) / 2
    np.fill_diagonal(found, variance)
    values, vectors = np.linalg.eigh(found)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _with_kind(covariance: Floats, variance: float) -> Floats:
    """The covariance with one more component, which is independent of the others."""
    return np.pad(covariance, (0, 1)) + np.diag(np.append(np.zeros(len(covariance)), variance))


def _prior(count: int) -> Floats:
    """Covariance before anything is known: a base that all share, and memory, felt more the
    larger the weights."""
    if not count:
        return np.zeros((0, 0))
    memory = np.zeros(count)
    memory[1:] = np.linspace(*_MEMORY_SPREAD, max(count - 1, 1))
    return np.asarray(_BASE_SPREAD**2 + np.outer(memory, memory))


def _session_error(feels: Floats) -> float:
    """Standard deviation between sessions of what feels the rungs so."""
    if len(feels) < 2:
        return _SESSION_SPREAD
    held, beyond = _SESSION_MEMORY
    return math.hypot(_SESSION_SPREAD, held * float(feels[1:-1].sum()), beyond * float(feels[-1]))
