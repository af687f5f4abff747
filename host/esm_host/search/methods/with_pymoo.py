"""Evolutionary algorithms of pymoo (Blank and Deb 2020) on the genes of a search space."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.search.genes import GeneEncoding, keys
from esm_host.search.method import Evaluate, EvaluationCache, SearchMethod
from esm_host.search.problem import Problem
from esm_models.space import Codes


class PymooSearch(SearchMethod):
    """NSGA-II, NSGA-III or SMS-EMOA with uniform crossover.

    Every gene mutates with probability one over the number of genes. Limits are handled by
    constrained domination (Deb et al. 2002).

    Args:
        algorithm: ``"nsga2"``, ``"nsga3"`` or ``"sms-emoa"``.
        population: Architectures per generation.
        generations: Number of generations, including the first population.
        seed: Random seed.
    """

    def __init__(
        self, algorithm: str = "nsga2", population: int = 200, generations: int = 100, seed: int = 0
    ) -> None:
        self.algorithm = algorithm
        self.population = population
        self.generations = generations
        self.seed = seed

    def _run(self, problem: Problem, evaluate: Evaluate, start: Codes) -> None:
        from pymoo.core.duplicate import DuplicateElimination
        from pymoo.core.mutation import Mutation
        from pymoo.core.problem import Problem as PymooProblem
        from pymoo.operators.crossover.ux import UniformCrossover
        from pymoo.optimize import minimize

        encoding = GeneEncoding(problem.space)
        remembered = EvaluationCache(evaluate)
        worst = np.finfo(float).max

        class Space(PymooProblem):  # type: ignore[misc]  # without types
            def __init__(self) -> None:
                super().__init__(
                    n_var=len(encoding),
                    n_obj=len(problem.objectives),
                    n_ieq_constr=1,
                    xl=0,
                    xu=encoding.choices - 1,
                    vtype=int,
                )

            def _evaluate(self, x: NDArray[Any], out: dict[str, Any], *_: Any, **__: Any) -> None:
                found = remembered(encoding.to_codes(x))
                out["F"] = found.costs
                out["G"] = np.minimum(found.excess, worst)[:, None]

        class Reset(Mutation):  # type: ignore[misc]
            """Mutation that draws a gene anew."""

            def _do(
                self, _: Any, x: NDArray[Any], *args: Any, random_state: Any, **kwargs: Any
            ) -> NDArray[Any]:
                changed = random_state.random(x.shape) < 1 / len(encoding)
                drawn = random_state.integers(encoding.choices, size=x.shape)
                return np.where(changed, drawn, x)

        class SameNetwork(DuplicateElimination):  # type: ignore[misc]
            """Elimination of vectors that differ only in genes without effect."""

            def _do(self, pop: Any, other: Any, is_duplicate: NDArray[Any]) -> NDArray[Any]:
                own = keys(encoding.to_codes(pop.get("X")))
                if other is None:
                    first = np.zeros(len(own), dtype=bool)
                    first[np.unique(own, return_index=True)[1]] = True
                    is_duplicate[~first] = True
                else:
                    is_duplicate[np.isin(own, keys(encoding.to_codes(other.get("X"))))] = True
                return is_duplicate

        first = encoding.initial(self.population, start, np.random.default_rng(self.seed))
        algorithm = self._algorithm(
            len(problem.objectives),
            sampling=first,
            crossover=UniformCrossover(),
            mutation=Reset(prob=1.0),
            eliminate_duplicates=SameNetwork(),
        )
        minimize(Space(), algorithm, ("n_gen", self.generations), seed=self.seed, verbose=False)

    def _algorithm(self, objectives: int, **operators: Any) -> Any:
        if objectives < 2 and self.algorithm != "nsga2":
            raise UsageError(
                f"{self.algorithm} needs two objectives or more: choose {argument('method')} nsga2"
            )
        if self.algorithm == "nsga3":
            from pymoo.algorithms.moo.nsga3 import NSGA3

            directions = _directions(objectives, self.population // 2, self.seed)
            return NSGA3(directions, pop_size=self.population, **operators)
        if self.algorithm == "sms-emoa":
            from pymoo.algorithms.moo.sms import SMSEMOA

            return SMSEMOA(pop_size=self.population, **operators)
        from pymoo.algorithms.moo.nsga2 import NSGA2

        return NSGA2(pop_size=self.population, **operators)


@cache  # a search that measures asks for them again in every round
def _directions(objectives: int, count: int, seed: int) -> NDArray[np.float64]:
    """Return the reference directions of NSGA-III."""
    from pymoo.util.ref_dirs import get_reference_directions

    directions: NDArray[np.float64] = get_reference_directions(
        "energy", objectives, count, seed=seed
    )
    directions.setflags(write=False)
    return directions
