"""Search problem: a space with objectives and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from esm_host.search.front import Floats, nondominated
from esm_host.search.genes import distinct
from esm_models.space import Codes, SearchSpace


class Measure(Protocol):
    """Function from architectures to named quantities."""

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        """Return the quantities of codes ``(n, *code_shape)`` by name, ``(n,)`` each."""


@dataclass(frozen=True)
class Objective:
    """Quantity to minimise or maximise.

    Attributes:
        name: Name of the quantity, such as ``"latency_ms"``.
        maximise: Whether larger is better.
    """

    name: str
    maximise: bool = False


@dataclass(frozen=True)
class Limit:
    """Upper or lower bound of a quantity."""

    name: str
    value: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {self.value:g}"


def quantities_of(objectives: Sequence[Objective], limits: Sequence[Limit]) -> list[str]:
    """Return the names of the quantities, each once, objectives first."""
    return list(dict.fromkeys([*(o.name for o in objectives), *(limit.name for limit in limits)]))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Architectures with their quantities, row by row.

    Attributes:
        codes: Architectures, ``(n, *code_shape)``.
        values: Quantities by name, ``(n,)`` each.
        costs: Objectives, less is better, ``(n, objectives)``.
        excess: Sum of the violations of the limits, each relative to its limit, ``(n,)``; 0 if all
            are kept.
    """

    codes: Codes
    values: Mapping[str, Floats]
    costs: Floats
    excess: Floats

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: NDArray[np.generic]) -> Candidates:
        return Candidates(
            self.codes[rows],
            {name: each[rows] for name, each in self.values.items()},
            self.costs[rows],
            self.excess[rows],
        )

    def front(self) -> Candidates:
        """Return the Pareto front of those within the limits, without repetitions.

        It is sorted by the first cost.
        """
        kept = self[np.flatnonzero(self.excess == 0)]
        kept = kept[distinct(kept.codes)]
        kept = kept[np.flatnonzero(nondominated(kept.costs))]
        return kept[np.lexsort(kept.costs.T[::-1])]

    @staticmethod
    def joined(parts: Sequence[Candidates]) -> Candidates:
        """Return all rows of one or more parts of the same problem."""
        return Candidates(
            np.concatenate([part.codes for part in parts]),
            {
                name: np.concatenate([part.values[name] for part in parts])
                for name in parts[0].values
            },
            np.concatenate([part.costs for part in parts]),
            np.concatenate([part.excess for part in parts]),
        )


class Problem:
    """Search space with objectives and limits.

    Args:
        space: Search space.
        measures: Measures of at least the quantities that objectives and limits name.
        objectives: One or more.
        limits: Bounds of quantities.

    Raises:
        ValueError: there is no objective.
    """

    def __init__(
        self,
        space: SearchSpace,
        measures: Sequence[Measure],
        objectives: Sequence[Objective],
        limits: Sequence[Limit] = (),
    ) -> None:
        if not objectives:
            raise ValueError("a search needs one objective or more")
        self.space = space
        self.objectives = tuple(objectives)
        self.limits = tuple(limits)
        self._measures = tuple(measures)

    def evaluate(self, codes: Codes) -> Candidates:
        """Return architectures with their quantities.

        An architecture is infeasible if a quantity is NaN or infinite.

        Raises:
            KeyError: no measure has a quantity that an objective or a limit names.
        """
        values: dict[str, Floats] = {}
        for measure in self._measures:
            values.update(measure(codes))
        return self.score(codes, values)

    def score(self, codes: Codes, values: Mapping[str, Floats]) -> Candidates:
        """Return architectures with quantities that are known already."""
        costs = np.stack([(-1 if o.maximise else 1) * values[o.name] for o in self.objectives], 1)
        excess = np.zeros(len(codes))
        for limit in self.limits:
            over = values[limit.name] - limit.value
            over = -over if limit.at_least else over
            excess += np.maximum(over, 0) / max(abs(limit.value), 1e-9)
        unknown = ~np.isfinite(costs).all(axis=1) | ~np.isfinite(excess)
        costs[unknown], excess[unknown] = np.finfo(float).max, np.inf
        return Candidates(codes, values, costs, excess)
