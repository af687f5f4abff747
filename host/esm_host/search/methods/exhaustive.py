"""Exhaustive search."""

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
    """Evaluation of every architecture of a space of at most :data:`MOST`, or of a list.

    Args:
        listed: The architectures to evaluate, ``(m, *code_shape)``, m at least 1; None for the
            whole space.
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
                f"{problem.space.name} has {count:.2g} architectures, too many for an exhaustive "
                f"search: choose another {argument('method')}"
            )
        for codes in GeneEncoding(problem.space).everything():
            evaluate(codes)
