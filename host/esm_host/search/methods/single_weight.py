"""One Proxy's evolutionary search: one weighted sum of the objectives after the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from esm_host.search.front import Floats
from esm_host.search.genes import GeneEncoding, Genes
from esm_host.search.method import Evaluate, SearchMethod
from esm_host.search.problem import Found, Problem
from esm_models.space import Codes


class SingleWeight(SearchMethod):
    """Lu et al. 2021 (One Proxy Device Is Enough), Appendix A; defaults are those of Section 6.

    For every weight t a population evolves that is to make (t - 1) accuracy + t latency small
    (equation 4). The fittest part of it are the parents, who live on. Their children take every
    gene from either of two; a part of the children mutates, each with some probability, all of
    their genes drawn anew. Objectives count in units of their spread in the first population.
    Whoever breaks the limits is less fit than all who keep them.

    With more than two objectives weights are spread evenly over their simplex (Das and Dennis
    1998), with one there is only one.

    Args:
        weights: how many, at least 2; of more than two objectives about so many.
        population: architectures per generation.
        parents: share of the population that lives on.
        mutating: share of the population that are children who may mutate.
        probability: that one of these does.
        generations: after the first population.
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
        populations = [encoding.beginning(self.population, start, rng) for rng in rngs]
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
            # Of all weights at once: large arrays are scored faster than many small ones.
            found = self._evaluate(children, encoding, evaluate)
            populations = [np.concatenate(each) for each in zip(parents, children, strict=True)]
            scores = [
                np.concatenate([each[rows], fit(born)])
                for each, rows, fit, born in zip(scores, best, fitness, found, strict=True)
            ]

    @staticmethod
    def _evaluate(
        populations: Sequence[Genes], encoding: GeneEncoding, evaluate: Evaluate
    ) -> list[Found]:
        """Of populations of equal sizes."""
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
        """Weights of the objectives, ``(n, objectives)``, each row adding up to 1."""
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


def _fitness(first: Found, weights: Floats) -> Callable[[Found], Floats]:
    """Less is fitter, in units of the first population's spread."""
    known = first.costs[np.isfinite(first.excess)]
    spread = known.std(axis=0) if len(known) else np.ones(len(weights))
    spread[spread == 0] = 1

    def fitness(found: Found) -> Floats:
        with np.errstate(invalid="ignore"):
            score = (found.costs / spread) @ weights
        # Beyond all that keep the limits, by how far the limits are broken.
        return np.where(found.excess > 0, 1e12 * (1 + found.excess), score)

    return fitness
