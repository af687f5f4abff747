"""What is searched for: architectures good in some quantities, and within limits of some."""

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
    """Tells quantities of architectures."""

    def __call__(self, codes: Codes) -> Mapping[str, Floats]:
        """Each quantity of codes, ``(n, *code_shape)`` -> ``(n,)``, under its name."""


@dataclass(frozen=True)
class Objective:
    """A quantity to be small, or large.

    Attributes:
        name: of the quantity, as ``"latency_ms"``.
    """

    name: str
    maximise: bool = False


@dataclass(frozen=True)
class Limit:
    """What a quantity may be at most, or has to be at least."""

    name: str
    value: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.at_least else '<='} {self.value:g}"


def asked_about(objectives: Sequence[Objective], limits: Sequence[Limit]) -> list[str]:
    """Names of their quantities, each once, the objectives' first."""
    return list(dict.fromkeys([*(o.name for o in objectives), *(limit.name for limit in limits)]))


@dataclass(frozen=True, eq=False)
class Found:
    """Architectures with what is known of them, row by row.

    Attributes:
        codes: ``(n, *code_shape)``.
        values: quantities by name, ``(n,)`` each.
        costs: the objectives, less is better, ``(n, objectives)``.
        excess: by how much limits are broken, as a share of each, added up, ``(n,)``; 0 where
            all are kept.
    """

    codes: Codes
    values: Mapping[str, Floats]
    costs: Floats
    excess: Floats

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: NDArray[np.generic]) -> Found:
        return Found(
            self.codes[rows],
            {name: each[rows] for name, each in self.values.items()},
            self.costs[rows],
            self.excess[rows],
        )

    def front(self) -> Found:
        """Those within the limits that no other beats; of equal architectures one. From the
        smallest of the first cost on."""
        kept = self[np.flatnonzero(self.excess == 0)]
        kept = kept[distinct(kept.codes)]
        kept = kept[np.flatnonzero(nondominated(kept.costs))]
        return kept[np.lexsort(kept.costs.T[::-1])]

    @staticmethod
    def joined(parts: Sequence[Found]) -> Found:
        """All of several, one or more, of the same problem."""
        return Found(
            np.concatenate([part.codes for part in parts]),
            {
                name: np.concatenate([part.values[name] for part in parts])
                for name in parts[0].values
            },
            np.concatenate([part.costs for part in parts]),
            np.concatenate([part.excess for part in parts]),
        )


class Problem:
    """A search space with objectives and limits.

    Args:
        measures: tell the quantities that objectives and limits name, and maybe others.

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

    def evaluate(self, codes: Codes) -> Found:
        """What is known of architectures; one of which a quantity is NaN or infinite is unfit.

        Raises:
            KeyError: no measure tells a quantity that an objective or a limit names.
        """
        values: dict[str, Floats] = {}
        for measure in self._measures:
            values.update(measure(codes))
        return self.score(codes, values)

    def score(self, codes: Codes, values: Mapping[str, Floats]) -> Found:
        """The same of quantities that are known already."""
        costs = np.stack([(-1 if o.maximise else 1) * values[o.name] for o in self.objectives], 1)
        excess = np.zeros(len(codes))
        for limit in self.limits:
            over = values[limit.name] - limit.value
            over = -over if limit.at_least else over
            excess += np.maximum(over, 0) / max(abs(limit.value), 1e-9)
        unknown = ~np.isfinite(costs).all(axis=1) | ~np.isfinite(excess)
        costs[unknown], excess[unknown] = np.finfo(float).max, np.inf
        return Found(codes, values, costs, excess)
