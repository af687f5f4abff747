"""Base class of search methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from esm_host.errors import UsageError
from esm_host.plugins import own_failures
from esm_host.search.genes import distinct, keys
from esm_host.search.problem import Candidates, Problem
from esm_models.space import Codes
from esm_protos.plugins import own_name

Evaluate = Callable[[Codes], Candidates]


class SearchMethod(ABC):
    """Method that evaluates architectures and keeps the best of them.

    The public method records what was evaluated. The private method decides what to evaluate. Equal
    seeds, problems and starts give equal fronts.

    Args:
        seed: Random seed.
    """

    seed: int

    @abstractmethod
    def _run(self, problem: Problem, evaluate: Evaluate, start: Codes) -> None:
        """Evaluate architectures of the method's choice with ``evaluate``, which records them."""

    def search(self, problem: Problem, start: Codes | None = None) -> SearchOutcome:
        """Search the problem and return the outcome.

        Args:
            problem: Space, objectives and limits.
            start: Architectures to begin with, besides random ones.

        Raises:
            UsageError: the method does not suit the problem, or evaluates no architecture of it.
            EsmError: a class from a user's file fails.
        """
        start = np.empty((0, *problem.space.code_shape), np.int16) if start is None else start
        outcome = SearchOutcome(problem)

        def evaluate(codes: Codes) -> Candidates:
            if (bad := problem.space.outside(codes)).any():
                raise UsageError(
                    f"{own_name(self)} evaluates {codes[bad.argmax()].tolist()}, which is outside "
                    f"of {problem.space.name}: evaluate architectures of the space"
                )
            return outcome.add(codes)

        with own_failures(self):
            self._run(problem, evaluate, start)
        if not outcome.evaluations:
            raise UsageError(
                f"{own_name(self)} evaluates no architecture: call evaluate in _run, and do not "
                "make _run a generator"
            )
        return outcome


class SearchOutcome:
    """Front of everything that a method has evaluated.

    Attributes:
        front: Pareto front of the evaluated architectures.
        closest: Architecture closest to the limits where none is within them; else the first within
            them.
        evaluations: Number of scored architectures, repetitions included.
    """

    front: Candidates
    closest: Candidates

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.evaluations = 0

    def add(self, codes: Codes) -> Candidates:
        """Evaluate architectures and add the best of them to the front."""
        found = self._problem.evaluate(codes)
        self.evaluations += len(codes)
        best = found[np.argsort(found.excess, kind="stable")[:1]]
        if self.evaluations == len(codes):
            self.front, self.closest = found.front(), best
            return found
        if best.excess[0] < self.closest.excess[0]:
            self.closest = best
        self.front = Candidates.joined([self.front, found.front()]).front()
        return found


class EvaluationCache:
    """Cache that evaluates each architecture once.

    It helps methods that meet the same architectures again and again, on costly problems.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._rows: dict[bytes, int] = {}
        self._all: Candidates | None = None

    def __call__(self, codes: Codes) -> Candidates:
        names = [key.tobytes() for key in keys(codes)]
        fresh = [row for row in distinct(codes).tolist() if names[row] not in self._rows]
        if fresh:
            found = self._evaluate(codes[fresh])
            first = 0 if self._all is None else len(self._all)
            self._rows.update((names[row], first + place) for place, row in enumerate(fresh))
            self._all = found if self._all is None else Candidates.joined([self._all, found])
        assert self._all is not None
        return self._all[np.array([self._rows[name] for name in names])]
