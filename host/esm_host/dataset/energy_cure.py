"""Problem of an energy with its cure; apart from the data sets, so that timing loads fast."""

from __future__ import annotations

import math

from esm_host.arguments import argument


def problem_text(problem: str, needs_s: float) -> str:
    """Return the problem of an energy with its cure, with marked names of arguments.

    Args:
        problem: Problem of the energy.
        needs_s: Time per model that would resolve it, s; 0 if unknown.
    """
    if not needs_s:
        return problem
    return f"{problem}: give {argument('energy_time_s')} {math.ceil(needs_s)}"
