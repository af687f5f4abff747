"""Search that measures its front, updates the predictors and searches again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esm_host.search.genes import distinct, keys
from esm_host.search.method import SearchMethod
from esm_host.search.problem import Candidates, Measure, Problem
from esm_models.space import Codes

EXPECTED, OPTIMISTIC = 0.5, 0.1
"""Probabilities of a latency to be at most its bound, from the second round on.

What is measured anyway needs no promise to keep a limit, and the best lie at the limit. Rounds
first choose what is expected to be on the front. Then they choose what is on the front with the
probability :data:`OPTIMISTIC`.
"""


class Site(Protocol):
    """Device on which chosen architectures are measured."""

    def known(self) -> Codes:
        """Return the architectures measured so far, ``(m, *code_shape)``."""

    def latency(self, probability: float) -> Measure:
        """Return the latencies, and other metrics of the search, by all measurements so far.

        Their bounds hold with the probability.

        See :class:`~esm_host.search.latency.LatencyMeasure`.
        """

    def measure(self, codes: Codes, number: int) -> None:
        """Measure those of the architectures that are not measured yet.

        A failed one counts as known and infeasible. Several sites measure at once, each in its own
        thread.

        Args:
            codes: Architectures.
            number: Number of the search's round, from 1; 0 before the first.
        """


@dataclass(frozen=True, eq=False)
class Round:
    """One round of searching and measuring.

    Attributes:
        front: Front by the predictions of this round.
        chosen: Architectures chosen to be measured, with predictions. It is empty if the whole
            front is measured or the budget is spent.
        evaluations: Number of scored architectures.
        probability: Probability of the latencies' bounds.
    """

    front: Candidates
    chosen: Candidates
    evaluations: int
    probability: float


@dataclass(frozen=True, eq=False)
class Verification:
    """Measurements of a search.

    Attributes:
        known: All measured architectures, the campaign's own among them.
        stable: Whether every architecture that is on the front with the probability
            :data:`OPTIMISTIC` is measured. If the budget ends earlier: whether the last batch added
            nothing to the front.
        rounds: Rounds in order.
    """

    known: Candidates
    stable: bool
    rounds: tuple[Round, ...]

    @cached_property
    def front(self) -> Candidates:
        """Front of all measurements."""
        return self.known.front()

    @property
    def closest(self) -> Candidates:
        """Measured architecture closest to the limits."""
        return self.known[np.argsort(self.known.excess, kind="stable")[:1]]

    @property
    def measured(self) -> int:
        """Number of architectures measured for the search."""
        return sum(len(each.chosen) for each in self.rounds)


def verified_search(
    problem: Callable[[Sequence[Measure]], Problem],
    sites: Sequence[Site],
    method: SearchMethod,
    budget: int,
    batch: int = 10,
    probability: float = 0.9,
    past: Sequence[Round] = (),
    on_round: Callable[[Sequence[Round]], None] | None = None,
) -> Verification:
    """Search, measure what is new on the front, and repeat until nothing is new.

    Measured latencies replace predictions, and the predictors learn from them. An architecture that
    was predicted too fast is found by measuring it (Laube et al. 2022, Section 5; Lu et al. 2021,
    Section 5.3). Those that were predicted too slow are looked for last.

    Args:
        problem: Function from the sites' latencies to the problem.
        sites: One or more devices.
        method: Search method.
        budget: Largest number of architectures to measure, each on all sites.
        batch: Number of architectures per round, spread over the front.
        probability: Probability that a result keeps a latency limit, in the first round and in the
            final front.
        past: Rounds of the same search if it was interrupted, or ended with a smaller budget.
        on_round: Function called with all rounds before each measurement.
    """
    rounds = list(past)
    if rounds:
        _measure(sites, rounds)
        if not len(rounds[-1].chosen):
            rounds.pop()  # the budget may have ended there: search again
    while True:
        left = budget - sum(len(each.chosen) for each in rounds)
        optimistic = any(not len(each.chosen) for each in rounds)
        wanted = OPTIMISTIC if optimistic else min(EXPECTED, probability) if rounds else probability
        posed = problem([site.latency(wanted) for site in sites])
        known = _known(sites, posed)
        stable = _stability(rounds, known, posed, batch)
        if stable is not None:
            break
        begin = posed.evaluate(known).front().codes if len(known) else known
        outcome = method.search(posed, begin)
        fresh = np.flatnonzero(~np.isin(keys(outcome.front.codes), keys(known)))
        places = spread(len(fresh), min(batch, left), bool(posed.limits))
        chosen = outcome.front[fresh[places]]
        rounds.append(Round(outcome.front, chosen, outcome.evaluations, wanted))
        if on_round is not None:
            on_round(rounds)
        _measure(sites, rounds)
    return verify_front(problem, sites, probability, stable, rounds)


def verify_front(
    problem: Callable[[Sequence[Measure]], Problem],
    sites: Sequence[Site],
    probability: float,
    stable: bool,
    rounds: Sequence[Round],
) -> Verification:
    """Return the front of all that the sites have measured."""
    final = problem([site.latency(probability) for site in sites])
    return Verification(final.evaluate(_known(sites, final)), stable, tuple(rounds))


def _measure(sites: Sequence[Site], rounds: Sequence[Round]) -> None:
    """Measure the last round on all sites at once.

    An error of one site is raised after the others end.
    """
    codes, number = rounds[-1].chosen.codes, len(rounds)
    if not len(codes):
        return
    if len(sites) == 1:
        sites[0].measure(codes, number)
        return
    pool = ThreadPoolExecutor(len(sites))
    try:
        measuring = [pool.submit(site.measure, codes, number) for site in sites]
        wait(measuring)
        for each in measuring:
            each.result()
    finally:
        pool.shutdown(wait=False)  # an interrupt must not wait for the sites


def _stability(rounds: Sequence[Round], known: Codes, posed: Problem, batch: int) -> bool | None:
    """Return whether the front is stable; None while the search goes on."""
    if not rounds or len(rounds[-1].chosen):
        return None
    ends = [number for number, each in enumerate(rounds) if not len(each.chosen)]
    left = ~np.isin(keys(rounds[-1].front.codes), keys(known))
    if not left.any():
        return True if len(ends) > 1 else None
    front = keys(posed.evaluate(known).front().codes)
    without = 0  # number measured since the last addition to the front
    for each in reversed(rounds[ends[0] + 1 :]):
        if np.isin(keys(each.chosen.codes), front).any():
            break
        without += len(each.chosen)
    return without >= batch


def _known(sites: Sequence[Site], problem: Problem) -> Codes:
    """Return the architectures that all sites have measured in the contexts of the problem."""
    first, *others = [site.known() for site in sites]
    first = first[problem.space.in_contexts(first)]
    for other in others:
        first = first[np.isin(keys(first), keys(other))]
    return first[distinct(first)].reshape(-1, *problem.space.code_shape)


def spread(count: int, wanted: int, limited: bool) -> NDArray[np.intp]:
    """Return ``min(wanted, count)`` numbers below ``count``, both ends included.

    They are evenly spaced. With limits they are denser towards the end: there lie the slowest, and
    the best within a latency limit.
    """
    if wanted >= count:
        return np.arange(count)
    steps = np.linspace(0, 1, max(wanted, 0)) ** (2 if limited else 1)
    return np.unique(((count - 1) * (1 - steps)).round().astype(np.intp))
