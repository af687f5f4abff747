"""Choice of a round's architectures: by the sampler, by bins, or by what they teach."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.dataset.table import Samples
from esm_host.errors import UsageError
from esm_host.extension.allocate import allocate, by_shortfall
from esm_host.extension.committee import choose
from esm_host.extension.informative import DeviceTimes, choose_next
from esm_host.extension.settings import SamplingSettings
from esm_host.extension.training import Evaluation, Learner
from esm_host.predictors.base import Predictor
from esm_host.sampling.base import Sampler
from esm_host.transfer.choose import choose as choose_first
from esm_models.architecture import Architecture
from esm_models.errors import InvalidArchitectureError
from esm_models.space import SearchSpace
from esm_protos.plugins import own_name

CANDIDATES = 30
"""Number of candidates that the cost-aware extension draws per selected architecture."""
CANDIDATES_AT_ONCE = 1000
"""Number of candidates of which the most informative ones are measured."""
POPULATION = 100
"""Number of random architectures of a bin for which its accuracy is estimated."""


class Draw(Protocol):
    """Function that draws ``n`` new architectures of a bin; fewer if the bin is exhausted."""

    def __call__(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]: ...


class Drawing:
    """Choice of architectures for one loop.

    Args:
        space: Search space.
        settings: Settings of sampling.
        learner: Learner of the predictor.
        sampler: Sampler.
        draw_first: Function that draws the first round from the whole space; None draws by bin
            with the sampler.
        seconds: Device times of models.
    """

    def __init__(
        self,
        space: SearchSpace,
        settings: SamplingSettings,
        learner: Learner,
        sampler: Sampler,
        draw_first: Draw | None,
        seconds: DeviceTimes,
    ) -> None:
        self._space = space
        self._settings = settings
        self._learner = learner
        self._encoder = learner.encoder
        self._sampler = sampler
        self._draw_first = draw_first
        self._seconds = seconds
        self._bins = settings.depth_bins(space)

    @cached_property
    def population(self) -> list[list[Architecture]]:
        """Random architectures of each bin, for which the accuracy is estimated."""
        rng = np.random.default_rng([self._settings.seed, POPULATION])
        return [self._sampler.sample(POPULATION, rng, each) for each in range(self._bins.count)]

    def first(self, n: int, taken: Collection[str]) -> list[Architecture]:
        """Draw the first round.

        Args:
            n: Number of architectures; fewer if the space is exhausted.
            taken: Keys of architectures that must not be drawn.

        Raises:
            UsageError: a sampler of your own draws too many, or what is not in the space or taken.
        """
        rng = self._rng(0)
        if self._draw_first is not None:
            return self._drawn(n, None, self._draw_first, rng, taken)
        if self._sampler.chooses:
            return self._drawn(n, None, self._most_informative_of_all, rng, taken)
        return self._drawn(n, self._sampler.quotas(n), self._sampler.sample, rng, taken)

    def further(
        self,
        number: int,
        n: int,
        taken: Collection[str],
        evaluation: Evaluation,
        predictor: Callable[[], Predictor],
        samples: Samples,
    ) -> list[Architecture]:
        """Draw a later round; see :meth:`first`.

        Args:
            number: Number of the round.
            n: Number of architectures.
            taken: Keys of architectures that must not be drawn.
            evaluation: Evaluation of the predictor.
            predictor: Function that returns a predictor trained on the samples.
            samples: Samples so far.
        """
        rng, settings = self._rng(number), self._settings
        if self._sampler.chooses:
            percent = np.array([each.surely_percent for each in evaluation.bins])
            surely = np.nan_to_num(percent, nan=100.0).tolist()  # a bin without architectures

            def by_teaching(
                n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
            ) -> list[Architecture]:
                pool, strata = self._candidates(n, rng, exclude)
                rows = choose_next(
                    pool,
                    n,
                    self._encoder,
                    predictor(),
                    samples,
                    self._learner.weights(samples),
                    self._seconds,
                    strata,
                    by_shortfall(n, surely, settings.target_accuracy_percent),
                )
                return [pool[row] for row in rows]

            return self._drawn(n, None, by_teaching, rng, taken)
        quotas = self._sampler.quotas(n)
        if quotas is not None and settings.extension == "cost-aware":

            def by_disagreement(
                n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
            ) -> list[Architecture]:
                pool = self._sampler.sample(CANDIDATES * n, rng, bin_index, exclude)
                encodings = self._encoder.encode(pool)
                return [
                    pool[row] for row in choose(evaluation.committee, encodings, self._seconds, n)
                ]

            accuracy = [each.accuracy_percent if each.samples else None for each in evaluation.bins]
            quotas = by_shortfall(n, accuracy, settings.target_accuracy_percent)
            return self._drawn(n, quotas, by_disagreement, rng, taken)
        if quotas is not None:
            passing = evaluation.passing(settings.target_accuracy_percent)
            quotas = allocate(n, passing, settings.weight_below, settings.weight_above)
        return self._drawn(n, quotas, self._sampler.sample, rng, taken)

    def by_chance(self, number: int, n: int, taken: Collection[str]) -> list[Architecture]:
        """Draw at random, equally many of each bin if the sampler knows bins; see :meth:`first`.

        Fewer architectures than bins are drawn from the whole space, not from the first bins.
        """
        quotas = self._sampler.quotas(n) if n >= self._bins.count else None
        return self._drawn(n, quotas, self._sampler.sample, self._rng(number), taken)

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self._settings.seed, number])

    def _candidates(
        self, n: int, rng: np.random.Generator, exclude: Collection[str]
    ) -> tuple[list[Architecture], NDArray[np.int64]]:
        """Return candidates, equally many of each bin, and their bins."""
        share = -(-max(CANDIDATES_AT_ONCE, 2 * n) // self._bins.count)
        pool = [
            candidate
            for each in range(self._bins.count)
            for candidate in self._sampler.sample(share, rng, each, exclude)
        ]
        return pool, self._bins.of(np.array([each.depth for each in pool], dtype=np.int64))

    def _most_informative_of_all(
        self, n: int, rng: np.random.Generator, bin_index: int | None, exclude: Collection[str]
    ) -> list[Architecture]:
        """Draw what teaches most before anything is known."""
        pool, strata = self._candidates(n, rng, exclude)
        rows = choose_first(self._encoder, self._space.encode(pool), n, strata=strata)
        return [pool[row] for row in rows]

    def _drawn(
        self,
        total: int,
        quotas: list[int] | None,
        draw: Draw,
        rng: np.random.Generator,
        taken: Collection[str],
    ) -> list[Architecture]:
        def drawn_by(n: int, bin_index: int | None, taken: Collection[str]) -> list[Architecture]:
            return self._checked(draw, draw(n, rng, bin_index, taken), n, taken)

        drawn: list[Architecture] = []
        if quotas is None:
            drawn = drawn_by(total, None, taken)
        else:
            for index, quota in enumerate(quotas):
                drawn.extend(drawn_by(quota, index, {*taken, *(a.key for a in drawn)}))
            if len(drawn) < total:  # other bins take the share of an exhausted one
                others = {*taken, *(a.key for a in drawn)}
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
