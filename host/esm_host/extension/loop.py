"""Loop that trains, evaluates and extends (ESM, Fig. 5 and Algorithm 1), for your own measurements.

You ask the loop for architectures and tell it their latencies. It has no device, store or
network. Campaigns use the same loop (:mod:`esm_host.extension.campaign_loop`). ESM is the paper
that README.md cites (DAC 2025).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.arguments import argument, in_python
from esm_host.dataset.table import Samples
from esm_host.errors import UsageError
from esm_host.evaluation.accuracy import BinAccuracy
from esm_host.extension.allocate import allocate, by_shortfall
from esm_host.extension.committee import choose
from esm_host.extension.informative import DeviceTimes, choose_next
from esm_host.extension.settings import SamplingSettings, TrainingSettings
from esm_host.extension.training import Evaluation, Learner
from esm_host.predictors.base import Predictor
from esm_host.sampling import make_sampler
from esm_host.sampling.base import Sampler
from esm_host.transfer.choose import choose as choose_first
from esm_host.typed import typed
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError
from esm_models.space import SearchSpace
from esm_protos.plugins import own_name
from esm_protos.text import counted

CANDIDATES = 30
"""Number of candidates that the cost-aware extension draws per selected architecture."""
CANDIDATES_AT_ONCE = 1000
"""Number of candidates of which the most informative ones are measured."""
LEAST_ROUNDS = 2
"""Smallest number of rounds after which chosen samples tell how accurate the predictor is."""
POPULATION = 100
"""Number of random architectures of a bin for which its accuracy is estimated."""


class Draw(Protocol):
    """Function that draws ``n`` new architectures of a bin; fewer if the bin is exhausted."""

    def __call__(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]: ...


class Loop:
    """Loop that proposes architectures to measure until the predictor reaches its target accuracy.

    Args:
        space: Search space of the architectures.
        sampling: Settings of sampling and the target; None uses the defaults.
        training: Settings of the predictor and its training; None uses the defaults.
        learner: Learner of the predictor; None makes it from ``training``.
        draw_first: Function that draws the first round from the whole space; None draws by bin
            with the sampler.
        seconds: Device times of models, for the cost-aware extension and for informative samples;
            by default their latencies.
        sampler: Sampler; None makes it from ``sampling``.

    Raises:
        UsageError: the settings do not suit the space, or include a warm start.

    Example::

        loop = esm_host.Loop(space, esm_host.SamplingSettings(initial=40, step=20))
        while architectures := loop.ask():
            loop.tell(architectures, [measure(a) for a in architectures])
        loop.predict(others)  # milliseconds
    """

    @typed
    def __init__(
        self,
        space: SearchSpace,
        sampling: SamplingSettings | None = None,
        training: TrainingSettings | None = None,
        *,
        learner: Learner | None = None,
        draw_first: Draw | None = None,
        seconds: DeviceTimes = lambda latency_ms: latency_ms / 1e3,
        sampler: Sampler | None = None,
    ) -> None:
        self._space = space
        self._settings = sampling or SamplingSettings()
        self._learner = learner or Learner.of(space, training or TrainingSettings())
        self._bins = self._settings.depth_bins(space)
        self._sampler = sampler or make_sampler(self._settings.sampling, space, self._bins)
        self._draw_first = draw_first
        self._seconds = seconds
        self._rounds: list[list[Architecture]] = []
        self._excluded: set[str] = set()
        self._told: dict[Architecture, tuple[float, float]] = {}
        self._exhausted = False
        self._evaluation: Evaluation | None = None
        self._predictor: Predictor | None = None

    @property
    def rounds(self) -> list[list[Architecture]]:
        """Architectures by round, to :meth:`restore` a loop from."""
        return [list(architectures) for architectures in self._rounds]

    @typed
    def restore(
        self,
        rounds: Iterable[Sequence[Architecture | Mapping[str, Any] | str]],
        exclude: Collection[str] = (),
    ) -> None:
        """Restore earlier rounds; tell their latencies again.

        Args:
            rounds: Architectures of the earlier rounds.
            exclude: Keys of further architectures that must not be drawn.

        Raises:
            InvalidArchitectureError: an architecture is not in the search space.
        """
        self._rounds = [self._read(architectures) for architectures in rounds]
        self._excluded = set(exclude)
        self._exhausted = False

    def ask(self) -> list[Architecture]:
        """Return the architectures to measure next; empty at the end of the loop.

        They stay the same until all of them are told. Then the predictor is trained and
        evaluated, and the next architectures are drawn.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        waiting = self._waiting()
        if waiting or self.ending:
            return waiting
        drawn = self._draw(len(self._rounds))
        if drawn:
            self._rounds.append(drawn)
        self._exhausted = not drawn
        return list(drawn)

    @typed
    def tell(
        self,
        architectures: Sequence[Architecture | Mapping[str, Any] | str],
        latency_ms: ArrayLike,
        interval: ArrayLike | None = None,
    ) -> None:
        """Add measured latencies; a later latency of an architecture replaces an earlier one.

        Args:
            architectures: Architectures of the space, usually those of :meth:`ask`.
            latency_ms: Latencies, ms, shape ``(n,)``; NaN for a model that could not be measured.
            interval: Half-width of each 95 % confidence interval, as a share of the latency,
                shape ``(n,)``. Wide intervals count less in training. None gives equal weights.

        Raises:
            UsageError: the number of values differs from that of the architectures, or a value is
                invalid.
            InvalidArchitectureError: an architecture is not in the search space.
        """
        told = self._read(architectures)
        latencies = _column("latency_ms", latency_ms, len(told))
        intervals = _column("interval", 0.0 if interval is None else interval, len(told))
        known = ~np.isnan(latencies)
        if not (latencies[known] > 0).all() or np.isinf(latencies).any():
            raise UsageError(
                f"{argument('latency_ms')}: give positive milliseconds, or NaN for a model that "
                "could not be measured"
            )
        if not (intervals[known] >= 0).all():
            raise UsageError(f"{argument('interval')}: give shares of the latencies, 0 or more")
        values = zip(latencies.tolist(), intervals.tolist(), strict=True)
        self._told.update(zip(told, values, strict=True))
        self._forget()

    @property
    def accuracy_percent(self) -> float:
        """Accuracy (100 - MAPE) on architectures not seen in training; NaN without latencies.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        return self.evaluation.accuracy_percent if self._told else float("nan")

    @property
    def converged(self) -> bool:
        """Whether the target accuracy is reached, in every bin or overall.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        if not self._told:
            return False
        if self._sampler.chooses and len(self._told) < LEAST_ROUNDS * self._settings.initial:
            return False
        if self._settings.judge == "bins":
            return all(self._passing())
        overall = self.evaluation.accuracy_percent
        if self._sampler.chooses:
            overall = float(np.nanmean([_surely(each) for each in self.evaluation.bins]))
        return overall >= self._settings.target_accuracy_percent

    @property
    def reason(self) -> str:
        """Reason for the end, with Python names of arguments; empty while the loop continues."""
        return in_python(self.ending)

    @property
    def ending(self) -> str:
        """``reason`` with names of arguments still marked (:mod:`esm_host.arguments`)."""
        if not self._rounds or self._waiting():
            return ""
        if self.converged:
            return "the target accuracy is reached"
        if self._asked >= self._settings.max_models:
            return f"{argument('max_models')} {self._settings.max_models} is reached"
        return "the search space has no more architectures" if self._exhausted else ""

    @property
    def evaluation(self) -> Evaluation:
        """Evaluation of the predictor on all latencies.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        if self._evaluation is None:
            samples = self._samples()
            if not self._learner.enough(len(samples)):
                raise UsageError(
                    f"{len(samples)} of {len(self._told)} architectures have a latency: too few to "
                    "learn from"
                )
            if not self._sampler.chooses:
                evaluation = self._learner.evaluate(samples, self._bins)
            else:
                evaluation = self._learner.evaluate(samples, self._bins, self.predictor)
                evaluation = self._learner.expect(
                    evaluation,
                    samples,
                    self.predictor,
                    self._population,
                    self._bins,
                    self._settings.confidence_percent / 100,
                )
            self._evaluation = evaluation
        return self._evaluation

    @property
    def predictor(self) -> Predictor:
        """Predictor trained on all latencies.

        Raises:
            UsageError: there are no latencies.
        """
        if self._predictor is None:
            samples = self._samples()
            if not len(samples):
                raise UsageError("there are no latencies to learn from: call tell first")
            self._predictor = self._learner.train(samples)
        return self._predictor

    @typed
    def predict(
        self, architectures: Sequence[Architecture | Mapping[str, Any] | str]
    ) -> NDArray[np.float64]:
        """Return predicted latencies, ms, shape ``(n,)``.

        Raises:
            UsageError: there are no latencies to learn from.
            InvalidArchitectureError: an architecture is not in the search space.
        """
        given = self._read(architectures)
        return self.predictor.predict(self._learner.encoder.encode(given))

    def _read(
        self, architectures: Iterable[Architecture | Mapping[str, Any] | str]
    ) -> list[Architecture]:
        """Return architectures of the space from any of their forms."""
        read = [self._space.read(given) for given in architectures]
        for architecture in read:
            if architecture not in self._told:
                self._space.validate(architecture)
        return read

    # Told latencies

    def _forget(self) -> None:
        """Discard the cached predictor and evaluation."""
        self._evaluation = None
        self._predictor = None

    def _samples(self) -> Samples:
        known = {a: told for a, told in self._told.items() if not np.isnan(told[0])}
        values = np.array(list(known.values()), dtype=np.float64).reshape(-1, 2)
        return Samples(list(known), values[:, 0], values[:, 1])

    def _passing(self) -> list[bool]:
        """Return whether each bin reaches the target; a bin without samples does not."""
        target = self._settings.target_accuracy_percent
        return [_surely(each) >= target for each in self.evaluation.bins]

    # Rounds

    @property
    def _asked(self) -> int:
        return sum(map(len, self._rounds))

    def _waiting(self) -> list[Architecture]:
        """Return the architectures of the last round that were not yet told."""
        return [a for a in (self._rounds[-1] if self._rounds else ()) if a not in self._told]

    def _draw(self, number: int) -> list[Architecture]:
        """Draw the next round; empty if the space is exhausted."""
        settings, is_first = self._settings, number == 0
        wanted = settings.initial if is_first else settings.step
        step = min(wanted, settings.max_models - self._asked)
        if is_first and self._draw_first is not None:
            return self._drawn(number, step, None, self._draw_first)
        if self._sampler.chooses:
            return self._drawn(number, step, None, self._draw_informative)
        quotas = self._sampler.quotas(step)
        if is_first or quotas is None:
            return self._drawn(number, step, quotas, self._sampler.sample)
        if settings.extension == "cost-aware":
            accuracy = [_accuracy(each) for each in self.evaluation.bins]
            quotas = by_shortfall(step, accuracy, settings.target_accuracy_percent)
            return self._drawn(number, step, quotas, self._draw_instructive)
        quotas = allocate(step, self._passing(), settings.weight_below, settings.weight_above)
        return self._drawn(number, step, quotas, self._sampler.sample)

    @cached_property
    def _population(self) -> list[list[Architecture]]:
        """Random architectures of each bin, for which the accuracy is estimated."""
        rng = np.random.default_rng([self._settings.seed, POPULATION])
        return [self._sampler.sample(POPULATION, rng, each) for each in range(self._bins.count)]

    def _draw_informative(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]:
        """Draw candidates by bin and keep the most informative ones."""
        share = -(-max(CANDIDATES_AT_ONCE, 2 * n) // self._bins.count)
        pool = [
            candidate
            for each in range(self._bins.count)
            for candidate in self._sampler.sample(share, rng, each, exclude)
        ]
        strata = self._bins.of(np.array([each.depth for each in pool], dtype=np.int64))
        samples, encoder = self._samples(), self._learner.encoder
        if len(samples):
            importance = self._importance()[strata]
            rows = choose_next(pool, n, encoder, self.predictor, samples, importance, self._seconds)
        else:
            rows = choose_first(encoder, self._space.encode(pool), n, strata=strata)
        return [pool[row] for row in rows]

    def _importance(self) -> NDArray[np.float64]:
        """Return the weight of each bin in the choice: the square of its expected error.

        The bins below the target share ``weight_below`` to the ``weight_above`` of the others.
        """
        errors = np.array([100 - each.accuracy_percent for each in self.evaluation.bins])
        passing = np.array(self._passing())
        share = np.where(passing, self._settings.weight_above, self._settings.weight_below)
        return np.asarray(share * errors**2)

    def _draw_instructive(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]:
        """Draw many candidates and keep those with the largest gain per second of device time."""
        pool = self._sampler.sample(CANDIDATES * n, rng, bin_index, exclude)
        encodings = self._learner.encoder.encode(pool)
        rows = choose(self.evaluation.committee, encodings, self._seconds, n)
        return [pool[row] for row in rows]

    def _drawn(
        self, number: int, total: int, quotas: list[int] | None, draw: Draw
    ) -> list[Architecture]:
        def drawn_by(n: int, bin_index: int | None, taken: Collection[str]) -> list[Architecture]:
            return self._checked(draw, draw(n, rng, bin_index, taken), n, taken)

        rng = np.random.default_rng([self._settings.seed, number])
        asked = {a.key for architectures in self._rounds for a in architectures}
        taken = self._excluded | asked | {a.key for a in self._told}
        drawn: list[Architecture] = []
        if quotas is None:
            drawn = drawn_by(total, None, taken)
        else:
            for index, quota in enumerate(quotas):
                drawn.extend(drawn_by(quota, index, taken | {a.key for a in drawn}))
            if len(drawn) < total:  # other bins take the share of an exhausted one
                others = taken | {a.key for a in drawn}
                drawn.extend(drawn_by(total - len(drawn), None, others))
        # Shuffle the bins, so that one bad measurement block affects every bin only slightly.
        return [drawn[index] for index in rng.permutation(len(drawn))]

    def _checked(
        self, draw: Draw, drawn: Iterable[Architecture], n: int, taken: Collection[str]
    ) -> list[Architecture]:
        """Return architectures as drawn.

        Raises:
            UsageError: there are too many, or one is not in the space, or not new.
        """
        who = argument("draw_first") if draw is self._draw_first else own_name(self._sampler)
        found = list(drawn)
        if len(found) > n:
            raise UsageError(f"{who} draws {len(found)} architectures: draw {n} at most")
        seen = set(taken)
        for architecture in found:
            try:
                self._space.validate(self._space.read(architecture))
            except InvalidArchitectureError as error:
                raise UsageError(f"{who} draws what is not in the space: {error}") from error
            if architecture.key in seen:
                raise UsageError(
                    f"{who} draws {architecture.to_text()} twice: draw different architectures, "
                    "none of them in exclude"
                )
            seen.add(architecture.key)
        return found


def _column(name: str, values: ArrayLike, count: int) -> NDArray[np.float64]:
    """Return one value for each of ``count`` architectures; a scalar is repeated."""
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{argument(name)}: give {counted(count, 'number')}") from error
    if values is None or column.shape not in ((), (count,)):
        raise UsageError(
            f"{argument(name)} has the shape {column.shape}: give {counted(count, 'value')}, one "
            "for each architecture"
        )
    return np.broadcast_to(column, (count,))


def _surely(entry: BinAccuracy) -> float:
    """Return the accuracy of a bin, or its lower bound where that is estimated."""
    return entry.accuracy_percent if entry.lower_percent is None else entry.lower_percent


def _accuracy(entry: BinAccuracy) -> float | None:
    return entry.accuracy_percent if entry.samples else None
