"""Loop that trains, evaluates and extends (ESM, Fig. 5 and Algorithm 1), for your own measurements.

You ask the loop for architectures and tell it their latencies. It has no device, store or
network. Campaigns use the same loop (:mod:`esm_host.extension.campaign_loop`). ESM is the paper
that README.md cites (DAC 2025).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from esm_host.arguments import argument, in_python
from esm_host.dataset.table import Samples
from esm_host.errors import UsageError
from esm_host.extension.drawing import Draw, Drawing
from esm_host.extension.informative import DeviceTimes
from esm_host.extension.settings import SamplingSettings, TrainingSettings
from esm_host.extension.training import Evaluation, Learner
from esm_host.predictors.base import Predictor
from esm_host.sampling import make_sampler
from esm_host.sampling.base import Sampler
from esm_host.typed import typed
from esm_models.architecture import Architecture
from esm_models.space import SearchSpace
from esm_protos.text import counted

LEAST_ROUNDS = 2
"""Smallest number of rounds after which chosen samples tell how accurate the predictor is."""


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
        self._seconds = seconds
        self._drawing = Drawing(
            space, self._settings, self._learner, self._sampler, draw_first, seconds
        )
        self._rounds: list[list[Architecture]] = []
        self._checks: set[int] = set()
        self._excluded: set[str] = set()
        self._told: dict[Architecture, tuple[float, float]] = {}
        self._exhausted = False
        self._evaluation: Evaluation | None = None
        self._predictor: Predictor | None = None
        self._last_trained: tuple[Samples, Predictor] | None = None
        self._affordable: float | None = None

    @property
    def rounds(self) -> list[list[Architecture]]:
        """Architectures by round, to :meth:`restore` a loop from."""
        return [list(architectures) for architectures in self._rounds]

    @property
    def checks(self) -> set[int]:
        """Numbers of the rounds that check the predictor, to :meth:`restore` a loop from."""
        return set(self._checks)

    @typed
    def restore(
        self,
        rounds: Iterable[Sequence[Architecture | Mapping[str, Any] | str]],
        exclude: Collection[str] = (),
        checks: Collection[int] = (),
    ) -> None:
        """Restore earlier rounds; tell their latencies again.

        Args:
            rounds: Architectures of the earlier rounds.
            exclude: Keys of further architectures that must not be drawn.
            checks: Numbers of the rounds that check the predictor.

        Raises:
            InvalidArchitectureError: an architecture is not in the search space.
            UsageError: a check is not one of the rounds.
        """
        self._rounds = [self._read(architectures) for architectures in rounds]
        if not set(checks) <= set(range(len(self._rounds))):
            raise UsageError(
                f"{argument('checks')} {sorted(checks)}: give numbers of the "
                f"{counted(len(self._rounds), 'round')}, from 0 on"
            )
        self._checks = set(checks)
        self._excluded = set(exclude)
        self._exhausted = False
        self._forget()

    def ask(self) -> list[Architecture]:
        """Return the architectures to measure next; empty at the end of the loop.

        They stay the same until all of them are told. Then the predictor is trained and
        evaluated, and the next architectures are drawn. Once the target is reached or the budget
        is used, random ones check the predictor, which does not learn from them. If the target is
        no longer reached then, the loop goes on.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        waiting = self._waiting()
        if waiting or self.ending:
            return waiting
        number, is_check = len(self._rounds), False
        if not number:
            drawn = self._drawing.first(self._settings.initial, self._taken)
        elif self._stop:
            is_check = True
            drawn = self._drawing.by_chance(number, self._check_size, self._taken)
        else:
            drawn = self._next(number)
        self._exhausted = not drawn
        if drawn:
            self._rounds.append(drawn)
            if is_check:
                self._checks.add(number)
        return list(drawn)

    def _next(self, number: int) -> list[Architecture]:
        """Draw the next round to learn from."""
        samples, failed_check = self._samples(), self._is_checked

        def predictor() -> Predictor:
            return self._learner.train(samples) if failed_check else self.predictor

        n = min(self._settings.step, self._left)
        drawn = self._drawing.further(number, n, self._taken, self.evaluation, predictor, samples)
        if failed_check:  # its models are samples to learn from now
            self._forget()
        return drawn

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
        """Whether the target accuracy is reached, in every bin or overall, and was checked.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        ready = bool(self._told) and not self._waiting()
        return ready and self._is_final and self.reached and not self._failed_to_check

    @property
    def reason(self) -> str:
        """Reason for the end, with Python names of arguments; empty while the loop continues."""
        return in_python(self.ending)

    @property
    def ending(self) -> str:
        """``reason`` with names of arguments still marked (:mod:`esm_host.arguments`)."""
        if not self._rounds or self._waiting():
            return ""
        if self._stop and self._is_final:
            return self._stop
        return "the search space has no more architectures" if self._exhausted else ""

    @property
    def evaluation(self) -> Evaluation:
        """Evaluation of the predictor on all latencies.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        if self._evaluation is None:
            samples, held_out = self._samples(), self._held_out()
            training = samples.at(~held_out)
            if not self._learner.enough(len(training)):
                raise UsageError(
                    f"{len(training)} of {len(self._told)} architectures have a latency: too few "
                    "to learn from"
                )
            chooses = self._sampler.chooses
            trained = self.predictor if chooses else None
            evaluation = self._learner.evaluate(training, self._bins, trained)
            if self._is_checked:
                evaluation = self._learner.check(
                    evaluation, samples, held_out, self.predictor, self._bins
                )
            if chooses:
                evaluation = self._learner.expect(
                    evaluation,
                    samples,
                    self.predictor,
                    self._drawing.population,
                    self._bins,
                    self._settings.confidence_percent / 100,
                )
            self._evaluation = evaluation
        return self._evaluation

    @property
    def predictor(self) -> Predictor:
        """Predictor trained on all latencies, except those of the last check.

        Raises:
            UsageError: there are no latencies.
        """
        if self._predictor is None:
            training = self._samples().at(~self._held_out())
            if not len(training):
                raise UsageError("there are no latencies to learn from: call tell first")
            if self._last_trained is None or not training.equals(self._last_trained[0]):
                self._last_trained = training, self._learner.train(training)
            self._predictor = self._last_trained[1]
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
        """Discard what follows from the told latencies and the rounds."""
        self._evaluation = None
        self._predictor = None
        self._affordable = None

    def _samples(self) -> Samples:
        known = {a: told for a, told in self._told.items() if not np.isnan(told[0])}
        values = np.array(list(known.values()), dtype=np.float64).reshape(-1, 2)
        return Samples(list(known), values[:, 0], values[:, 1])

    def _held_out(self) -> NDArray[np.bool_]:
        """Return whether each sample belongs to a check that no round follows, ``(n,)``."""
        held_out = {a.key for a in self._checked}
        return np.array([a.key in held_out for a in self._samples().architectures], dtype=bool)

    # Rounds

    @property
    def _taken(self) -> set[str]:
        """Keys of the architectures that must not be drawn."""
        asked = {a.key for architectures in self._rounds for a in architectures}
        return self._excluded | asked | {a.key for a in self._told}

    def _waiting(self) -> list[Architecture]:
        """Return the architectures of the last round that were not yet told."""
        return [a for a in (self._rounds[-1] if self._rounds else ()) if a not in self._told]

    # The end

    @property
    def _learnt_rounds(self) -> int:
        """Number of rounds before the last check, or of all rounds without one."""
        number = len(self._rounds)
        while number - 1 in self._checks:
            number -= 1
        return number

    @property
    def _checked(self) -> list[Architecture]:
        """Architectures of a check that no round follows; a raised ``verify`` adds a round."""
        return [a for architectures in self._rounds[self._learnt_rounds :] for a in architectures]

    @property
    def _is_checked(self) -> bool:
        """Whether the last round is a check."""
        return len(self._rounds) - 1 in self._checks

    @property
    def _check_size(self) -> int:
        """Number of architectures that the check lacks; fewer if the budget does not suffice."""
        missing, affordable = self._settings.verify - len(self._checked), self._affordable_models()
        if self._is_checked and missing > affordable:
            return 0  # the budget has limited the check before
        return max(math.floor(min(missing, affordable)), 0)

    @property
    def _is_final(self) -> bool:
        """Whether a reason to stop needs no further check."""
        if self._exhausted or not self._check_size:
            return True
        return not self.reached and self._to_learn_from >= self._settings.max_models

    @property
    def reached(self) -> bool:
        """Whether the accuracy reaches the target, in every bin or overall, checked or not.

        Raises:
            UsageError: there are too few latencies to learn from.
        """
        settings = self._settings
        if self._sampler.chooses and len(self._told) < LEAST_ROUNDS * settings.initial:
            return False
        return self.evaluation.reaches(settings.target_accuracy_percent, settings.judge)

    @property
    def _stop(self) -> str:
        """Reason to stop learning; empty if there is none."""
        if self.reached and self._failed_to_check:
            return "no model of the check could be measured"
        if self.reached:
            return "the target accuracy is reached"
        if self._left > 0:
            return ""
        settings = self._settings
        if self._to_learn_from >= settings.max_models:
            checked = len(self._checked)
            without = f", without the {counted(checked, 'model')} of the check" if checked else ""
            return f"{argument('max_models')} {settings.max_models} is reached{without}"
        return f"{settings.named_budget} is used"

    @property
    def _to_learn_from(self) -> int:
        """Number of architectures to learn from."""
        return sum(map(len, self._rounds[: self._learnt_rounds]))

    @property
    def _left(self) -> int:
        """Number of further architectures that the largest number and the budget allow."""
        settings = self._settings
        affordable = self._affordable_models() - settings.verify
        return math.floor(min(settings.max_models - self._to_learn_from, affordable))

    def _affordable_models(self) -> float:
        """Return the number of further architectures that the budget allows.

        Each takes the mean device time so far, which a campaign reads from its store.
        """
        if self._settings.budget_s is None:
            return math.inf
        if self._affordable is None:
            latency_ms = self._samples().latency_ms
            if not len(latency_ms):
                return math.inf
            model_s = float(np.mean(self._seconds(latency_ms)))
            self._affordable = self._settings.budget_s / max(model_s, 1e-9) - len(latency_ms)
        return self._affordable

    @property
    def _failed_to_check(self) -> bool:
        """Whether no model of the last check could be measured."""
        check = self.evaluation.check
        return check is not None and not check.models


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
