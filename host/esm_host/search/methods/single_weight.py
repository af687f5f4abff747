"""Evolutionary search of One Proxy, with one weighted sum of the objectives at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from esm_host.search.front import Floats
from esm_host.search.genes import GeneEncoding, Genes
from esm_host.search.method import Evaluate, SearchMethod
from esm_host.search.problem import Candidates, Problem
from esm_models.space import Codes


class SingleWeight(SearchMethod):
    """Evolution by weighted sums (Lu et al. 2021, One Proxy Device Is Enough, Appendix A).

    For every weight t a population evolves to minimise (t - 1) accuracy + t latency (equation 4).
    The fittest are the parents and survive. A child takes each gene from one of two parents. Some
    children mutate: with a given probability all genes of such a child are drawn anew. Objectives
    are in units of their spread in the first population. An architecture outside the limits is less
    fit than any within them.

    For more than two objectives the weights are spread evenly over the simplex (Das and Dennis
    1998). A single objective has one weight. The defaults are those of Section 6.

    Args:
        weights: Number of weights, at least 2; approximate for more than two objectives.
        population: Architectures per generation.
        parents: Share of the population that survives.
        mutating: Share of the population that are children subject to mutation.
        probability: Probability that such a child mutates.
        generations: Number of generations after the first population.
        seed: Random seed.
    """

    def __init__(
        self,
        weights: int = 11,
        population: int = 1000,
        parents: float = 0.25,
        mutating: float = 0.25,
        probability: float = 0.1,
        generations: int = 50,
        seed: int = 0,
    ) -> None:
        self.weights = weights
        self.population = population
        self.parents = parents
        self.mutating = mutating
        self.probability = probability
        self.generations = generations
        self.seed = seed

    def _run(self, problem: Problem, evaluate: Evaluate, start: Codes) -> None:
        encoding = GeneEncoding(problem.space)
        weights = self._simplex(len(problem.objectives))
        rngs = [np.random.default_rng([self.seed, number]) for number in range(len(weights))]
        populations = [encoding.initial(self.population, start, rng) for rng in rngs]
        found = self._evaluate(populations, encoding, evaluate)
        fitness = [_fitness(first, each) for first, each in zip(found, weights, strict=True)]
        scores = [fit(each) for fit, each in zip(fitness, found, strict=True)]
        survivors = max(2, round(self.parents * self.population))
        for _ in range(self.generations):
            best = [np.argsort(each, kind="stable")[:survivors] for each in scores]
            parents = [genes[rows] for genes, rows in zip(populations, best, strict=True)]
            children = [
                self._children(each, encoding, rng) for each, rng in zip(parents, rngs, strict=True)
            ]
            # One large array is scored faster than many small ones.
            found = self._evaluate(children, encoding, evaluate)
            populations = [np.concatenate(each) for each in zip(parents, children, strict=True)]
            scores = [
                np.concatenate([each[rows], fit(born)])
                for each, rows, fit, born in zip(scores, best, fitness, found, strict=True)
            ]

    @staticmethod
    def _evaluate(
        populations: Sequence[Genes], encoding: GeneEncoding, evaluate: Evaluate
    ) -> list[Candidates]:
        """Evaluate populations of equal sizes."""
        found = evaluate(encoding.to_codes(np.concatenate(populations)))
        return [found[rows] for rows in np.split(np.arange(len(found)), len(populations))]

    def _children(self, parents: Genes, encoding: GeneEncoding, rng: np.random.Generator) -> Genes:
        count = self.population - len(parents)
        pairs = rng.integers(len(parents), size=(2, count))
        either = rng.random((count, len(encoding))) < 0.5
        children: Genes = np.where(either, parents[pairs[0]], parents[pairs[1]])
        may = round(self.mutating * self.population)
        changed = np.flatnonzero(rng.random(min(may, count)) < self.probability)
        children[changed] = encoding.random(len(changed), rng)
        return children

    def _simplex(self, objectives: int) -> NDArray[np.float64]:
        """Return the weights of the objectives, ``(n, objectives)``; each row sums to 1."""
        if objectives == 1:
            return np.ones((1, 1))
        if objectives == 2:
            t = np.linspace(0, 1, self.weights)
            return np.stack([t, 1 - t], axis=1)
        partitions = 1
        while math.comb(partitions + objectives, objectives - 1) <= self.weights:
            partitions += 1
        steps = itertools.product(range(partitions + 1), repeat=objectives)
        return np.array([step for step in steps if sum(step) == partitions]) / partitions


def _fitness(first: Candidates, weights: Floats) -> Callable[[Candidates], Floats]:
    """Return a function for the fitness, less is fitter, in units of the first spread."""
    known = first.costs[np.isfinite(first.excess)]
    spread = known.std(axis=0) if len(known) else np.ones(len(weights))
    spread[spread == 0] = 1

    def fitness(found: Candidates) -> Floats:
        with np.errstate(invalid="ignore"):
            score = (found.costs / spread) @ weights
        # Worse than anything within the limits, in order of the violation.
        return np.where(found.excess > 0, 1e12 * (1 + found.excess), score)

    return fitness
