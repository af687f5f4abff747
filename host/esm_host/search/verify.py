"""Measures what a search chose, learns from it and searches again, until nothing new is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esm_host.search.genes import distinct, keys
from esm_host.search.method import SearchMethod
from esm_host.search.problem import Found, Measure, Problem
from esm_models.space import Codes

EXPECTING, HOPING = 0.5, 0.1
"""Probabilities that are asked, from the second round on, of what will be measured anyway: it need
not be promised to keep a limit, and what is at the limit is best. First comes what is expected to
be on the front; once all of that is measured, what has this chance of being as fast as it needs."""


class Site(Protocol):
    """A device on which chosen architectures are measured."""

    def known(self) -> Codes:
        """What was measured so far, ``(m, *code_shape)``."""

    def latency(self, probability: float) -> Measure:
        """Its latencies by all that was measured so far, and what they are at most with that
        probability (:class:`~esm_host.search.latency.Latency`)."""

    def measure(self, codes: Codes) -> None:
        """Measures these as well, those of them that it has not. What fails counts as known, and
        as unfit. Several sites are asked at once, each in a thread of its own."""


@dataclass(frozen=True, eq=False)
class Round:
    """One time of searching and measuring.

    Attributes:
        front: what the search found, by what was known then.
        chosen: what was measured of it: predictions. None in the last round, whose front was
            known, or for which the budget was spent.
        probability: that was asked of latencies.
    """

    front: Found
    chosen: Found
    evaluations: int
    probability: float


@dataclass(frozen=True, eq=False)
class Verified:
    """What came of it.

    Attributes:
        front: of all that was measured: measurements.
        stable: whether everything that is expected to be on the front was measured, and everything
            that has a chance of :data:`HOPING` to be there as well. When the budget ends before,
            whether the last batch of the latter brought nothing to the front.
        rounds: in order.
        closest: of all that was measured, what comes closest to the limits.
    """

    front: Found
    stable: bool
    rounds: tuple[Round, ...]
    closest: Found

    @property
    def measured(self) -> int:
        """Architectures that were measured for it."""
        return sum(len(each.chosen) for each in self.rounds)


def verified_search(
    problem: Callable[[Sequence[Measure]], Problem],
    sites: Sequence[Site],
    method: SearchMethod,
    budget: int,
    batch: int = 10,
    probability: float = 0.9,
    start: Codes | None = None,
    past: Sequence[Round] = (),
    on_round: Callable[[Sequence[Round]], None] | None = None,
) -> Verified:
    """Searches, measures what is new on the front, and searches again.

    What was measured counts as it was measured, everything else as predicted by all that was; so a
    prediction that promised too much is found out by being measured (Laube et al. 2022, Section 5;
    Lu et al. 2021, Section 5.3). What promised too little is looked for last.

    Args:
        problem: of the sites' latencies.
        sites: measure; one or more.
        budget: architectures to measure at most, each on all sites.
        batch: of these at a time, spread over the front.
        probability: of keeping a latency limit, for what is promised: what is measured first, and
            what is found in the end.
        start: architectures to begin each search with, beside what was measured.
        past: rounds of the same search, which was broken off after it had chosen what to measure,
            or had come to the end of a smaller budget.
        on_round: is told all rounds before what the last one chose is measured.
    """
    rounds = list(past)
    if rounds:
        _measure(sites, rounds[-1].chosen)
        if not len(rounds[-1].chosen):
            rounds.pop()  # the budget may have ended there: it is searched again
    while True:
        left = budget - sum(len(each.chosen) for each in rounds)
        hoping = any(not len(each.chosen) for each in rounds)
        wanted = HOPING if hoping else min(EXPECTING, probability) if rounds else probability
        posed = problem([site.latency(wanted) for site in sites])
        known = _known(sites, posed)
        stable = _over(rounds, known, posed, batch)
        if stable is not None:
            break
        seeds = known if start is None else np.concatenate([start, known])
        begin = posed.evaluate(seeds).front().codes if len(seeds) else seeds
        outcome = method.search(posed, begin)
        fresh = np.flatnonzero(~np.isin(keys(outcome.front.codes), keys(known)))
        places = spread(len(fresh), min(batch, left), bool(posed.limits))
        chosen = outcome.front[fresh[places]]
        rounds.append(Round(outcome.front, chosen, outcome.evaluations, wanted))
        if on_round is not None:
            on_round(rounds)
        _measure(sites, chosen)
    return verified(problem, sites, probability, stable, rounds)


def verified(
    problem: Callable[[Sequence[Measure]], Problem],
    sites: Sequence[Site],
    probability: float,
    stable: bool,
    rounds: Sequence[Round],
) -> Verified:
    """Return the front of all that the sites have measured."""
    final = problem([site.latency(probability) for site in sites])
    found = final.evaluate(_known(sites, final))
    closest = found[np.argsort(found.excess, kind="stable")[:1]]
    return Verified(found.front(), stable, tuple(rounds), closest)


def _measure(sites: Sequence[Site], chosen: Found) -> None:
    """On all sites at once; whatever one of them raises, the others come to their end."""
    if not len(chosen):
        return
    if len(sites) == 1:
        sites[0].measure(chosen.codes)
        return
    pool = ThreadPoolExecutor(len(sites))
    try:
        measuring = [pool.submit(site.measure, chosen.codes) for site in sites]
        wait(measuring)
        for each in measuring:
            each.result()
    finally:
        pool.shutdown(wait=False)  # an interrupt does not wait for them


def _over(rounds: Sequence[Round], known: Codes, posed: Problem, batch: int) -> bool | None:
    """Return whether the front is stable, once candidates or budget end; None until then."""
    if not rounds or len(rounds[-1].chosen):
        return None
    hopeful = [number for number, each in enumerate(rounds) if not len(each.chosen)]
    left = ~np.isin(keys(rounds[-1].front.codes), keys(known))
    if not left.any():
        return True if len(hopeful) > 1 else None
    front = keys(posed.evaluate(known).front().codes)
    without = 0  # measured since the last that made it to the front
    for each in reversed(rounds[hopeful[0] + 1 :]):
        if np.isin(keys(each.chosen.codes), front).any():
            break
        without += len(each.chosen)
    return without >= batch


def _known(sites: Sequence[Site], problem: Problem) -> Codes:
    """What all sites have measured."""
    first, *others = [site.known() for site in sites]
    for other in others:
        first = first[np.isin(keys(first), keys(other))]
    return first[distinct(first)].reshape(-1, *problem.space.code_shape)


def spread(count: int, wanted: int, limited: bool) -> NDArray[np.intp]:
    """``wanted`` numbers below ``count``, or all; both ends included. Evenly, or, where there are
    limits, more of them towards the end, where the slowest are: what is best within a limit."""
    if wanted >= count:
        return np.arange(count)
    steps = np.linspace(0, 1, max(wanted, 0)) ** (2 if limited else 1)
    return np.unique(((count - 1) * (1 - steps)).round().astype(np.intp))
