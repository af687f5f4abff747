"""Problem of an energy with its cure; apart from the data sets, so that timing loads fast."""

from __future__ import annotations

import math

from esm_host.arguments import argument
from esm_protos.messages import Energy


def problem_text(energy: Energy) -> str:
    """Return the problem of an energy with its cure, with marked names of arguments."""
    if not energy.needs_s:
        return energy.problem
    return f"{energy.problem}: give {argument('energy_time_s')} {math.ceil(energy.needs_s)}"
