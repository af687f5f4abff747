"""Looks at every architecture there is, or at every one of a list."""

from __future__ import annotations

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.search.genes import GeneEncoding
from esm_host.search.method import Evaluate, SearchMethod
from esm_host.search.problem import Problem
from esm_models.space import Codes

MOST = 5_000_000
_AT_ONCE = 10_000


class Exhaustive(SearchMethod):
    """The true front of what the problem says; of spaces with at most :data:`MOST`.

    Args:
        listed: architectures, ``(m, *code_shape)``, one or more: nothing but these.
    """

    def __init__(self, listed: Codes | None = None) -> None:
        self._listed = listed

    def _run(self, problem: Problem, evaluate: Evaluate, start: Codes) -> None:
        if self._listed is not None:
            for first in range(0, len(self._listed), _AT_ONCE):
                evaluate(self._listed[first : first + _AT_ONCE])
            return
        count = problem.space.count()
        if count > MOST:
            raise UsageError(
                f"{problem.space.name} has {count:.2g} architectures, too many to look at each: "
                f"choose another {argument('method')}"
            )
        for codes in GeneEncoding(problem.space).everything():
            evaluate(codes)
