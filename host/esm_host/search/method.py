"""What a search method is: a problem in, the best that it met out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from esm_host.search.genes import distinct, keys
from esm_host.search.problem import Found, Problem
from esm_models.space import Codes

Evaluate = Callable[[Codes], Found]


class SearchMethod(ABC):
    """Looks at architectures and keeps the best of all that it looked at.

    The public method keeps the books, the private one decides what to look at. The same seed, the
    same problem and the same start give the same front.

    Args:
        seed: of everything random.
    """

    seed: int

    @abstractmethod
    def _run(self, problem: Problem, evaluate: Evaluate, start: Codes) -> None:
        """Evaluates what it wants to; what it met is kept by ``evaluate``."""

    def search(self, problem: Problem, start: Codes | None = None) -> Outcome:
        """The front that it finds.

        Args:
            start: architectures to begin with, beside those that chance draws.

        Raises:
            UsageError: the method does not suit the problem.
        """
        start = np.empty((0, *problem.space.code_shape), np.int16) if start is None else start
        outcome = Outcome(problem)
        self._run(problem, outcome.add, start)
        return outcome


class Outcome:
    """What a search came to.

    Attributes:
        front: of everything that was looked at.
        closest: where nothing keeps the limits, what comes closest; else the first of the front.
        evaluations: how many architectures were scored, repetitions included.
    """

    front: Found
    closest: Found

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.evaluations = 0

    def add(self, codes: Codes) -> Found:
        """Evaluates architectures, and takes the best of them into the front."""
        found = self._problem.evaluate(codes)
        self.evaluations += len(codes)
        best = found[np.argsort(found.excess, kind="stable")[:1]]
        if self.evaluations == len(codes):
            self.front, self.closest = found.front(), best
            return found
        if best.excess[0] < self.closest.excess[0]:
            self.closest = best
        self.front = Found.joined([self.front, found.front()]).front()
        return found


class Remembered:
    """Evaluates each architecture once, however often it is asked for.

    For methods that meet the same ones again and again, and costly problems.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._rows: dict[bytes, int] = {}
        self._all: Found | None = None

    def __call__(self, codes: Codes) -> Found:
        names = [key.tobytes() for key in keys(codes)]
        fresh = [row for row in distinct(codes).tolist() if names[row] not in self._rows]
        if fresh:
            found = self._evaluate(codes[fresh])
            first = 0 if self._all is None else len(self._all)
            self._rows.update((names[row], first + place) for place, row in enumerate(fresh))
            self._all = found if self._all is None else Found.joined([self._all, found])
        assert self._all is not None
        return self._all[np.array([self._rows[name] for name in names])]
