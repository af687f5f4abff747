"""Contexts that a campaign measured, and how far from them a prediction may be."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esm_host.arguments import argument
from esm_host.errors import GuessWarning, UsageError
from esm_models.architecture import Architecture

_SURE_ABOVE, _SURE_BELOW = 1.5, 2
"""Factors above the largest and below the smallest measured value; beyond are guesses."""
_MOST = 10
"""The same factor, beyond which predictions are refused."""


@dataclass(frozen=True)
class MeasuredContexts:
    """Values of each context that a campaign measured.

    Attributes:
        path: Folder of the campaign.
        values: Values by the name of a context, ascending.
    """

    path: Path
    values: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, path: Path, architectures: Iterable[Architecture]) -> MeasuredContexts:
        """Return the contexts of measured architectures."""
        found: dict[str, set[int]] = {}
        for architecture in architectures:
            for name, value in architecture.contexts:
                found.setdefault(name, set()).add(value)
        return cls(path, {name: tuple(sorted(values)) for name, values in found.items()})

    def guess(self, architectures: Sequence[Architecture]) -> str:
        """Return a warning if contexts are far from the measured ones, else "".

        The warning has marked names of arguments.

        Raises:
            UsageError: a value is more than 10 times above the largest or below the smallest.
        """
        asked = MeasuredContexts.of(self.path, architectures).values
        guesses = []
        for name, measured in self.values.items():
            low, high = measured[0], measured[-1]
            values = asked.get(name, ())
            if wild := [v for v in values if v > _MOST * high or _MOST * v < low]:
                raise UsageError(
                    f"{name} {_listed(wild)} is more than {_MOST} times beyond "
                    f"{self._cure(name, wild)}"
                )
            if far := [v for v in values if v > _SURE_ABOVE * high or _SURE_BELOW * v < low]:
                guesses.append(
                    f"predictions at {name} {_listed(far)} are a guess, far from "
                    f"{self._cure(name, far)}"
                )
        return "; ".join(guesses)

    def check(self, architectures: Sequence[Architecture]) -> None:
        """Warn the caller of a prediction if contexts are far from the measured ones.

        Raises:
            UsageError: as :meth:`guess`.
        """
        if text := self.guess(architectures):
            warnings.warn(GuessWarning(text), stacklevel=4)

    def _cure(self, name: str, values: Sequence[int]) -> str:
        measured = self.values[name]
        wanted = ",".join(map(str, sorted({*measured, *values})))
        return (
            f"the measured {_listed(measured)} of {self.path}: profile a campaign with "
            f"{argument('contexts')} {name}={wanted}"
        )


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
